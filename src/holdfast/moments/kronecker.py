"""Sums for the Kronecker factors of Linear and convolution layers, from inputs and the gradients at outputs.

With a [B, T, in] the inputs of a layer, an appended 1 for its bias, and g [B, T, out] the gradients of a score at its
outputs, T positions to an example (one for a Linear on [B, in]; output pixels of a convolution, whose inputs are the
patches under them), the block of weight and bias is approximated by A (x) G; `factors` has the rules for A and G.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.choices import check_count
from holdfast.curvature.blocks import block_width
from holdfast.errors import LossShapeError, NotFiniteError, UnsupportedLayerError
from holdfast.moments.calls import Call, tensors_in
from holdfast.moments.company import Company
from holdfast.moments.factors import SharingRule, add_partial_traces, partial_trace_size
from holdfast.moments.gradients import (
    Scores,
    gradient,
    mismatches,
    random_scores,
    refuses_grad,
    tolerance,
)
from holdfast.moments.layout import Layout, find_layout
from holdfast.moments.matrices import (
    Layer,
    gradients_by_example,
    gradients_of,
    inputs_by_example,
    inputs_of,
    is_wide,
    layers_of,
)
from holdfast.moments.places import Places
from holdfast.moments.recording import Use, patches_share, recorded
from holdfast.moments.study import few_examples
from holdfast.moments.sums import Alone
from holdfast.moments.symmetric import SymmetricSum
from holdfast.moments.watching import Watching
from holdfast.tensors import unwrap

_TRIALS = 4
"""Batches whose first examples are run together and alone because it is not known where the examples are in a layer."""


class KroneckerSums:
    """Sums over examples for the factors of every layer that can have them, batch after batch.

    A layer has factors if it is exactly an `nn.Linear`, a transformers `Conv1D` (a Linear with its weight transposed),
    or an `nn.Conv1d/2d/3d` with one group, and its weight and bias belong to it alone. Besides, each is checked on the
    first batch: it is called once, with as many positions for each example; and for a random linear function of the
    outputs the sum of g a^T is the ordinary gradient of weight and bias, so that a weight used by a function besides
    its layer is never silently wrong.

    Args:
        model: in evaluation mode (see `measuring`).
        where: the estimator, for messages.
        chunk_bytes: bound on the patches of a convolution, and on what "matched" writes for its products, at once.
        rule: of all layers; None: "matched" for those that have several positions to an example in the batch in which
            they are first met, "expand" for the others, for which it is K-FAC.
        max_size: of a factor; that of a longer side is made in diagonal blocks, as few and equal as can be. None: any.
        block_size: of these; None: `max_size`; 0: layers with a longer side have no factors.

    Attributes:
        layers: those that have factors; complete after the first `add`.
        declined: weight of a layer that failed the check -> why. Layers that are called twice are only left out.
        rules: weight -> its rule, once it was met.
        reads: weight -> that of the first layer that had the same input in every batch, itself where it is the first.
        inputs: weight -> sum over examples of what the rule's A is the mean of, [n, n] or its blocks [n, b]; none where
            nothing was added.
        outputs: weight -> likewise for G, [out, out]; of "matched" before the division by tr A.
        num_examples: examples seen.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        where: str,
        chunk_bytes: int,
        rule: SharingRule | None = "expand",
        max_size: int | None = None,
        block_size: int | None = None,
    ) -> None:
        check_count("chunk_bytes", chunk_bytes, where=where)
        self._model, self._where, self._chunk_bytes = model, where, chunk_bytes
        self._rule: SharingRule | None = rule
        self._proven, self._patches_share = False, 0.0
        self._places = Places(model)
        self._layouts: dict[str, Layout] = {}
        self._trials = _TRIALS
        self.rules: dict[str, SharingRule] = {}
        self.reads: dict[str, str] = {}
        self._max_size, self._block_size = max_size, block_size
        self.layers = [layer for layer in layers_of(model) if block_size != 0 or not is_wide(layer, max_size)]
        self.declined: dict[str, str] = {}
        self.inputs: dict[str, SymmetricSum] = {}
        self.outputs: dict[str, SymmetricSum] = {}
        self.num_examples = 0

    @property
    def room(self) -> int:
        """How many examples like those studied go together well; 0 where nothing is known."""
        return self._places.room(self._chunk_bytes)

    def at_once(self, call: Call) -> int:
        """How many examples of a batch to add at once.

        So many that the patches of all convolutions, which every row of scores needs, take no more memory than the
        inputs and outputs of their layers do for the whole batch, as a training pass holds them.

        Cost: that of the first `add`, which then has less to do: the layers are checked on this batch.
        """
        if not self._proven:
            self._prove(call)
        shares = math.ceil(self._patches_share)
        return max(1, -(-call.size // max(1, shares)))

    def add(self, call: Call, scores: Scores, *, alone: Alone | None = None) -> None:
        """Add a batch.

        Args:
            call: B examples.
            scores: outputs -> [K, B]; K scores an example.
            alone: the scores of single examples. Where the data decide how many positions an example has, the examples
                are run one at a time, as each has its own number of them; and so they are where a rule other than
                "expand" must know which positions are whose, and it cannot be seen. None: they are `scores`.

        Raises:
            LossShapeError: the scores are not [K, B].
            NotFiniteError: a score is NaN or infinite.

        Cost: one forward and K backward passes without weight gradients; for a layer of n inputs and m outputs half of
        the products of B T n^2 and K B T m^2 under "expand", of B n^2 and K B m^2 under "reduce", and K times those of
        `add_partial_traces` under "matched", which takes patches beyond `chunk_bytes` anew for each k. A rule other
        than "expand" costs four forward passes of up to three examples once, to find which positions are whose.
        """
        if not self._proven:
            self._prove(call)
        (uses, outputs), known = self._places.run(call, partial(self._forward, call))
        self._choose(uses, call.size)
        if known and self._are_laid_out(call, uses):
            self._add(call, scores, uses, outputs)
        else:
            shapes = [tensor.shape for tensor in tensors_in(outputs)]
            for b in range(call.size):
                one = call.examples(b, b + 1)
                self._add(one, scores if alone is None else alone(b, shapes), *self._forward(one))
        self.num_examples += call.size

    def _forward(self, call: Call, watching: Watching | None = None) -> tuple[dict[str, list[Use]], Any]:
        with recorded(self.layers, watching) as uses:
            outputs = call(unwrap(self._model))
        return uses, outputs

    def _add(self, call: Call, scores: Scores, uses: dict[str, list[Use]], outputs: Any) -> None:
        often = {name: len(calls) for name, calls in uses.items() if len(calls) > 1}
        if often:
            name, number = next(iter(often.items()))
            raise UnsupportedLayerError(
                f"{self._where}: the layer of {name!r} is called {number} times for a batch, and was called once for "
                "the first. Put a batch first for which it is called as often, or use fisher."
            )
        if hidden := [name for name, calls in uses.items() if any(use.hidden for use in calls)]:
            raise UnsupportedLayerError(
                f"{self._where}: the layer of {hidden[0]!r} is called inside a transform of torch.func, which hides "
                "its inputs, and was not for the first batch. Put a batch first for which it is, or use fisher."
            )
        self._tell_apart(uses)
        rows = scores(outputs)
        if rows.ndim != 2 or rows.shape[1] != call.size:
            raise LossShapeError(
                f"{self._where}: found scores of shape {list(rows.shape)} for {call.size} examples, expected "
                f"[K, {call.size}]: one column an example."
            )
        if not torch.isfinite(rows.detach()).all():
            raise NotFiniteError(
                f"{self._where}: the loss is not finite for an example of a batch. Look for NaN in the model's weights "
                "or the data, or an overflow under half precision."
            )
        for layer in self.layers:
            for use in uses[layer.weight]:
                self._add_inputs(layer, use, call.size)
        called = [(layer, use) for layer in self.layers for use in uses[layer.weight] if use.edge is not None]
        edges = [use.edge for _, use in called if use.edge is not None]
        kept = self._kept(called, call.size) if len(rows) > 1 else {}
        for k, row in enumerate(rows if rows.requires_grad and edges else ()):
            found = torch.autograd.grad(row.sum(), edges, allow_unused=True, retain_graph=k + 1 < len(rows))
            for (layer, use), g in zip(called, found):
                if g is not None and (g.is_nested or g.numel()):
                    inputs = kept.get(layer.weight) or self._inputs(layer, use, call.size)
                    self._add_gradients(layer, inputs, g, call.size)

    def _tell_apart(self, uses: dict[str, list[Use]]) -> None:
        """Of the layers that had the same input so far, those that have it now."""
        first: dict[Any, str] = {}
        for layer in self.layers:
            for use in uses[layer.weight]:
                alike = (self.reads.get(layer.weight), use.source, layer.matrix_shape[1], layer.bias is None)
                self.reads[layer.weight] = first.setdefault(alike, layer.weight)

    def _add_inputs(self, layer: Layer, use: Use, size: int) -> None:
        """Add what does not depend on the scores."""
        rule = self.rules[layer.weight]
        if rule == "expand":
            for a in inputs_of(layer, use.input, chunk_bytes=self._chunk_bytes):
                self._sum_in(self.inputs, layer.weight, a).add(a, a)
        elif rule == "reduce":
            for a in self._inputs(layer, use, size):
                mean = a.mean(dim=1)
                self._sum_in(self.inputs, layer.weight, mean).add(mean, mean)

    def _kept(self, called: list[tuple[Layer, Use]], size: int) -> dict[str, list[Tensor]]:
        """Inputs that every row of scores needs, of as many layers as go into `chunk_bytes`."""
        found, room = {}, self._chunk_bytes
        for layer, use in called:
            num_bytes = use.num_rows * layer.matrix_shape[1] * 8
            if self.rules[layer.weight] == "matched" and num_bytes <= room:
                found[layer.weight] = list(self._inputs(layer, use, size))
                room -= num_bytes
        return found

    def _add_gradients(self, layer: Layer, inputs: Iterable[Tensor], g: Tensor, size: int) -> None:
        """Add what one row of scores brings; `inputs` as `inputs_by_example` gives them."""
        rule = self.rules[layer.weight]
        if rule == "expand":
            g = gradients_of(layer, g)
            self._sum_in(self.outputs, layer.weight, g).add(g, g, factor=size / len(g))
            return
        g = gradients_by_example(layer, g, self._layouts.get(layer.weight), size=size)
        if rule == "reduce":
            whole = g.sum(dim=1)
            self._sum_in(self.outputs, layer.weight, whole).add(whole, whole)
            return
        done = 0
        for a in inputs:
            behind, done = g[done : done + len(a)], done + len(a)
            sums = (self._sum_in(self.inputs, layer.weight, a), self._sum_in(self.outputs, layer.weight, g))
            chunk = max(1, self._chunk_bytes // (partial_trace_size(*sums, a, behind) * a.element_size()))
            with torch.autocast(g.device.type, enabled=False):
                for some, theirs in zip(a.split(chunk), behind.split(chunk)):
                    add_partial_traces(*sums, some, theirs)

    def _inputs(self, layer: Layer, use: Use, size: int) -> Iterator[Tensor]:
        layout = self._layouts.get(layer.weight)
        return inputs_by_example(layer, use.input, layout, size=size, chunk_bytes=self._chunk_bytes)

    def _choose(self, uses: dict[str, list[Use]], size: int) -> None:
        """The rule of layers that are met for the first time, by all examples of the batch."""
        for layer in self.layers:
            for use in uses[layer.weight]:
                by_positions: SharingRule = "matched" if use.num_rows > size else "expand"
                rule = by_positions if self._rule is None else self._rule
                self.rules.setdefault(layer.weight, rule)

    def _are_laid_out(self, call: Call, uses: dict[str, list[Use]]) -> bool:
        """Whether it is known which positions are whose, where it matters."""
        met = {w: calls[0].input for w, calls in uses.items() if calls and self.rules.get(w, "expand") != "expand"}
        if call.size == 1 or not met:
            return True
        if met.keys() - self._layouts.keys() and self._trials:
            self._trials -= 1
            self._find_layouts(few_examples(call))
        return all(w in self._layouts and self._layouts[w].fits(x, call.size) for w, x in met.items())

    def _find_layouts(self, few: Call) -> None:
        seen = []
        for some in (few, *(few.examples(b, b + 1) for b in range(few.size))):
            with recorded(self.layers) as uses:
                some(unwrap(self._model))
            seen.append(uses)
        for layer in self.layers:
            calls = [uses[layer.weight] for uses in seen]
            if all(len(each) == 1 and not each[0].hidden for each in calls):
                together, *alone = (each[0].input for each in calls)
                layout = find_layout(together, alone, rtol=tolerance(self._model))
                if layout is not None and layout.axis in range(together.ndim - 1):
                    self._layouts[layer.weight] = layout

    def _prove(self, call: Call) -> None:
        """Leave only the layers that prove themselves on this batch."""
        one, two = call.examples(0, 1), call.examples(0, 1).picked([0, 0])
        with recorded(self.layers) as first:
            one(unwrap(self._model))
        with recorded(self.layers) as second:
            two(unwrap(self._model))
        for layer in list(self.layers):
            shapes, doubled = ([u.input.numel() for u in uses[layer.weight]] for uses in (first, second))
            if len(shapes) > 1:
                self.layers.remove(layer)
            elif any(use.hidden for use in first[layer.weight]):
                self._decline(layer, "it is called inside a transform of torch.func, which hides its inputs")
            elif doubled != [2 * size for size in shapes]:
                self._decline(layer, "its inputs do not grow with the number of examples")
        self._patches_share = patches_share(self.layers, first)
        scores = partial(random_scores, call.size)
        expected = gradient(self._model, call, scores)
        own = {name for layer in self.layers for name in layer.names(layer.weight)}
        try:
            none = {name: value.new_zeros(()).expand_as(value) for name, value in expected.items() if name in own}
            found = {**expected, **none, **self._layer_gradients(call, scores)}
        except RuntimeError as error:
            if not refuses_grad(error):
                raise
            for layer in list(self.layers):
                self._decline(layer, "the model has reentrant checkpoints; pass use_reentrant=False to them")
            found = expected
        wrong = mismatches(found, expected, rtol=tolerance(self._model), company=Company(self._model))
        for layer in list(self.layers):
            if missed := [name for name in layer.names(layer.weight) if name in wrong]:
                self._decline(layer, f"the sum over its calls is not the gradient of {missed[0]!r}")
        self._proven = True

    def _layer_gradients(self, call: Call, scores: Scores) -> dict[str, Tensor]:
        """Name -> sum of g a^T, what a layer's calls say the gradient of weight and bias is; none where it is zero."""
        with recorded(self.layers) as uses:
            rows = scores(call(unwrap(self._model)))
        found: dict[str, Tensor] = {}
        for layer in self.layers:
            total = None
            for use in uses[layer.weight]:
                if use.edge is not None and rows.requires_grad:
                    (g,) = torch.autograd.grad(rows.sum(), [use.edge], allow_unused=True, retain_graph=True)
                    if g is not None:
                        total = self._product(layer, use, gradients_of(layer, g))
            if total is not None:
                found |= zip(layer.names(layer.weight), layer.split(total))
        return found

    def _product(self, layer: Layer, use: Use, g: Tensor) -> Tensor:
        """Sum over rows of g a^T, [out, in (+1)], in float32 or wider also under autocast."""
        total, done = g.new_zeros(layer.matrix_shape), 0
        with torch.autocast(g.device.type, enabled=False):
            for a in inputs_of(layer, use.input, chunk_bytes=self._chunk_bytes):
                total.addmm_(g[done : done + len(a)].T, a)
                done += len(a)
        return total

    def _decline(self, layer: Layer, reason: str) -> None:
        self.layers.remove(layer)
        self.declined[layer.weight] = reason

    def width(self, size: int) -> int:
        """Of the blocks of a factor with a side of this size."""
        return block_width(size, self._max_size, self._block_size)

    def _sum_in(self, sums: dict[str, SymmetricSum], name: str, rows: Tensor) -> SymmetricSum:
        """The sum of this name, of outer products of such rows; an empty one where there is none yet."""
        if name not in sums:
            size = rows.shape[-1]
            sums[name] = SymmetricSum(size, like=rows, width=self.width(size))
        return sums[name]
