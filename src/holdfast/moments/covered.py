"""A recognised operation in the graph: its backward pass brings the gradients of examples in place of the weight's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from holdfast.moments.intercept import Key, Tracked, names_in
from holdfast.moments.layout import RAGGED, UNBATCHED, Layout
from holdfast.moments.operations import Affine, Embedding, Operation
from holdfast.moments.ragged import row_axes
from holdfast.moments.watching import Choices, Watching

Signature = tuple[tuple[Key, Layout | None], ...]
"""All recognised uses of parameters of a forward pass, in order, with the layout of those that were covered."""


@dataclass
class Passes:
    """Whose backward passes come by the covers of a forward pass.

    Attributes:
        ours: whether the one that runs is the one whose gradients are collected.
        inner: the uses that another came by: the forward pass differentiates through them.
    """

    ours: bool = False
    inner: set[Key] = field(default_factory=set)

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Inside, the backward pass is ours."""
        self.ours = True
        try:
            yield
        finally:
            self.ours = False


@dataclass(eq=False)
class CoveredUse:
    """One covered operation.

    Attributes:
        key: what it shares with the same use in another batch.
        operation: what it is.
        spots: for each weight what is known of it; None where it is frozen or missing.
        layout: where the examples are; `RAGGED` where that is no layout.
        moved: whether the data may have moved the examples to other places than the layout says.
        passes: whose backward pass it is that comes by.
        receive: called as receive(use, g, x, weights) each time a backward pass of ours comes by. Of what it does not
            need, x where the first weight is frozen and weights always, it may read shape, dtype and device alone.
        received: how often it did.
    """

    key: Key
    operation: Operation
    spots: Sequence[Tracked | None]
    layout: Layout
    moved: bool
    passes: Passes
    receive: Receive
    received: int = 0


Receive = Callable[[CoveredUse, Tensor, Tensor, Sequence[Tensor | None]], None]


class Covered(torch.autograd.Function):
    """The operation, with the ordinary gradient for its input and none for its weights.

    Like torch it saves no tensor that no gradient needs, so that the model may change it in place: of all operations
    the gradients of the first weight need the input, those of the input the first weight, and nothing needs the second.
    """

    @staticmethod
    def forward(ctx: Any, use: CoveredUse, x: Tensor, *weights: Tensor | None) -> Tensor:
        """The operation's result."""
        ctx.use, ctx.weights = use, weights
        if use.spots[0] is None:
            ctx.like = x.new_zeros(()).expand(x.shape)
        ctx.save_for_backward(None if use.spots[0] is None else x, weights[0] if ctx.needs_input_grad[1] else None)
        return use.operation.forward(x, *weights)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """Hand over the gradient at the output, and pass on that at the input."""
        (g,) = gradients
        use, (x, first) = ctx.use, ctx.saved_tensors  # with checkpoints this runs a part of the forward pass
        x, weights = ctx.like if x is None else x, (ctx.weights[0] if first is None else first, *ctx.weights[1:])
        device = g.device.type
        precise = torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
        with torch._C.DisableTorchFunction(), precise:
            if use.passes.ours:
                use.receive(use, g, x, weights)
                use.received += 1
            else:
                use.passes.inner.add(use.key)
            below = use.operation.input_gradient(g, x, *weights) if ctx.needs_input_grad[1] else None
        return None, below, *[None] * len(weights)


class Covering(Watching):
    """Covers every recognised use of a parameter whose layout is known; the others run as they are.

    Args:
        parameters: those that are tracked.
        layouts: what is known.
        choices: likewise, as `Watching` has it.
        size: examples in the batch.
        receive: where the gradients of covered uses go.
        hidden: likewise.
        left: names of parameters of which no use is covered.

    Attributes:
        signature: what was met so far, also where no graph is built: a reentrant checkpoint covers it later.
        covered: the uses that were covered.
        passes: whose backward passes come by them.
    """

    def __init__(
        self,
        parameters: Mapping[int, Tracked],
        layouts: Mapping[Key, Layout | None],
        choices: Set[Choices],
        size: int,
        receive: Receive,
        *,
        hidden: bool = False,
        left: Set[str] = frozenset(),
    ) -> None:
        super().__init__(parameters, layouts, choices, size, hidden=hidden)
        self._left = left
        self._receive = receive
        self.signature: list[tuple[Key, Layout | None]] = []
        self.covered: list[CoveredUse] = []
        self.passes = Passes()
        self._orders: dict[Key, int] = {}

    def in_order(self, key: Key) -> Key:
        """A key with the orders of axes before it; what a checkpoint computes again has those of the first time."""
        if self.passes.ours:
            return (*key, self._orders.get(key, self.orders))
        self._orders[key] = self.orders
        return super().in_order(key)

    def use(self, operation: Operation, x: Tensor, *weights: Tensor | None) -> Tensor:
        """The result, covered if that can be."""
        spots = [
            self.tracked.get(id(weight)) if weight is not None and weight.requires_grad else None for weight in weights
        ]
        key = self.key(operation, x, *weights)
        layout = self.layouts.get(key, RAGGED)
        if layout == UNBATCHED:
            self.signature.append((key, layout))
            out = operation.forward(x, *weights)
            if weights[0] is not None:
                self.look_up(operation, out, x, weights[0])
            return out
        if key not in self.layouts or (layout is not None and not self._fits(operation, layout, x, weights)):
            self.missing.add(key)
            layout = RAGGED
        if any(weight is not None and spot is None and weight.requires_grad for weight, spot in zip(weights, spots)):
            layout = None  # a weight that was computed from parameters: its gradient must flow on
        if self._left and not self._left.isdisjoint(names_in(key)):
            layout = None
        if layout == RAGGED and not self._has_rows(operation, x, weights):
            layout = None
        self.signature.append((key, layout))
        if layout is None or not torch.is_grad_enabled():
            return operation.forward(x, *weights)
        use = CoveredUse(key, operation, spots, layout, self.moved or layout == RAGGED, self.passes, self._receive)
        self.covered.append(use)
        return Covered.apply(use, x, *weights)  # pyright: ignore

    def _fits(self, operation: Operation, layout: Layout, x: Tensor, weights: Sequence[Tensor | None]) -> bool:
        if layout == RAGGED:
            return True
        if not isinstance(operation, Affine):
            return layout.fits(x, self.size)
        shapes = [(*weight.shape, *[1] * operation.trailing) for weight in weights if weight is not None]
        shape = torch.broadcast_shapes(x.shape, *shapes)
        places = [layout.axis - len(shape) + len(own) for own in shapes]
        apart = all(place < 0 or own[place] == 1 for place, own in zip(places, shapes))
        return apart and layout.fits(torch.empty(shape, dtype=torch.float32, device="meta"), self.size)

    @staticmethod
    def _has_rows(operation: Operation, x: Tensor, weights: Sequence[Tensor | None]) -> bool:
        ndim = x.ndim + isinstance(operation, Embedding)
        if isinstance(operation, Affine):
            ndim = max(ndim, *(weight.ndim + operation.trailing for weight in weights if weight is not None))
        return row_axes(operation, ndim, weights) > 0
