"""Old skills held while LoRA adapters learn: the importance of the base weights on the product s B A.

An adapter adds s B A to a frozen base weight W, which is itself the anchor. So EWC's penalty on the new task is

    strength/2 sum_ij Omega_ij (s B A)_ij^2,

with Omega the importance of W, and not one on A and B, which have no meaning of their own (B R^-1 R A is the same
adapter). After the optimizer's step has given A' and B', each factor takes the proximal step with the other fixed, in
the optimizer's metric M: for each row b of B, and then with the new B for each column a of A,

    b = argmin  1/2 (b - b')^T M (b - b') + strength/2 sum_j Omega_j (s b A)_j^2
      = b' - (M + strength G)^-1 strength G b',        G = s^2 A diag(Omega) A^T,    r x r.

It is a ridge regression for every row, solved exactly. The penalty never rises by it, so that every strength from 0 to
infinity is stable where the gradient step is not, and at rest grad L + strength * grad penalty = 0 in each factor.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.optim import Optimizer

from holdfast.errors import OptionError, ParameterMismatchError, StateError, UnsupportedLayerError
from holdfast.records import Importance
from holdfast.retention import Report
from holdfast.retention.options import no_rate, own_weights_warning
from holdfast.steps import (
    StepHooks,
    bare_optimizer,
    metric_values,
    step_metrics,
    unknown_rate,
    weights_of_wrapper,
)
from holdfast.tensors import sum_of, tied_names, wide_dtype

_SOLVED_AT_ONCE = 2**22
"""Entries of the r x r systems, 16 MB in float32."""

_STARTS_WITHIN = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Of `init_lora_weights`: those that change the base weights."""

_STIFFEST = 1e6
"""Systems are solved as if strength * G were no more than this times M: float32 ends there, and the rest is pinned."""


@dataclass(frozen=True)
class Adapted:
    """A base weight with its adapter.

    Attributes:
        name: of the weight, in the bare base model.
        first: A, [r, in].
        second: B, [out, r].
        scale: s.
        importance: Omega of the base weight, [out, in].
    """

    name: str
    first: nn.Parameter
    second: nn.Parameter
    scale: float
    importance: Tensor

    def rise(self) -> Tensor:
        """1/2 sum Omega (s B A)^2; a temporary of the layer's size."""
        product = self.second.detach().float() @ self.first.detach().float()
        return 0.5 * self.scale**2 * (self.importance * product.square_()).sum()


