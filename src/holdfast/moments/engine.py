"""The engine: sums over examples of phi(gradient) in one forward and K backward passes, weight gradients left out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from torch import Tensor, nn

from holdfast.errors import StateError
from holdfast.moments.calls import Call, tensors_in
from holdfast.moments.collector import Collector, Proof
from holdfast.moments.coupling import check_independent, floats_in
from holdfast.moments.covered import Covering, Signature, Use
from holdfast.moments.gradients import (
    OutputGradients,
    Phi,
    RouteDeclinedError,
    Scores,
    gradient,
    mismatches,
    pulled,
    random_scores,
    refuses_grad,
    tolerance,
    zeros,
)
from holdfast.moments.intercept import Key, tracked_parameters
from holdfast.moments.layout import Layout
from holdfast.moments.shared import overlap
from holdfast.moments.study import few_examples, study
from holdfast.tensors import trainable_parameters, unwrap

_ROW_BYTES = 2**24
"""Gradients at the outputs, of as many rows of scores as go into this, are taken at once."""


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
    """

    def __init__(self, model: nn.Module, *, phi: Phi, chunk_bytes: int, where: str, by_token: bool = False) -> None:
        self._model, self._chunk_bytes, self._where = model, chunk_bytes, where
        self._phi: Phi = phi
        self._by_token = by_token
        self._names = list(trainable_parameters(model))
        self._parameters = list(trainable_parameters(model).values())
        self._tracked = tracked_parameters(model)
        self._layouts: dict[Key, Layout | None] = {}
        self._differentiated: set[Key] = set()
        self._proofs: dict[Signature, Proof] = {}
        self.bytes_per_example = 0
        self._by_grad = True  # torch.autograd.grad, unless the model has reentrant checkpoints

    def add(self, call: Call, scores: Scores, totals: Mapping[str, Tensor]) -> tuple[OutputGradients, frozenset[str]]:
        """Add a batch to the totals of all parameters but those that are missed.

        Args:
            call: B examples.
            scores: outputs -> [K, B]; called once.
            totals: name -> sum so far, changed in place.

        Returns:
            The gradients at the outputs, and the names of the missed parameters.

        Raises:
            RouteDeclinedError: the model cannot be run this way; nothing was added.
            StateError: a parameter that was measured so far is used in a way that cannot be seen.
        """
        collector = Collector(
            totals, phi=self._phi, size=call.size, chunk_bytes=self._chunk_bytes, tokens=self._by_token
        )
        if not self._proofs:
            self._prove(call)
        covering, outputs = self._forward(call, collector)
        if tuple(covering.signature) not in self._proofs or covering.unknown:
            self._prove(call)
            covering, outputs = self._forward(call, collector)
            if tuple(covering.signature) not in self._proofs:
                raise RouteDeclinedError("how it uses its parameters depends on the number of examples")
        proof = collector.proof = self._proofs[tuple(covering.signature)]
        at_outputs = OutputGradients(outputs, call.size, scores)
        collector.num_rows = at_outputs.num_rows
        found = tensors_in(outputs)
        ends = [(end, found[place]) for end, place in enumerate(at_outputs.used) if found[place].requires_grad]
        reached: set[str] = set()
        for k, row in enumerate(_rows(at_outputs, keep=bool(proof.missed)) if ends else ()):
            gradients, last = [row[end] for end, _ in ends], k + 1 == at_outputs.num_rows
            tensors = [tensor for _, tensor in ends]
            reached |= self._pull(covering, tensors, gradients, runs_again=proof.runs_again, retain=not last).keys()
            collector.end_row()
        collector.end()
        if not all(use.received for use in covering.covered):
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
            covering = Covering(self._tracked, self._layouts, call.size, collector.receive)
            try:
                with covering:
                    outputs = call(unwrap(self._model))
            except Exception:  # of the model, perhaps because a cover had no gradient for its weight
                if not covering.passes.inner:
                    raise
                outputs = None
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
        few, again, rtol = few_examples(call), [], tolerance(self._model)
        try:
            seen = study(self._model, few, tracked=self._tracked, rtol=rtol)
        except ValueError:  # what batch norm says to one example alone
            check_independent(self._model, call, where=self._where)
            raise
        self._layouts |= {**seen.layouts, **dict.fromkeys(self._differentiated)}
        self.bytes_per_example = max(self.bytes_per_example, seen.bytes_per_example)
        few = few.examples(0, 2)

        def scores(outputs: Any) -> Tensor:
            again.append(floats_in(outputs))
            return random_scores(few.size, outputs)

        expected = gradient(self._model, few, scores)
        if not seen.independent or not seen.has(again[0], rtol=rtol):
            check_independent(self._model, call, where=self._where)
        try:
            signature, collector, totals, reached, runs_again = self._signed(few, scores)
        except RuntimeError as error:
            if not (self._by_grad and refuses_grad(error)):
                raise
            self._by_grad = False
            signature, collector, totals, reached, runs_again = self._signed(few, scores)
        missed = {*reached, *mismatches({**totals, **reached}, expected, rtol=rtol)}
        used_more = (name for name, places in collector.met.items() if len(places) > 1)
        shared = frozenset(name for name in used_more if overlap(collector.met[name], totals[name]))
        self._proofs[signature] = Proof(frozenset(missed), shared, runs_again)

    def _signed(
        self, few: Call, scores: Scores
    ) -> tuple[Signature, Collector, dict[str, Tensor], dict[str, Tensor], bool]:
        totals = zeros(self._model)
        collector = Collector(totals, phi="signed", size=few.size, chunk_bytes=self._chunk_bytes)
        covering, outputs = self._forward(few, collector)
        signature, total = tuple(covering.signature), scores(outputs).sum()
        reached = self._pull(covering, [total], [None], runs_again=True) if total.requires_grad else {}
        return signature, collector, totals, reached, len(covering.signature) > len(signature)

    def _pull(
        self,
        covering: Covering,
        outputs: Sequence[Tensor],
        gradients: Sequence[Tensor | None],
        *,
        runs_again: bool,
        retain: bool = False,
    ) -> dict[str, Tensor]:
        """A backward pass; returns the ordinary gradients that came through, which no cover took."""
        with covering.passes.collecting(), covering if runs_again else nullcontext():
            found = pulled(outputs, gradients, self._parameters, by_grad=self._by_grad, retain=retain)
        return {name: value for name, value in zip(self._names, found) if value is not None}


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
    stack = [output.grad_fn for output in outputs if output.grad_fn is not None]
    visited = set(stack)
    while stack:
        node = stack.pop()
        use = getattr(node, "use", None)
        assert not isinstance(use, Use) or use.received, use
        for following, _ in node.next_functions:
            if following is not None and following not in visited:
                visited.add(following)
                stack.append(following)
