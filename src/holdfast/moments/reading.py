"""Which layers read the same input, found by where it lies in memory, in every batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from holdfast.moments.company import Company
from holdfast.moments.matrices import Layer
from holdfast.moments.recording import Use


def told_apart(layers: Sequence[Layer], uses: Mapping[str, Sequence[Use]], reads: dict[str, str]) -> None:
    """Of the layers that had the same input so far, keep together those that have it in this batch.

    Args:
        layers: all of them.
        uses: weight -> the calls of its layer.
        reads: weight -> that of the first layer that had the same input so far; changed.
    """
    first: dict[Any, str] = {}
    for layer in layers:
        for use in uses[layer.weight]:
            alike = (reads.get(layer.weight), use.source, layer.matrix_shape[1], layer.bias is None)
            reads[layer.weight] = first.setdefault(alike, layer.weight)


def agreed(layers: Sequence[Layer], reads: Mapping[str, str], company: Company) -> dict[str, str]:
    """The same of all processes: layers that had the same input in each of them."""
    places = {layer.weight: place for place, layer in enumerate(layers)}
    own = [places.get(reads.get(layer.weight, ""), -1) for layer in layers]
    first: dict[Any, str] = {}
    found: dict[str, str] = {}
    for weight, *heads in zip(places, *company.each(own), strict=True):
        if any(head >= 0 for head in heads):
            found[weight] = first.setdefault(tuple(heads), weight)
    return found