class LoraEWC:
    """Elastic weight consolidation of a base model whose LoRA adapters learn (see this module).

    The base model is untouched, in full precision or quantised; where its importance is zero the adapter is free.
    Parameters besides adapters that are new, such as a head, are trained without being held; those that the importance
    covers are refused. Adapters are best in float32, as PEFT makes them.

    Args:
        model: a PEFT model with LoRA on linear layers, started so that the base weights are what was measured. An
            adapter that has learned already is held to the product zero, the base model, all the same.
        importance: of the base model's weights under their names there, measured before the adapters were added, or
            loaded. What it says of weights without an adapter is not needed.
        strength: lambda, 0..inf; with Fisher importances N_old/N_new is the Laplace value.
        adapter: name of the adapter that learns.
        log_every: every so many steps the pull is measured, for `report`; 0: never.

    Raises:
        OptionError: a strength or log_every out of its range, or an adapter that was started from a part of the base
            weights (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA).
        ParameterMismatchError: adapted weights without an importance, or of another shape, or parameters with an
            importance that are trained without being held (`modules_to_save`, `bias`, other adapters); every one is
            named.
        UnsupportedLayerError: adapters of this name on other layers than linear ones, whose product is not all they add
            (DoRA), or on a tied weight.

    Cost: memory of the importances of the adapted weights (shared with `importance` on its device) and one layer's
    temporaries; each step as many operations as a forward pass of r (r + 1) tokens through the adapted layers, and a
    system of r unknowns for every row and column.
    """

    def __init__(
        self,
        model: nn.Module,
        importance: Importance,
        *,
        strength: float = 1.0,
        adapter: str = "default",
        log_every: int = 100,
    ) -> None:
        if not (isinstance(strength, int | float) and strength >= 0):
            raise OptionError(f"LoraEWC: strength is {strength!r}; expected a number from 0 to infinity.")
        if not (isinstance(log_every, int) and log_every >= 0):
            raise OptionError(f"LoraEWC: log_every is {log_every!r}; expected a whole number >= 0.")
        self.strength, self.log_every = float(strength), log_every
        self.layers = list(_adapted(model, importance, adapter))
        _check_others(model, importance, self.layers)
        self._nats_per_unit = importance.info.nats_per_unit
        self._hooks: list[StepHooks] = []
        self._before: dict[nn.Parameter, Tensor] = {}
        self._moved: set[nn.Parameter] = set()
        self._num_steps = 0
        self._pull_ratio: float | None = None

    def attach(self, optimizer: Any) -> Self:
        """Hold this optimizer's steps back from now on; wrappers are seen through.

        Raises:
            StateError: it is attached to this optimizer already, or its steps cannot be followed.
            ParameterMismatchError: it does not train both factors of every adapter.
            OptionError: it has no learning rate to take the metric of its steps from.
        """
        bare = bare_optimizer(optimizer)
        if any(hooks.optimizer is bare for hooks in self._hooks):
            raise StateError(f"LoraEWC: already attached to this {type(bare).__name__}. Call detach() first.")
        trained = {id(p) for group in bare.param_groups for p in group["params"]}
        missing = [a.name for a in self.layers if not {id(a.first), id(a.second)} <= trained]
        if missing:
            raise ParameterMismatchError(
                f"LoraEWC: this {type(bare).__name__} does not train both factors of the adapters of "
                f"{', '.join(map(repr, missing))}. Build it from all parameters of the model that require gradients."
            )
        if (found := unknown_rate(bare)) is not None:
            raise OptionError(no_rate("LoraEWC", type(bare).__name__, found, remedy=""))
        if (kind := weights_of_wrapper(optimizer, bare)) is not None:
            warnings.warn(f"LoraEWC: {own_weights_warning(kind)}", stacklevel=2)
        self.layers = [replace(a, importance=a.importance.to(a.first.device)) for a in self.layers]
        self._hooks.append(StepHooks(bare, before=self._note, gradients=self._note_gradients, after=self._hold))
        return self

    def detach(self) -> Self:
        """Take every hook off again."""
        for hooks in self._hooks:
            hooks.remove()
        self._hooks.clear()
        self._before.clear()
        return self

    @torch.no_grad()
    def predicted_rise(self) -> float:
        """How much the old tasks' loss has risen by the quadratic model: 1/2 sum Omega (s B A)^2, >= 0.

        Returns:
            Nats, where the importance knows its factor; else in its own unit.
        """
        factor = 1.0 if self._nats_per_unit is None else self._nats_per_unit
        return factor * sum_of(layer.rise() for layer in self.layers)

    def report(self) -> Report:
        """Is it on, and does it work? `protected` is the share of the adapted base weights."""
        weights = sum(layer.importance.numel() for layer in self.layers)
        return Report(
            mechanism="LoraEWC",
            num_tasks=1,
            num_steps=self._num_steps,
            strength=self.strength,
            protected=sum_of((layer.importance > 0).sum() for layer in self.layers) / weights,
            pinned=None,
            pull_ratio=self._pull_ratio,
            predicted_rise=self.predicted_rise(),
            rise_unit="importance units" if self._nats_per_unit is None else "nats",
        )

    @torch.no_grad()
    def _note(self, optimizer: Optimizer) -> None:
        if self.log_every and self._num_steps % self.log_every == 0:
            factors = (factor for layer in self.layers for factor in (layer.first, layer.second))
            self._before = {factor: factor.detach().clone() for factor in factors}

    def _note_gradients(self, optimizer: Optimizer) -> None:
        """Which factors this step moves, of an optimizer that lets go of its gradients within too."""
        factors = (factor for layer in self.layers for factor in (layer.first, layer.second))
        self._moved = {factor for factor in factors if factor.grad is not None}

    @torch.no_grad()
    def _hold(self, optimizer: Optimizer) -> None:
        groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        steps, pulls = [], []
        for layer in self.layers if self.strength > 0 else ():
            for factor in (layer.second, layer.first):
                if factor not in self._moved and factor.grad is None:
                    continue
                metric = _metric(optimizer, groups[id(factor)], factor)
                if metric is None:
                    continue
                moved = factor.detach().clone() if self._before else None
                _pull(layer, factor, self.strength, metric=metric)
                if moved is not None:
                    steps.append((moved - self._before[factor]).float().square().sum())
                    pulls.append((factor.detach() - moved).float().square().sum())
        if self._before:
            step = math.sqrt(sum_of(steps))
            self._pull_ratio = math.sqrt(sum_of(pulls)) / step if step else None
        self._before = {}
        self._num_steps += 1


