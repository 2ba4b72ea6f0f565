"""What the loss says of one example of a batch alone, where the model's outputs are as long as the longest of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from holdfast.importance.measure import Batch
from holdfast.likelihoods.batches import slice_batch
from holdfast.moments.calls import tensors_in
from holdfast.moments.gradients import Scores
from holdfast.moments.sums import Alone


def alone(scores: Callable[[Any, Batch], Tensor], batch: Batch) -> Alone:
    """The scores of single examples of a batch.

    Targets, and whatever else the batch holds for the loss, are cut as the outputs are: along an axis where the outputs
    were n long for the batch and m are for one example, the first m of n entries are left. What is of another length
    stays whole, for a loss that cuts it itself.

    Args:
        scores: from the outputs and their batch to [K, B].
        batch: of B examples.
    """

    def of(b: int, shapes: Sequence[torch.Size]) -> Scores:
        content = slice_batch(batch.content, b, b + 1, lists=batch.call.lists)
        call, numbers = batch.call.examples(b, b + 1), batch.numbers[b : b + 1]
        return lambda outputs: scores(outputs, Batch(_cut(content, shapes, tensors_in(outputs)), call, numbers))

    return of


def _cut(content: Any, shapes: Sequence[torch.Size], outputs: Sequence[Tensor]) -> Any:
    cuts = [
        (axis, before, after)
        for shape, output in zip(shapes, outputs)
        for axis, (before, after) in enumerate(zip(shape, output.shape))
        if axis and len(shape) == output.ndim and after < before
    ]
    for axis, before, after in dict.fromkeys(cuts):
        content = tree_map_only(Tensor, lambda tensor: _narrowed(tensor, axis, before, after), content)  # noqa: B023
    return content


def _narrowed(tensor: Tensor, axis: int, before: int, after: int) -> Tensor:
    """Cut along the same axis if it has that length, else along the first that has."""
    axes = [axis, *range(1, tensor.ndim)] if axis < tensor.ndim else range(1, tensor.ndim)
    found = next((each for each in axes if tensor.shape[each] == before), None)
    return tensor if found is None else tensor.narrow(found, 0, after)
