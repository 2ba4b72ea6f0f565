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
from holdfast.curvature.kronecker import KroneckerFactors
from holdfast.curvature.owners import cost_of, owners
from holdfast.errors import LossShapeError, NotFiniteError, UnsupportedLayerError
from holdfast.moments.calls import Call, tensors_in
from holdfast.moments.company import Company
from holdfast.moments.factor_totals import FactorTotals, Side
from holdfast.moments.factors import SharingRule, add_partial_traces, partial_trace_size
from holdfast.moments.gradients import Scores, accumulator_dtype, tolerance
from holdfast.moments.layer_check import check_layers
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
from holdfast.moments.reading import agreed, told_apart
from holdfast.moments.recording import Use, recorded
from holdfast.moments.study import few_examples
from holdfast.moments.sums import Alone
from holdfast.moments.symmetric import SymmetricSum
from holdfast.moments.watching import Watching
from holdfast.tensors import local, trainable_parameters, unwrap

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

    A model that `fully_shard` spread over processes is measured by all of them together, each on its share of the data.
    What one decides all decide, and the sums of a layer belong to one of them.

    Attributes:
        company: the processes.
        layers: those that have factors; complete after the first `add`.
        declined: weight of a layer that failed the check -> why. Layers that are called twice are only left out.
        owners: weight -> the process that has its sums.
        rules: weight -> its rule, once it was met.
        reads: weight -> that of the first layer that had the same input in every batch, itself where it is the first.
        totals: `inputs` and `outputs`, weight -> sum over examples of what the rule's A is the mean of, [n, n] or its
            blocks [n, b], and likewise for G, [out, out], of "matched" before the division by tr A; none where nothing
            was added.
        num_examples: examples seen; of all processes after `finish`.
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
        self._parameters = trainable_parameters(model)
        self._rule: SharingRule | None = rule
        self._proven, self._patches_share = False, 0.0
        self.company = Company(model)
        self._places = Places(model, where=None if self.company.is_alone else where)
        self._layouts: dict[str, Layout] = {}
        self._trials = _TRIALS
        self.rules: dict[str, SharingRule] = {}
        self.reads: dict[str, str] = {}
        self._max_size, self._block_size = max_size, block_size
        self.layers = [layer for layer in layers_of(model) if block_size != 0 or not is_wide(layer, max_size)]
        self.declined: dict[str, str] = {}
        self.totals = FactorTotals(self.company, limit=chunk_bytes)
        self.owners: dict[str, int] = {}
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

    def add(self, call: Call, scores: Scores, *, alone: Alone | None = None, counts: bool = True) -> None:
        """Add a batch.

        Args:
            call: B examples.
            scores: outputs -> [K, B]; K scores an example.
            alone: the scores of single examples. Where the data decide how many positions an example has, the examples
                are run one at a time, as each has its own number of them; and so they are where a rule other than
                "expand" must know which positions are whose, and it cannot be seen. None: they are `scores`.
            counts: False for a batch that is there to keep others company, and adds nothing.

        Raises:
            LossShapeError: the scores are not [K, B].
            NotFiniteError: a score is NaN or infinite.
            StateError: another process ended in an error.

        Cost: one forward and K backward passes without weight gradients; for a layer of n inputs and m outputs half of
        the products of B T n^2 and K B T m^2 under "expand", of B n^2 and K B m^2 under "reduce", and K times those of
        `add_partial_traces` under "matched", which takes patches beyond `chunk_bytes` anew for each k. A rule other
        than "expand" costs four forward passes of up to three examples once, to find which positions are whose.
        """
        company = self.company
        if not self._proven:
            self._prove(call)
        (uses, outputs), known = self._places.run(call, partial(self._forward, call))
        self._choose(uses, call.size)
        if known and self._are_laid_out(call, uses):
            self._add(call, scores, uses, outputs, counts=counts)
        else:
            shapes = [tensor.shape for tensor in tensors_in(outputs)]
            company.rest()
            for each in range(company.most(call.size)):
                b = min(each, call.size - 1)
                one, own = call.examples(b, b + 1), scores if alone is None else alone(b, shapes)
                self._add(one, own, *self._forward(one), counts=counts and each == b)
        self.num_examples += call.size if counts else 0

    def finish(self) -> None:
        """End the sums: each is with its owner then, and what is told of examples and inputs is of all processes."""
        self.totals.give()
        self.num_examples = self.company.total(self.num_examples)
        if not self.company.is_alone:
            self.reads = agreed(self.layers, self.reads, self.company)

    def _forward(self, call: Call, watching: Watching | None = None) -> tuple[dict[str, list[Use]], Any]:
        with recorded(self.layers, watching) as uses:
            outputs = call(unwrap(self._model))
        return uses, outputs

    def _add(self, call: Call, scores: Scores, uses: dict[str, list[Use]], outputs: Any, *, counts: bool) -> None:
        company = self.company
        with company.failing_together():
            self._check_uses(uses)
            rows = self._rows(scores, outputs, call.size)
            called = [(layer, use) for layer in self.layers for use in uses[layer.weight] if use.edge is not None]
            edges = [use.edge for _, use in called if use.edge is not None]
        told_apart(self.layers, uses, self.reads)
        for layer in self.layers:
            for use in uses[layer.weight] if counts else ():
                self._add_inputs(layer, use, call.size)
            if self.rules.get(layer.weight) != "matched":
                self._take_part("inputs", layer)
        kept = self._kept(called, call.size) if len(rows) > 1 and counts else {}
        behind = {layer.weight: use for layer, use in called}
        num_rows = company.most(len(rows)) if company.any(rows.requires_grad and bool(edges)) else 0
        each = rows.unbind()
        for k in range(num_rows):
            row, more = each[min(k, len(each) - 1)], k + 1 < num_rows
            at_outputs = dict(zip(behind, torch.autograd.grad(row.sum(), edges, allow_unused=True, retain_graph=more)))
            for layer in self.layers:
                g = at_outputs.pop(layer.weight, None)
                if counts and k < len(each) and g is not None and (g.is_nested or g.numel()):
                    inputs = kept.get(layer.weight) or self._inputs(layer, behind[layer.weight], call.size)
                    self._add_gradients(layer, inputs, g, call.size)
                self._take_part("outputs", layer)
                if self.rules.get(layer.weight) == "matched":
                    self._take_part("inputs", layer)
        company.rest()

    def _check_uses(self, uses: dict[str, list[Use]]) -> None:
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

    def _rows(self, scores: Scores, outputs: Any, size: int) -> Tensor:
        rows = scores(outputs)
        if rows.ndim != 2 or rows.shape[1] != size:
            raise LossShapeError(
                f"{self._where}: found scores of shape {list(rows.shape)} for {size} examples, expected "
                f"[K, {size}]: one column an example."
            )
        if not torch.isfinite(rows.detach()).all():
            raise NotFiniteError(
                f"{self._where}: the loss is not finite for an example of a batch. Look for NaN in the model's weights "
                "or the data, or an overflow under half precision."
            )
        return rows

    def _add_inputs(self, layer: Layer, use: Use, size: int) -> None:
        """Add what does not depend on the scores."""
        rule = self.rules[layer.weight]
        if rule == "expand":
            for a in inputs_of(layer, use.input, chunk_bytes=self._chunk_bytes):
                self._sum_in("inputs", layer.weight, a).add(a, a)
        elif rule == "reduce":
            for a in self._inputs(layer, use, size):
                mean = a.mean(dim=1)
                self._sum_in("inputs", layer.weight, mean).add(mean, mean)

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
            self._sum_in("outputs", layer.weight, g).add(g, g, factor=size / len(g))
            return
        g = gradients_by_example(layer, g, self._layouts.get(layer.weight), size=size)
        if rule == "reduce":
            whole = g.sum(dim=1)
            self._sum_in("outputs", layer.weight, whole).add(whole, whole)
            return
        done = 0
        for a in inputs:
            behind, done = g[done : done + len(a)], done + len(a)
            sums = (self._sum_in("inputs", layer.weight, a), self._sum_in("outputs", layer.weight, g))
            chunk = max(1, self._chunk_bytes // (partial_trace_size(*sums, a, behind) * a.element_size()))
            with torch.autocast(g.device.type, enabled=False):
                for some, theirs in zip(a.split(chunk), behind.split(chunk)):
                    add_partial_traces(*sums, some, theirs)

    def _inputs(self, layer: Layer, use: Use, size: int) -> Iterator[Tensor]:
        layout = self._layouts.get(layer.weight)
        return inputs_by_example(layer, use.input, layout, size=size, chunk_bytes=self._chunk_bytes)

    def _choose(self, uses: dict[str, list[Use]], size: int) -> None:
        """The rule of layers that are met for the first time, by all examples of the batch."""
        new = {layer.weight: uses[layer.weight] for layer in self.layers if layer.weight not in self.rules}
        if not new:
            return
        met = self.company.union(weight for weight, calls in new.items() if calls)
        long = self.company.union(w for w, calls in new.items() if any(use.num_rows > size for use in calls))
        for weight in new:
            if weight in met:
                by_positions: SharingRule = "matched" if weight in long else "expand"
                self.rules[weight] = self._rule or by_positions

    def _are_laid_out(self, call: Call, uses: dict[str, list[Use]]) -> bool:
        """Whether it is known which positions are whose, where it matters."""
        company = self.company
        met = {w: calls[0].input for w, calls in uses.items() if calls and self.rules.get(w, "expand") != "expand"}
        if not company.any(call.size > 1 and bool(met)):
            return True
        if company.any(bool(met.keys() - self._layouts.keys())) and self._trials:
            self._trials -= 1
            self._find_layouts(few_examples(call, company))
        known = all(w in self._layouts and self._layouts[w].fits(x, call.size) for w, x in met.items())
        return not company.any(call.size > 1 and not known)

    def _find_layouts(self, few: Call) -> None:
        seen = []
        for some in (few, *(few.examples(b, b + 1) for b in range(few.size))):
            with recorded(self.layers) as uses:
                some(unwrap(self._model))
            seen.append(uses)
            self.company.rest()
        for layer in self.layers:
            calls = [uses[layer.weight] for uses in seen]
            if all(len(each) == 1 and not each[0].hidden for each in calls):
                together, *alone = (each[0].input for each in calls)
                layout = find_layout(together, alone, rtol=tolerance(self._model, self.company))
                if layout is not None and layout.axis in range(together.ndim - 1):
                    self._layouts[layer.weight] = layout

    def _prove(self, call: Call) -> None:
        """Leave only the layers that prove themselves on this batch, and say whose they are."""
        given = {"chunk_bytes": self._chunk_bytes, "company": self.company}
        found = check_layers(self._model, self.layers, call, **given)
        self.layers, self._patches_share = found.layers, found.patches_share
        self.declined |= found.declined
        self.owners = owners({layer.weight: cost_of(self.form(layer)) for layer in self.layers}, self.company.size)
        self.totals.belong(self.owners)
        self._proven = True

    def zeros(self, weight: str, size: int) -> Tensor:
        """A factor with a side of this size to which nothing was added."""
        return local(self._parameters[weight]).new_zeros(size, self.width(size))

    def form(self, layer: Layer) -> KroneckerFactors:
        """The factors of a layer without their numbers."""
        inputs, outputs = (
            torch.empty(size, self.width(size), dtype=torch.float32, device="meta")
            for size in reversed(layer.matrix_shape)
        )
        return KroneckerFactors(inputs, outputs, **layer.form)

    def width(self, size: int) -> int:
        """Of the blocks of a factor with a side of this size."""
        return block_width(size, self._max_size, self._block_size)

    def _sum_in(self, side: Side, name: str, rows: Tensor) -> SymmetricSum:
        """The sum of this name, of outer products of such rows; an empty one where there is none yet."""
        sums = self.totals.of(side)
        if name not in sums:
            size = rows.shape[-1]
            sums[name] = SymmetricSum(size, like=rows, width=self.width(size))
        return sums[name]

    def _take_part(self, side: Side, layer: Layer) -> None:
        """Say that what this process has was added to a sum of a layer."""
        if not self.company.is_alone:
            parameter = self._parameters[layer.weight]
            out, n = layer.matrix_shape
            size = n if side == "inputs" else out
            like = local(parameter).new_empty(0, dtype=accumulator_dtype(parameter))
            self.totals.take_part(side, layer.weight, size, like=like, width=self.width(size))