def ridge_pull(values: Tensor, importance: Tensor, other: Tensor, *, metric: Tensor, strength: float) -> Tensor:
    """What the proximal step takes from each row: (M + strength G)^-1 strength G b', G = X diag(Omega) X^T.

    Args:
        values: b', [n, r].
        importance: Omega of each row, [n, m], >= 0.
        other: X, the other factor times s, [r, m].
        metric: M > 0, [n, r].
        strength: lambda > 0; infinity pins what Omega reaches.

    Returns:
        [n, r], to be subtracted from `values`; exactly zero where Omega is.

    Cost: n m r (r + 1) operations, and memory for r (r + 1)/2 rows of m.
    """
    r = len(other)
    i, j = torch.triu_indices(r, r, device=other.device)
    pairs = (other[i] * other[j]).T
    pulls = []
    rows = max(1, _SOLVED_AT_ONCE // r**2)
    for b, omega, m in zip(values.split(rows), importance.split(rows), metric.split(rows), strict=True):
        upper = omega @ pairs
        curvature = upper.new_empty(len(b), r, r)
        curvature[:, i, j] = upper
        curvature[:, j, i] = upper
        largest = curvature.diagonal(dim1=1, dim2=2).amax(1, keepdim=True)
        stiffness = (m / strength).clamp_min(1e-30).maximum(largest / _STIFFEST)
        root = stiffness.rsqrt()
        # (M/strength + G)^-1 = root (1 + root G root)^-1 root, whose inner matrix is never singular
        scaled = root.unsqueeze(2) * curvature * root.unsqueeze(1)
        scaled.diagonal(dim1=1, dim2=2).add_(1.0)
        right = root.unsqueeze(2) * (curvature @ b.unsqueeze(2))
        solved = torch.cholesky_solve(right, torch.linalg.cholesky(scaled))
        pulls.append(root * solved.squeeze(2))
    return torch.cat(pulls)


def _pull(layer: Adapted, factor: nn.Parameter, strength: float, *, metric: float | Tensor) -> None:
    is_second = factor is layer.second
    other = (layer.first if is_second else layer.second.T).detach().float() * layer.scale
    values = (factor if is_second else factor.T).detach().float()
    omega = layer.importance if is_second else layer.importance.T
    if isinstance(metric, Tensor):
        m = (metric if is_second else metric.T).float()
    else:
        m = torch.full_like(values, metric)
    pull = ridge_pull(values, omega, other, metric=m, strength=strength)
    factor.detach().sub_((pull if is_second else pull.T).to(factor.dtype))


def _metric(optimizer: Optimizer, group: Any, factor: nn.Parameter) -> float | Tensor | None:
    """M of one factor; None where the learning rate is zero."""
    found = metric_values(step_metrics(optimizer, group, [factor]), [factor])
    metric = found[0] if isinstance(found, list) else found
    return metric if isinstance(metric, Tensor) or metric != math.inf else None


def _adapted(model: nn.Module, importance: Importance, adapter: str) -> Iterator[Adapted]:
    layers: dict[str, Any] = {  # its attributes are modules by adapter, which no type says
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer) and (adapter in module.lora_A or adapter in module.lora_embedding_A)
    }
    if not layers:
        raise ParameterMismatchError(
            f"LoraEWC: {type(model).__name__} has no LoRA adapter {adapter!r}. Name one of peft_config, or call "
            "get_peft_model first."
        )
    unfit = [name for name, layer in layers.items() if not _is_linear(layer, adapter)]
    if unfit:
        raise UnsupportedLayerError(
            f"LoraEWC: {', '.join(map(repr, unfit))}: an adapter on no linear layer, or that adds more than the "
            "product of its factors (DoRA). Use plain LoRA on linear layers, or EWC on the adapters' own weights."
        )
    start = getattr(getattr(model, "peft_config", {}).get(adapter), "init_lora_weights", True)
    if isinstance(start, str) and start.startswith(_STARTS_WITHIN):
        raise OptionError(
            f"LoraEWC: init_lora_weights={start!r} moves a part of the base weights into the adapter, so that the "
            "skills lie at a product other than zero, where they would not be held. Build the adapter with "
            "init_lora_weights=True."
        )
    tied = {name for names in tied_names(model).values() for name in names if len(names) > 1}
    twice = [name for name in layers if f"{name}.base_layer.weight" in tied]
    if twice:
        raise UnsupportedLayerError(
            f"LoraEWC: {', '.join(map(repr, twice))}: the weight is tied to another layer's, whose importance is "
            "that of both uses together, and an adapter changes only one of them. Leave it out of target_modules."
        )
    found = {_base_name(name): layer for name, layer in layers.items()}
    offenders = []
    for name, layer in found.items():
        shape = _shape(layer, adapter)
        if name not in importance:
            offenders.append(f"{name!r} has none")
        elif importance[name].shape != shape:
            offenders.append(f"{name!r} is {tuple(importance[name].shape)}, its weight {tuple(shape)}")
    if offenders:
        raise ParameterMismatchError(
            f"LoraEWC: the importance does not fit {len(offenders)} of {len(found)} adapted weights: "
            f"{'; '.join(offenders)}. Measure it on the base model, before the adapters are added."
        )
    for name, layer in found.items():
        first, second = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
        omega = importance[name].to(first.device, wide_dtype(importance[name]))
        yield Adapted(name, first, second, layer.scaling[adapter], omega.T if _is_transposed(layer) else omega)


