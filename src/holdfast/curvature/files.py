"""Curvatures of layers as tensors and JSON values, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from holdfast.curvature.kronecker import KroneckerCurvature
from holdfast.curvature.protocol import Curvature
from holdfast.errors import FileFormatError, NotFiniteError, OptionError

_KINDS: dict[str, Any] = {"kronecker": KroneckerCurvature}
_DEFAULT = "kronecker"
"""The kind of a layer that says none, as those that were saved before there were others."""


def layers_to_json(layers: Mapping[str, Curvature]) -> dict[str, Any]:
    """What of them is no tensor.

    Raises:
        OptionError: a curvature of a kind that no file can be read back as.
    """
    kinds = {cls: {} if kind == _DEFAULT else {"kind": kind} for kind, cls in _KINDS.items()}
    if own := {name: type(layer).__name__ for name, layer in layers.items() if type(layer) not in kinds}:
        listed = ", ".join(f"{name!r} ({kind})" for name, kind in own.items())
        raise OptionError(f"save: {listed}: files know Kronecker factors alone. Retain a diagonal to save the keeper.")
    return {name: {**kinds[type(layer)], **layer.form} for name, layer in layers.items()}


def layers_to_tensors(layers: Mapping[str, Curvature]) -> dict[str, Tensor]:
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
            raise FileFormatError(f"{where}: {name!r} is of the kind {kind!r}; expected {', '.join(_KINDS)}.")
        cls = _KINDS[kind]
        if not all(f"{name}/{part}" in left for part in cls.PARTS):
            break
        parts = {part: left.pop(f"{name}/{part}") for part in cls.PARTS}
        layer, shapes = cls.described(entry, parts, name=name, where=where)
        if {part: tuple(tensor.shape) for part, tensor in parts.items()} != shapes:
            raise FileFormatError(
                f"{where}: the tensors of {name!r} do not fit its shape {layer.form['shape']}. Save it again."
            )
        if not all(torch.isfinite(tensor).all() for tensor in parts.values()) or (layer.spectrum < 0).any():
            raise NotFiniteError(
                f"{where}: the factors of {name!r} hold entries that are not finite, or negative ones."
            )
        layers[name] = layer
    if left or len(layers) < len(known):
        raise FileFormatError(f"{where}: 'factors' does not list the layers of factors.safetensors. Save it again.")
    return layers
