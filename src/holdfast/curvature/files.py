"""Curvatures of layers as tensors and JSON values, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from holdfast.curvature.adapters import AdapterCurvature
from holdfast.curvature.kronecker import KroneckerCurvature
from holdfast.curvature.protocol import Curvature, Group, missing_in
from holdfast.curvature.sharing import shared
from holdfast.errors import FileFormatError, NotFiniteError, OptionError

_KINDS: dict[str, Any] = {"kronecker": KroneckerCurvature, "adapter": AdapterCurvature}
_DEFAULT = "kronecker"
"""The kind of a layer that says none, as those that were saved before there were others."""

_Kind = TypeVar("_Kind", bound=type)


def register_curvature(kind: str) -> Callable[[_Kind], _Kind]:
    """Let layers of this class be saved, copied and loaded: `@register_curvature("dense")`, where the class is defined.

    Raises:
        OptionError: the class lacks something of what a `Curvature` is.
    """

    def registered(cls: _Kind) -> _Kind:
        if missing := missing_in(cls, Curvature):
            raise OptionError(
                f"register_curvature({kind!r}): {cls.__name__} lacks {', '.join(missing)}. The docstrings of "
                "holdfast.Curvature say what each of them gives; one that has no meaning here raises OptionError."
            )
        _KINDS[kind] = cls
        return cls

    return registered


def layers_to_json(layers: Mapping[str, Curvature]) -> dict[str, Any]:
    """What of them is no tensor.

    Raises:
        OptionError: a layer's class is not registered.
    """
    kinds = {cls: {} if kind == _DEFAULT else {"kind": kind} for kind, cls in _KINDS.items()}
    unknown = [f"{name!r} ({type(layer).__name__})" for name, layer in layers.items() if type(layer) not in kinds]
    if unknown:
        raise OptionError(
            f"Layers of a class that is not registered can be neither saved nor copied: {', '.join(unknown)}. Put "
            '@holdfast.curvature.register_curvature("NAME") above the class.'
        )
    return {name: {**kinds[type(layer)], **layer.form} for name, layer in layers.items()}


def layers_to_tensors(layers: Mapping[str, Group]) -> dict[str, Tensor]:
    """What is a tensor, by "weight/part"."""
    return {f"{name}/{part}": tensor for name, layer in layers.items() for part, tensor in layer.tensors().items()}


def layers_from(described: Any, tensors: Mapping[str, Tensor], *, where: str) -> dict[str, Curvature]:
    """What `layers_to_json` and `layers_to_tensors` gave.

    Raises:
        FileFormatError: they do not fit each other.
        NotFiniteError: an entry is not finite, or a curvature is negative.
    """
    known = described if isinstance(described, dict) else {}
    layers: dict[str, Curvature] = {}
    left = dict(tensors)
    for name, entry in known.items():
        kind = entry.get("kind", _DEFAULT) if isinstance(entry, dict) else _DEFAULT
        if kind not in _KINDS:
            raise FileFormatError(
                f"{where}: {name!r} is of the kind {kind!r}; expected {', '.join(_KINDS)}. Import the module that "
                "registers it (register_curvature)."
            )
        cls = _KINDS[kind]
        if not all(f"{name}/{part}" in left for part in cls.PARTS):
            break
        parts = {part: left.pop(f"{name}/{part}") for part in cls.PARTS}
        layer, shapes = cls.described(entry, parts, name=name, where=where)
        if {part: tuple(tensor.shape) for part, tensor in parts.items()} != shapes:
            shape = layer.form.get("shape", shapes)
            raise FileFormatError(f"{where}: the tensors of {name!r} do not fit its shape {shape}. Save it again.")
        if not all(torch.isfinite(tensor).all() for tensor in parts.values()) or (layer.spectrum < 0).any():
            raise NotFiniteError(
                f"{where}: the factors of {name!r} hold entries that are not finite, or negative ones."
            )
        layers[name] = layer
    if left or len(layers) < len(known):
        raise FileFormatError(f"{where}: 'factors' does not list the layers of factors.safetensors. Save it again.")
    return shared(layers)
