"""The engine: sums over examples of phi(gradient) in one forward and K backward passes, weight gradients left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence, Set
from contextlib import nullcontext
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from holdfast.errors import StateError
from holdfast.moments.attribution import Attribution
from holdfast.moments.calls import Call, tensors_in
from holdfast.moments.collector import Collector, Proof
from holdfast.moments.company import Company
from holdfast.moments.coupling import check_in_company, check_independent, coupled, floats_in
from holdfast.moments.covered import CoveredUse, Covering, Signature
from holdfast.moments.gradients import (
    LengthsVaryError,
    OutputGradients,
    Phi,
    RouteDeclinedError,
    Scores,
    beyond_rounding,
    gradient,
    pulled,
    random_scores,
    refuses_grad,
    tolerance,
)
from holdfast.moments.graph import is_reentrant, nodes_of
from holdfast.moments.intercept import Key, names_in, tracked_parameters
from holdfast.moments.layout import RAGGED, UNBATCHED, Layout
from holdfast.moments.shared import overlap
from holdfast.moments.study import few_examples, study
from holdfast.moments.totals import Totals
from holdfast.moments.watching import Choices, beginnings
from holdfast.tensors import local, trainable_parameters, unwrap

_ROW_BYTES = 2**24
"""Gradients at the outputs, of as many rows of scores as go into this, are taken at once."""


_TRIALS = 4
"""Batches whose first examples are studied because the batch has something that an earlier one had not."""


class Engine:
    """Measures every parameter that is used by recognised operations alone, and says which are not.

    On the first batch, and whenever a forward pass uses parameters in another way than before, a few examples are run
    together and alone, which shows where the examples are in each use; then for a random linear function of the
    outputs, each example with weights of its own, the signed sum of the gradients must be the ordinary gradient. A
    parameter for which it is not is missed, and so is one that an ordinary gradient reaches in spite of the covers.
    Uses through which the forward pass itself runs backward passes, as for the forces of an energy, are not covered.

    Args:
        model: in evaluation mode.
        phi: what is summed.
        chunk_bytes: bound on per-example gradients that must be written out.
        where: the estimator, for messages.
        by_token: whether every position of a use counts as an example of its own, where that makes sense.

    Attributes:
        bytes_per_example: the most that one took in a study: inputs, and what every function made of them; 0 before the
            first.
        selects: whether a forward pass selected rows by their values, for which `torch.func` has no rule.
    """

    def __init__(self, model: nn.Module, *, phi: Phi, chunk_bytes: int, where: str, by_token: bool = False) -> None:
        self._model, self._chunk_bytes, self._where = model, chunk_bytes, where
        self._phi: Phi = phi
        self._by_token = by_token
        self._company = Company(model)
        parameters = trainable_parameters(model)
        self._names, self._parameters = list(parameters), list(parameters.values())
        self._tracked = tracked_parameters(model)
        self._layouts: dict[Key, Layout | None] = {}
        self._differentiated: set[Key] = set()
        self._left: frozenset[str] = frozenset()  # parameters of which no use is covered, for one cannot be
        self._choices: set[Choices] = set()
        self._proofs: dict[Signature, Proof] = {}
        self._trials: Counter[Key] = Counter()
        self._shapes: dict[int, torch.Size] = {}
        self._hidden = False  # functions that cannot be seen arrange rows
        self._saw_one = False
        self._varies = False  # which parameters are used depends on the data
        self.bytes_per_example = 0
        self.selects = False
        # torch.autograd.grad, unless the model has reentrant checkpoints or is sharded
        self._by_grad = self._company.is_alone

    def add(self, call: Call, scores: Scores, totals: Totals) -> tuple[OutputGradients, frozenset[str]]:
        """Add a batch to the totals of all parameters but those that are missed.

        Args:
            call: B examples.
            scores: outputs -> [K, B]; called once.
            totals: what it adds to.

        Returns:
            The gradients at the outputs, and the names of the missed parameters.

        Raises:
            RouteDeclinedError: the model cannot be run this way; nothing was added.
            LengthsVaryError: outputs are as long as the longest example; nothing was added.
            StateError: a parameter that was measured so far is used in a way that cannot be seen.
        """
        company = self._company
        collector = Collector(
            totals,
            phi=self._phi,
            size=call.size,
            chunk_bytes=self._chunk_bytes,
            tokens=self._by_token,
            finished=totals.give,
        )
        # two copies of one example tell little
        if company.any(not self._proofs or (self._saw_one and call.size > 1)):
            self._layouts, self._proofs, self._saw_one = {}, {}, call.size == 1
            self._prove(call)
        covering, outputs = self._forward(call, collector)
        if company.any(tuple(covering.signature) not in self._proofs or bool(covering.missing)):
            if company.any(bool(covering.missing) or not self._varies):
                self._prove(call)
                covering, outputs = self._forward(call, collector)
                if covering.missing and company.is_alone:  # this batch does what its first examples do not
                    check_in_company(self._model, call, outputs, where=self._where)
                self._give_up(covering.missing)
            if company.any(tuple(covering.signature) not in self._proofs):
                self._varies = True
                self._compare(call)
            if company.any(tuple(covering.signature) not in self._proofs):
                raise RouteDeclinedError("how it uses its parameters changes from one call to the next")
        proof = self._proofs[tuple(covering.signature)]
        with company.failing_together():
            at_outputs = OutputGradients(outputs, call.size, scores)
        collector.num_rows = at_outputs.num_rows
        found = tensors_in(outputs)
        ends = [(end, found[place]) for end, place in enumerate(at_outputs.used) if found[place].requires_grad]
        if self._must_be_alone(call, covering, outputs, at_outputs.used):
            raise LengthsVaryError([tensor.shape for tensor in tensors_in(outputs)])
        failed = self._attribute(covering, collector, at_outputs, ends, proof)
        proof = collector.proof = replace(proof, missed=proof.missed | failed)
        reached: set[str] = set()
        for k, row in enumerate(_rows(at_outputs, keep=bool(proof.missed)) if ends else ()):
            gradients, last = [row[end] for end, _ in ends], k + 1 == at_outputs.num_rows
            tensors = [tensor for _, tensor in ends]
            reached |= self._pull(covering, tensors, gradients, runs_again=proof.runs_again, retain=not last).keys()
            collector.end_row()
            totals.give_rest()
        collector.end()
        if not at_outputs.num_rows:  # one class alone, of which the answer is certain: there was no backward pass
            company.rest()
        elif not all(use.received for use in covering.covered):
            _check_received([tensor for _, tensor in ends])
        if reached - proof.missed:
            names = ", ".join(map(repr, sorted(reached - proof.missed)))
            raise StateError(
                f"{self._where}: {names} took part in a batch in a way that no earlier batch showed and that cannot be "
                "seen from outside, such as an autograd.Function of your own that is called for some batches only. "
                "Let the first batch show it."
            )
        return at_outputs, proof.missed

    def _forward(self, call: Call, collector: Collector) -> tuple[Covering, Any]:
        """A forward pass with covers, made anew without those through which it turns out to differentiate itself."""
        while True:
            known, receive = (self._tracked, self._layouts, self._choices), collector.receive
            hidden = self._hidden or call.has_numbers
            covering = Covering(*known, call.size, receive, hidden=hidden, left=self._left)
            try:
                with self._company.following(covering, collector.leave), covering:
                    outputs = call(unwrap(self._model))
            except Exception:  # of the model, perhaps because a cover had no gradient for its weight
                if not covering.passes.inner:
                    raise
                outputs = None
            self.selects = self.selects or covering.selects
            if not covering.passes.inner:
                return covering, outputs
            self._differentiated |= covering.passes.inner
            self._layouts |= dict.fromkeys(self._differentiated)

    def _prove(self, call: Call) -> None:
        """Find the layouts of all uses, and compare what comes out with the ordinary gradient.

        On the way the same forward passes show whether the outputs for an example depend on the others, or on chance;
        where they seem to, `check_independent` says what it is.

        Cost: two forward passes of a few examples; of two examples, two forward and backward passes.
        """
        company, rtol = self._company, tolerance(self._model, self._company)
        few = few_examples(call, company)
        try:
            seen = study(self._model, few, tracked=self._tracked, rtol=rtol, company=company)
        except ValueError:  # what batch norm says to one example alone
            check_independent(self._model, call, where=self._where)
            raise
        for key, layout in seen.layouts.items():  # what was ragged once may look like a layout by chance
            if self._layouts.get(key, layout) not in (RAGGED, None):
                self._layouts[key] = layout
            self._layouts.setdefault(key, layout)
        self._layouts |= dict.fromkeys(self._differentiated)
        if not company.is_alone:  # what one leaves to `fully_shard` all do
            left = (names_in(key) for key, layout in self._layouts.items() if layout in (None, UNBATCHED))
            self._left |= company.union(chain.from_iterable(left))
        self._choices |= seen.choices
        self._hidden = self._hidden or seen.hidden
        self.bytes_per_example = max(self.bytes_per_example, seen.bytes_per_example)
        again = self._compare(few.examples(0, 2))
        if company.any(not seen.independent or not seen.has(again, rtol=rtol)):
            if not company.is_alone:
                raise coupled(self._model, where=self._where)
            check_independent(self._model, call, where=self._where)

    def _must_be_alone(self, call: Call, covering: Covering, outputs: Any, used: Sequence[int]) -> bool:
        """Whether the examples go one at a time, for their outputs are as long as the longest.

        In company also where the data have moved them, and it would take more passes to find out where they are.
        """
        if self._company.is_alone:
            return covering.resized and call.size > 1 and self._vary(call, outputs, used)
        moved = any(use.moved for use in covering.covered)
        changing = covering.resized and self._changing(outputs, call, used)
        return self._company.any(call.size > 1 and (moved or bool(changing)))

    def _changing(self, outputs: Any, call: Call, used: Sequence[int]) -> list[int]:
        """The places of the outputs whose shape may be decided by the longest example."""
        found = tensors_in(outputs)
        inputs = [leaf for leaf in tree_leaves((call.args, call.kwargs)) if isinstance(leaf, Tensor)]
        lengths = {length for leaf in inputs for length in leaf.shape[1:2]}
        changing = []
        for place in used:
            shape = found[place].shape[1:]
            as_before = self._shapes.setdefault(place, shape) == shape
            if len(shape) > 1 or (len(shape) == 1 and (not as_before or shape[0] in lengths)):
                changing.append(place)
        return changing

    def _vary(self, call: Call, outputs: Any, used: Sequence[int]) -> bool:
        """Whether an output of an example alone has another shape than in the batch, where that can be at all."""
        found, changing = tensors_in(outputs), self._changing(outputs, call, used)
        for b in range(call.size if changing else 0):
            one = tensors_in(call.examples(b, b + 1)(unwrap(self._model)))
            if any(one[place].shape[1:] != found[place].shape[1:] for place in changing):
                return True
        return False

    def _give_up(self, missing: Set[Key]) -> None:
        """Of a use that a few examples do not show nothing is known; of an operand not at the first trials either."""
        self._trials.update(missing)
        for key in missing:
            if key[0] != "along":
                self._layouts[key] = RAGGED
            elif self._trials[key] == _TRIALS:
                self._layouts[key] = None

    def _compare(self, few: Call) -> list[Tensor]:
        """Compare the signed sums of a few examples with the ordinary gradient, and keep what comes out as a proof.

        Returns:
            The floating-point outputs.

        Cost: memory of one float32 copy of the parameters: the signed sums begin at minus the ordinary gradient.
        """
        again: list[list[Tensor]] = []

        def scores(outputs: Any) -> Tensor:
            again.append(floats_in(outputs))
            return random_scores(few.size, outputs)

        company, rtol = self._company, tolerance(self._model, self._company)
        try:
            signature, collector, norms, errors, reached, runs_again = self._signed(few, scores)
        except RuntimeError as error:
            if not (self._by_grad and refuses_grad(error)):
                raise
            self._by_grad = False
            signature, collector, norms, errors, reached, runs_again = self._signed(few, scores)
        missed = {*reached, *beyond_rounding(errors, norms, rtol=rtol)}
        used_more = (name for name, places in collector.met.items() if len(places) > 1)
        shapes = dict(zip(self._names, self._parameters))
        shared = frozenset(name for name in used_more if overlap(collector.met[name], shapes[name]))
        self._proofs[signature] = Proof(frozenset(missed), company.union(shared), runs_again)
        return again[0]

    def _attribute(
        self,
        covering: Covering,
        collector: Collector,
        at_outputs: OutputGradients,
        ends: Sequence[tuple[int, Tensor]],
        proof: Proof,
    ) -> set[str]:
        """Find out to which example each row of the moved uses belongs.

        Returns:
            The names of the parameters of which it cannot be told, because rows are of several examples.

        Cost: two backward passes without weight gradients for up to 64 examples, three for up to 4,096, as far down as
        moved uses are; nothing where there is none.
        """
        moved = [use for use in covering.covered if use.moved]
        if not moved or not ends or collector.size == 1:
            return set()
        if not self._by_grad:
            raise RouteDeclinedError("the data decide on the places of its examples inside reentrant checkpoints")
        names = {use: {spot.place.name for spot in use.spots if spot is not None} for use in moved}
        chosen = set().union(*names.values())
        outputs = [output for _, output in ends]
        dtypes = [at_outputs.dtype, *(tensor.dtype for tensor in (*outputs, *self._parameters))]
        if torch.is_autocast_enabled(outputs[0].device.type):
            dtypes.append(torch.get_autocast_dtype(outputs[0].device.type))
        attribution = collector.attribution = Attribution(collector.size, dtypes=dtypes, rtol=tolerance(self._model))
        generator = torch.Generator().manual_seed(0)
        factors = torch.empty(at_outputs.num_rows, 1, dtype=torch.float32).uniform_(0.5, 1.5, generator=generator)
        device = outputs[0].device
        for weights in attribution.weights(device):
            gradients = at_outputs.combined(factors.to(device) * weights if len(factors) > 1 else weights.unsqueeze(0))
            some = [gradients[end] for end, _ in ends]
            self._pull(covering, outputs, some, runs_again=proof.runs_again, retain=True, names=chosen)
        collector.attribution, found = None, attribution.examples()
        failed: set[str] = set()
        as_laid_out = not covering.by_rows
        for use in covering.covered:
            use.received = 0
        for use, examples in found.items():
            if examples is None:
                failed |= names[use]
                self._layouts[use.key] = None
            elif not attribution.lies(use, examples):
                collector.examples[use] = examples
                as_laid_out = as_laid_out and use.layout == RAGGED
        if as_laid_out and not failed:
            self._choices |= beginnings(covering.chosen)
        return failed

    def _signed(
        self, few: Call, scores: Scores
    ) -> tuple[Signature, Collector, dict[str, float], dict[str, float], dict[str, Tensor], bool]:
        """A pass of signed sums: the norms of the ordinary gradients, and of what the sums differ from them by."""
        expected = gradient(self._model, few, scores)
        norms = dict(zip(expected, self._company.norms(expected.values())))
        totals = Totals(self._model, self._company, start={name: -expected.pop(name) for name in norms})
        finished = totals.give
        collector = Collector(totals, phi="signed", size=few.size, chunk_bytes=self._chunk_bytes, finished=finished)
        covering, outputs = self._forward(few, collector)
        signature, total = tuple(covering.signature), scores(outputs).sum()
        self._by_grad = self._by_grad and not is_reentrant([total])
        reached = self._pull(covering, [total], [None], runs_again=True) if total.requires_grad else {}
        totals.give_rest()
        runs_again = self._company.any(len(covering.signature) > len(signature))
        errors = dict(zip(norms, self._company.norms(totals.kept[name] for name in norms)))
        return signature, collector, norms, errors, reached, runs_again

    def _pull(
        self,
        covering: Covering,
        outputs: Sequence[Tensor],
        gradients: Sequence[Tensor | None],
        *,
        runs_again: bool,
        retain: bool = False,
        names: Set[str] | None = None,
    ) -> dict[str, Tensor]:
        """A backward pass; returns the ordinary gradients that came through, which no cover took."""
        with covering.passes.collecting(), covering if runs_again else nullcontext():
            chosen = [(n, p) for n, p in zip(self._names, self._parameters) if names is None or n in names]
            found = pulled(outputs, gradients, [p for _, p in chosen], by_grad=self._by_grad, retain=retain)
        return {name: local(value) for (name, _), value in zip(chosen, found) if value is not None}


def _rows(at_outputs: OutputGradients, *, keep: bool) -> Iterator[Sequence[Tensor]]:
    """For each row of scores the gradients at the used outputs."""
    if at_outputs.num_rows == 1:
        yield at_outputs.row(0, last=not keep)
        return
    block = max(1, _ROW_BYTES // at_outputs.bytes_per_row)
    for start in range(0, at_outputs.num_rows, block):
        yield from zip(*at_outputs.rows(start, start + block))


def _check_received(outputs: Sequence[Tensor]) -> None:
    """Every covered use that the outputs depend on must have received its gradient."""
    for node in nodes_of(outputs):
        use = getattr(node, "use", None)
        assert not isinstance(use, CoveredUse) or use.received, use
