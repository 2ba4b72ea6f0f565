"""Which process has the curvature of which layer, where several share a model that `fully_shard` spread over them.

A factor is the square of a layer's side, so that no process holds those of all layers: each layer belongs to one, its
owner. Who that is follows from the names and costs of the layers and the number of processes alone. So measuring and
holding agree on it, and any number of processes may read what another number saved.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from holdfast.curvature.protocol import Group

_L = TypeVar("_L", bound=Group)


@dataclass(frozen=True)
class LayerElsewhere(Generic[_L]):
    """A layer whose curvature another process has: what must be known of it to take part in what all processes do.

    Attributes:
        owner: the rank of that process in the mesh, counted along its last axis first.
        place: of the layer among all, from 0, so that every process lists them in one order (`in_order`).
        layer: the same layer on the device "meta": names, shapes, dtypes and form of it, and no numbers.
    """

    owner: int
    place: int
    layer: _L

    def shapes(self, name: str) -> dict[str, tuple[int, ...]]:
        """Name -> shape of its parameters, in order; `name` is the first one's."""
        return self.layer.shapes(name)


def owners(costs: Mapping[str, float], size: int, *, groups: Mapping[str, str] | None = None) -> dict[str, int]:
    """The process that has each layer: the costliest goes first, each to the process that has the least so far.

    Args:
        costs: name of a layer -> what it costs its owner, such as `cost_of` says.
        size: number of processes.
        groups: name of a layer -> the same for all that are to be together, such as what they read; a layer that is
            not in it is by itself.

    Returns:
        Name -> rank from 0 to size - 1, in the order of `costs`; whatever that order is, the same.
    """
    units: dict[tuple[bool, str], list[str]] = {}
    for name in costs:
        head = (groups or {}).get(name)
        units.setdefault((head is None, name if head is None else head), []).append(name)
    sums = {unit: sum(sorted(costs[name] for name in names)) for unit, names in units.items()}
    loads, found = [0.0] * size, {}
    for unit in sorted(units, key=lambda unit: (-sums[unit], min(units[unit]))):
        owner = loads.index(min(loads))
        loads[owner] += sums[unit]
        found |= dict.fromkeys(units[unit], owner)
    return {name: found[name] for name in costs}


def cost_of(layer: Group) -> float:
    """What a layer costs its owner, in multiplications: the eigenvectors of its matrices, and the products of a pull.

    A matrix [n, n] beside w weights takes n^3 and n w of them; one in blocks [n, b] takes n b^2 and b w. A spectrum
    does not count, so that a layer costs as much to measure as to hold. What has no matrices costs its w weights.
    """
    weights = float(sum(math.prod(shape) for shape in layer.shapes("").values()))
    spectrum = getattr(layer, "spectrum", None)
    matrices = [part for part in layer.tensors().values() if part is not spectrum and part.ndim == 2]
    return weights + sum(float(len(part)) * part.shape[1] ** 2 + weights * part.shape[1] for part in matrices)


def apart(
    layers: Mapping[str, _L], where: Mapping[str, int], rank: int
) -> tuple[dict[str, _L], dict[str, LayerElsewhere[_L]]]:
    """Of layers that are whole in every process those that process `rank` owns, and what it knows of the others."""
    own = {name: layer for name, layer in layers.items() if where[name] == rank}
    rest = {
        name: LayerElsewhere(where[name], place, layer.to("meta"))
        for place, (name, layer) in enumerate(layers.items())
        if where[name] != rank
    }
    return own, rest


def in_order(own: Iterable[str], rest: Mapping[str, LayerElsewhere[Any]]) -> list[str]:
    """The names of all layers, those of this process and those elsewhere, in the same order in every process."""
    names = list(own)
    for name in sorted(rest, key=lambda name: rest[name].place):
        names.insert(rest[name].place, name)
    return names