def _check_others(model: nn.Module, importance: Importance, layers: Sequence[Adapted]) -> None:
    """Raise `ParameterMismatchError` naming the parameters that matter and are trained outside of these adapters."""
    held = {id(factor) for layer in layers for factor in (layer.first, layer.second)}
    trained = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in held]
    same = {_bare_name(name): _bare_name(names[0]) for names in tied_names(model).values() for name in names}
    free = [name for name in trained if any(importance[w].any() for w in _weights_of(name, importance, same))]
    if free:
        raise ParameterMismatchError(
            f"LoraEWC: {len(free)} of the parameters that are trained have an importance, and would not be held, as "
            f"they are outside of the adapters: {', '.join(map(repr, free))}. Leave them out of modules_to_save, bias "
            "and other adapters, or freeze them; to train them all the same, leave them out of the importance."
        )


def _weights_of(name: str, importance: Importance, same: Mapping[str, str]) -> list[str]:
    """The measured parameters that a trained one is, or changes as a part of their module; `same`: of tied weights."""
    pieces = _bare_name(name).split(".")
    leaf = pieces[-1] if pieces[-1] in ("weight", "bias") else "weight"
    above = [".".join((*pieces[:count], leaf)) for count in range(1, len(pieces) - 1)]
    return [first for weight in (".".join(pieces), *above) if (first := same.get(weight, weight)) in importance]


def _bare_name(name: str) -> str:
    """Of a parameter as the bare base model has it."""
    pieces = name.removeprefix("base_model.model.").split(".")
    return ".".join(piece for piece in pieces if piece not in ("base_layer", "original_module"))


def _shape(layer: Any, adapter: str) -> torch.Size:
    """Of the base weight as it was before it may have been packed into fewer bits."""
    shape = torch.Size((layer.lora_B[adapter].weight.shape[0], layer.lora_A[adapter].weight.shape[1]))
    return shape[::-1] if _is_transposed(layer) else shape


def _is_linear(layer: Any, adapter: str) -> bool:
    has_two = adapter in layer.lora_A and isinstance(layer.lora_A[adapter], nn.Linear)
    return has_two and adapter not in layer.lora_variant and not layer.lora_bias.get(adapter, False)


def _is_transposed(layer: Any) -> bool:
    return bool(getattr(layer, "fan_in_fan_out", False))


def _base_name(name: str) -> str:
    """Of an adapted layer's weight in the bare base model."""
    return f"{name.removeprefix('base_model.model.')}.weight"
