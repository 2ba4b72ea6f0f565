"""What LoRA adapters change, in the names of the base model: where an importance of its weights belongs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from holdfast.curvature import AdapterCurvature, MixedImportance
from holdfast.errors import ParameterMismatchError, UnsupportedLayerError
from holdfast.records import Importance
from holdfast.tensors import canonical_name, tied_names, trainable_parameters, unwrap


@dataclass(frozen=True)
class Adapter:
    """s B A, which is added to a weight. Kernels of a convolution count as its inputs.

    Attributes:
        name: of the weight, in the bare base model.
        names: of A and B, in the model with adapters.
        first: A, [r, in], or [r, in, kernel...].
        second: B, [out, r], or [out, r, 1...].
        scale: s.
        transposed: whether the weight is stored as [in, out].
    """

    name: str
    names: tuple[str, str]
    first: nn.Parameter
    second: nn.Parameter
    scale: float
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight as it is before it may be packed into fewer bits."""
        shape = (len(self.second), *self.first.shape[1:])
        return shape[::-1] if self.transposed else shape

    def curvature(self, importance: Tensor) -> tuple[str, AdapterCurvature]:
        """The layer's name, and its curvature where this is the importance of the weight."""
        shapes = tuple(self.first.shape), tuple(self.second.shape)
        omega = importance.to(self.first.device, torch.float32)
        return self.names[0], AdapterCurvature(omega, self.name, self.names[1], self.scale, shapes, self.transposed)


@contextmanager
def base_weights(model: nn.Module, *, adapter: str = "default") -> Iterator[None]:
    """Within it the adapted weights require gradients and their factors do not: so a later task is measured.

        with base_weights(model):
            importance = hf.fisher(model, data)
        keeper.retain(importance)

    The gradient of a base weight is that of the sum W + s B A.

    Raises:
        ParameterMismatchError: the model has no adapter of this name.
        UnsupportedLayerError: base weights are quantised, which have no gradient, or adapted as `LoraEWC` cannot hold.
    """
    adapters = lora_adapters(model, adapter)
    layers = [layer for _, layer in _lora_layers(model, adapter)]
    weights = [layer.get_base_layer().weight for layer in layers]
    packed = [a.name for a, w in zip(adapters, weights) if not w.is_floating_point() or w.shape != a.shape]
    if packed:
        raise UnsupportedLayerError(
            f"base_weights: {len(packed)} adapted weights are quantised and have no gradient, such as {packed[0]!r}. "
            "Measure on the model before it is quantised, with the same adapters loaded, and retain that importance."
        )
    changed = dict.fromkeys(weights, True) | {p: False for a in adapters for p in (a.first, a.second)}
    before = {p: p.requires_grad for p in changed}
    try:
        for p, requires in changed.items():
            p.requires_grad_(requires)
        yield
    finally:
        for p, requires in before.items():
            p.requires_grad_(requires)


def _lora_layers(model: nn.Module, adapter: str) -> list[tuple[str, Any]]:
    """Their attributes are modules by adapter, which no type says."""
    named = ((canonical_name(name), module) for name, module in unwrap(model).named_modules())
    layers: list[tuple[str, Any]] = [(name, module) for name, module in named if isinstance(module, LoraLayer)]
    return [(name, m) for name, m in layers if adapter in m.lora_A or adapter in m.lora_embedding_A]


def lora_adapters(model: nn.Module, adapter: str) -> list[Adapter]:
    """Those of this name, one a layer.

    Raises:
        ParameterMismatchError: there is none.
        UnsupportedLayerError: their product is not all they add.
    """
    layers = _lora_layers(model, adapter)
    if not layers:
        raise ParameterMismatchError(
            f"LoraEWC: {type(unwrap(model)).__name__} has no LoRA adapter {adapter!r}. Name one of peft_config, or "
            "call get_peft_model first."
        )
    unfit = [name for name, layer in layers if not _is_product(layer, adapter)]
    if unfit:
        raise UnsupportedLayerError(
            f"LoraEWC: {', '.join(map(repr, unfit))}: the adapter is on no linear layer, embedding or convolution, or "
            "adds more than the product of its factors (DoRA). Use plain LoRA, or EWC on the adapters' own weights."
        )
    return [_adapter_of(name, layer, adapter) for name, layer in layers]


def _is_product(layer: Any, adapter: str) -> bool:
    if adapter in layer.lora_variant or layer.lora_bias.get(adapter, False):
        return False
    if adapter in layer.lora_embedding_A or isinstance(layer.lora_A[adapter], nn.Linear):
        return True
    return getattr(layer.get_base_layer(), "groups", 0) == 1  # a convolution


