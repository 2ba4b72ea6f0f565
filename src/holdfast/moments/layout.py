"""Where the examples are in a tensor: found by running a model on a few examples together and alone, never guessed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Order = Literal["alone", "major", "minor"]


@dataclass(frozen=True)
class Layout:
    """The axis of a tensor that holds the examples.

    Attributes:
        axis: counted from the first.
        order: "alone": the axis has one entry an example. "major", "minor": n entries an example, flattened with the
            example as the slow or the fast index, as [B, T] or [T, B] reshaped to one axis.
    """

    axis: int
    order: Order = "alone"

    def fits(self, tensor: Tensor, size: int) -> bool:
        """Whether the axis can hold this many examples."""
        length = tensor.shape[self.axis] if tensor.ndim > self.axis else 0
        return length == size if self.order == "alone" else length > 0 and length % size == 0

    def split(self, tensor: Tensor, size: int) -> Tensor:
        """[B, ...]: a view with the examples on an axis of their own, the first; the others keep their order.

        The axis they come from stays, with the n entries of each example.
        """
        length = tensor.shape[self.axis] // size
        if self.order == "minor":
            return tensor.unflatten(self.axis, (length, size)).movedim(self.axis + 1, 0)
        return tensor.unflatten(self.axis, (size, length)).movedim(self.axis, 0)


UNBATCHED = Layout(-1)
"""The tensor does not depend on the examples, as the embedding of the positions 0..T-1."""

RAGGED = Layout(-2)
"""The rows belong to the examples in a way that is no layout, and that must be found out in every batch."""


def find_layout(together: Tensor, alone: Sequence[Tensor], *, rtol: float) -> Layout | None:
    """The layout of a tensor, from its value for all examples and for each of them.

    Args:
        together: the tensor when the model is run on n examples at once.
        alone: n tensors, from running it on each of them.
        rtol: rounding, relative to the largest value.

    Returns:
        The only layout that explains `together`; `UNBATCHED` where it is the same for all; None where there is no such
        layout or more than one.
    """
    one, size = alone[0], len(alone)
    if any(tensor.shape != one.shape for tensor in alone) or together.ndim != one.ndim:
        return None
    axes = [axis for axis in range(one.ndim) if together.shape[axis] != one.shape[axis]]
    if not axes:
        return (
            UNBATCHED
            if all(tensor is together or equal_but_for_rounding(together, tensor, rtol) for tensor in alone)
            else None
        )
    if len(axes) > 1 or together.shape[axes[0]] != size * one.shape[axes[0]]:
        return None
    orders: tuple[Order, ...] = ("alone",) if one.shape[axes[0]] == 1 else ("major", "minor")
    fitting = [
        layout
        for layout in (Layout(axes[0], order) for order in orders)
        if equal_each(layout.split(together, size), torch.stack(list(alone)), rtol)
    ]
    return fitting[0] if len(fitting) == 1 else None


def equal_each(a: Tensor, b: Tensor, rtol: float) -> bool:
    """Whether two tensors [B, ...] agree but for rounding, each example relative to its own largest value in the first.

    In a few calls for all examples, where the values are finite: of a small model these checks are most of a study.
    """
    if a.shape == b.shape and a.is_floating_point() and a.numel():
        errors, scales = (tensor.abs().flatten(1).amax(dim=1) for tensor in (a - b, a))
        if bool(((errors <= rtol * scales) & scales.isfinite()).all()):
            return True
    return a.shape == b.shape and all(equal_but_for_rounding(one, other, rtol) for one, other in zip(a, b))


def equal_but_for_rounding(a: Tensor, b: Tensor, rtol: float) -> bool:
    """Whether two tensors agree but for rounding, relative to the largest value of the first."""
    if a.shape != b.shape or not a.numel():
        return a.shape == b.shape
    if not a.is_floating_point():
        return torch.equal(a, b)
    low, high = torch.aminmax(a)
    if bool((high - low).isfinite()):
        return bool((a - b).abs_().max() <= rtol * torch.maximum(high, -low))
    scale = a.abs().nan_to_num(0.0, 0.0).max()
    return torch.allclose(a, b, rtol=0.0, atol=rtol * float(scale), equal_nan=True)
