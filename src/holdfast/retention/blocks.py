"""Parts cut into blocks, each small enough to stay in a processor's cache through all that a step does to it.

A large tensor becomes several blocks of one flat piece, small ones a block together. So temporaries are a few
megabytes at most, whatever the model's size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from itertools import repeat
from typing import Any

from torch import Tensor

from holdfast.retention.plan import Part
from holdfast.steps import Increment, Kept, Metric, metric_values
from holdfast.tensors import chunks

BLOCK = 2**18
"""Weights in a block: 1 MB in float32. Fewer cost more calls, more fall out of the cache."""

SMALL = 2**13
"""Tensors of fewer weights are worth no call of their own."""


@dataclass(frozen=True)
class Block:
    """Weights that are treated together: one piece of a large tensor, or several small tensors.

    Attributes:
        weights: theta', live views outside autograd.
        anchors: likewise; empty for mechanisms without.
        importance: Omega, float32.
        metrics: one for each, where asked for.
        increments: likewise.
    """

    weights: list[Tensor]
    anchors: list[Tensor]
    importance: list[Tensor]
    metrics: list[Metric]
    increments: list[Increment | Kept]

    def metric(self) -> float | list[Tensor]:
        """M computed: one number for all, or a tensor for each."""
        return metric_values(self.metrics, self.weights)

    def moved(self) -> list[Tensor]:
        """The increments computed; asked before the weights are changed."""
        return [increment.value(weight) for increment, weight in zip(self.increments, self.weights, strict=True)]


def blocks(
    part: Part, *, metrics: Sequence[Metric] = (), increments: Sequence[Increment | Kept] = ()
) -> Iterator[Block]:
    """The blocks of a part, each weight in exactly one of them.

    Args:
        part: parameters of one group, device and dtype.
        metrics: one for each parameter, or none.
        increments: likewise.

    On an accelerator, where calls are dear and its own memory is all there is, a part is one block.
    """
    columns = [part.weights, part.anchors, part.importance, metrics, increments]
    rows = [list(column) for column in columns]
    if part.parameters[0].device.type != "cpu":
        yield Block(*rows)
        return
    together = []
    for index, weight in enumerate(part.parameters):
        row = [column[index] if column else None for column in rows]
        if weight.numel() < SMALL:
            together.append(row)
        elif all(_is_flat(entry) for entry in row):
            for piece in zip(*(_pieces(entry) for entry in row)):
                yield _block([piece])
        else:
            yield _block([row])
    for chosen in chunks([row[0] for row in together], limit=4 * BLOCK):
        yield _block(together[chosen])


def _block(rows: Sequence[Sequence[Any]]) -> Block:
    return Block(*([entry for entry in column if entry is not None] for column in zip(*rows)))


def _is_flat(entry: Any) -> bool:
    """Whether every tensor in it is one stretch of memory, so that views of pieces can be had."""
    return all(tensor.is_contiguous() for tensor in _tensors(entry))


def _tensors(entry: Any) -> Iterator[Tensor]:
    if isinstance(entry, Tensor):
        yield entry
    elif is_dataclass(entry):
        for field in fields(entry):
            yield from _tensors(getattr(entry, field.name))


def _pieces(entry: Any) -> Iterable[Any]:
    """Views of successive pieces of a tensor, or of a record with tensors in it; all else goes with every piece."""
    if isinstance(entry, Tensor):
        return entry.view(-1).split(BLOCK)
    if is_dataclass(entry):
        return map(type(entry), *(_pieces(getattr(entry, field.name)) for field in fields(entry)))
    return repeat(entry)