def _adapter_of(name: str, layer: Any, adapter: str) -> Adapter:
    weight, scale = _bare_name(f"{name}.weight"), layer.scaling[adapter]
    if adapter in layer.lora_embedding_A:
        names = f"{name}.lora_embedding_A.{adapter}", f"{name}.lora_embedding_B.{adapter}"
        return Adapter(weight, names, layer.lora_embedding_A[adapter], layer.lora_embedding_B[adapter], scale, True)
    names = f"{name}.lora_A.{adapter}.weight", f"{name}.lora_B.{adapter}.weight"
    first, second = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    return Adapter(weight, names, first, second, scale, bool(getattr(layer, "fan_in_fan_out", False)))


def assigned(
    model: nn.Module, adapters: Iterable[Adapter], importance: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The importance of each adapted weight, and of each parameter that learns beside, under its name in the model."""
    values = {_bare_name(name): value for name, value in importance.items()}
    uses: dict[str, set[str]] = {}
    groups = {name: {_bare_name(n) for n in names} for name, names in tied_names(model).items()}
    for names in groups.values():
        for name in names:
            uses[name] = uses.get(name, set()) | names
    tied, misfits, free = [], [], []

    def entry(names: set[str]) -> Tensor | None:
        """Of a weight with these uses; None where none was measured, or others together with them."""
        together = set().union(*(uses.get(name, {name}) for name in names))
        if together != names and not together <= values.keys():
            tied.extend(names if together & values.keys() else ())
            return None
        return next((values[name] for name in sorted(names) if name in values), None)

    of_adapters, of_others = {}, {}
    for adapter in adapters:
        value = entry({adapter.name})
        if value is not None and value.shape == adapter.shape:
            of_adapters[adapter.name] = value
        elif adapter.name not in tied:
            found = "has none" if value is None else f"is {tuple(value.shape)}, its weight {tuple(adapter.shape)}"
            misfits.append(f"{adapter.name!r} {found}")
    factors = {id(p) for a in adapters for p in (a.first, a.second)}
    for name, parameter in trainable_parameters(model).items():
        if id(parameter) in factors:
            continue
        value = entry(groups[name])
        if groups[name] & of_adapters.keys() or (value is None and _is_within(_bare_name(name), values)):
            free.append(name)
        elif value is not None:
            of_others[name] = value
    if tied:
        raise UnsupportedLayerError(
            f"LoraEWC.retain: {', '.join(map(repr, tied))}: the weight is tied to another layer's, and the importance "
            "is that of both uses together, while only one of them learns. Leave it out of target_modules and "
            "modules_to_save, or measure a copy of the model whose weights are not tied."
        )
    if misfits:
        raise ParameterMismatchError(
            f"LoraEWC.retain: the importance does not fit {len(misfits)} of {len(misfits) + len(of_adapters)} adapted "
            f"weights: {'; '.join(misfits)}. Measure it on the base model before the adapters are added, or later "
            "within base_weights(model)."
        )
    if free:
        raise ParameterMismatchError(
            f"LoraEWC.retain: {len(free)} of the parameters that are trained change weights that have an importance, "
            f"and cannot be held outside of these adapters: {', '.join(map(repr, free))}. Leave them out (other "
            "adapters, trainable_token_indices) or freeze them; to train them all the same, leave these weights out of "
            "the importance."
        )
    return of_adapters, of_others


def on_adapters(model: nn.Module, adapter: str, importance: Importance) -> MixedImportance:
    """The importance of a base model, as that of its adapters of this name and of what learns beside them.

    Raises:
        ParameterMismatchError, UnsupportedLayerError: as `lora_adapters` and `assigned`.
    """
    adapters = lora_adapters(model, adapter)
    of_adapters, of_others = assigned(model, adapters, importance)
    layers = dict(adapter.curvature(of_adapters[adapter.name]) for adapter in adapters)
    return MixedImportance(layers, Importance(of_others, importance.info), importance.info)


def _is_within(name: str, values: Mapping[str, Tensor]) -> bool:
    """Whether a parameter is a part of a module whose weight or bias was measured."""
    pieces = name.split(".")
    leaf = pieces[-1] if pieces[-1] in ("weight", "bias") else "weight"
    above = (".".join((*pieces[:count], leaf)) for count in range(1, len(pieces) - 1))
    return any(weight in values and bool(values[weight].any()) for weight in above)


def _bare_name(name: str) -> str:
    """Of a parameter as the bare base model has it."""
    pieces = canonical_name(name).removeprefix("base_model.model.").split(".")
    after = [False, *(piece == "modules_to_save" for piece in pieces)]
    wrappers = ("base_layer", "original_module", "modules_to_save")
    return ".".join(piece for piece, is_adapter in zip(pieces, after) if not is_adapter and piece not in wrappers)
