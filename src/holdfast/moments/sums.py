"""The one door to the moments: sums over examples of phi(gradient), by the fastest route that proves itself right."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from holdfast.choices import check_count
from holdfast.errors import LossShapeError, NotFiniteError
from holdfast.moments.calls import Call
from holdfast.moments.company import Company
from holdfast.moments.engine import Engine
from holdfast.moments.gradients import (
    LengthsVaryError,
    OutputGradients,
    Phi,
    RouteDeclinedError,
    Scores,
    gradient,
    mismatches,
    random_scores,
    tolerance,
)
from holdfast.moments.oracle import oracle_sums, sums_in_company
from holdfast.moments.per_example import CHUNK_BYTES, per_example_sums
from holdfast.moments.study import room_for
from holdfast.moments.totals import Totals
from holdfast.tensors import placed, trainable_parameters, unwrap

SumRoute = Callable[..., dict[str, Tensor]]
Per = Literal["sequence", "token"]

Alone = Callable[[int, Sequence[torch.Size]], Scores]
"""From the number of an example in its batch, and the shapes of the outputs for that batch, to its scores alone."""


class MomentSums:
    """Name -> sum over examples b and rows k of phi(d s_kb / d theta), for all trainable parameters, batch after batch.

    The engine measures what it recognises, and proves itself on a few examples. What it misses is measured by
    `torch.func` per-example gradients or, where these fail too, one example at a time: for those parameters alone. The
    per-example gradients are checked on the first batch as well: for a random linear function of the outputs their
    signed sum, each example with a random weight, must be the ordinary gradient. So a weight used in an unknown way is
    never silently wrong.

    Args:
        model: in evaluation mode (see `measuring`); its outputs for an example must not depend on the others, which is
            checked on the first batch.
        phi: "square" or "abs".
        where: the estimator, for messages.
        chunk_bytes: bound on the memory of per-example gradients.
        per: "token": where the engine can, every position of a use counts as an example of its own.

    Attributes:
        company: the processes over which the model is spread; all of them add equally often.
        totals: name -> sum so far over all of them; >= 0, of the parameter's shape, device and placement, float64 for
            float64 parameters, else float32. Zeros for a parameter that no forward pass has used.
        num_examples: examples seen in this process.
        missed: parameters that the engine did not recognise in the last batch.
    """

    def __init__(
        self, model: nn.Module, *, phi: Phi, where: str, chunk_bytes: int = CHUNK_BYTES, per: Per = "sequence"
    ) -> None:
        check_count("chunk_bytes", chunk_bytes, where=where)
        self._model, self._where, self._chunk_bytes = model, where, chunk_bytes
        self._phi: Phi = phi
        self.company = Company(model)
        by_token = per == "token"
        self._engine: Engine | None = Engine(model, phi=phi, chunk_bytes=chunk_bytes, where=where, by_token=by_token)
        self._fallbacks: list[SumRoute] = [partial(per_example_sums, chunk_bytes=chunk_bytes), oracle_sums]
        self._proven: frozenset[str] = frozenset()
        self._selects = False
        self._totals = Totals(model, self.company)
        self.num_examples = 0
        self.missed: frozenset[str] = frozenset()

    @property
    def totals(self) -> dict[str, Tensor]:
        """Name -> sum so far, laid out as the parameter is."""
        parameters = trainable_parameters(self._model)
        return {name: placed(value, parameters[name]) for name, value in self._totals.kept.items()}

    @property
    def fallback(self) -> str:
        """The route of missed parameters: "per_example_sums" or "oracle_sums"."""
        route = self._fallbacks[0]
        return route.func.__name__ if isinstance(route, partial) else route.__name__

    @property
    def room(self) -> int:
        """How many examples like those studied go together well; 0 where nothing is known, or gained."""
        if self._engine is None or self.missed:
            return 0
        return room_for(self._engine.bytes_per_example, self._chunk_bytes)

    def add(self, call: Call, scores: Scores, *, alone: Alone | None = None, counts: bool = True) -> None:
        """Add a batch.

        Args:
            call: B examples.
            scores: outputs -> [K, B]; K scores an example.
            alone: the scores of single examples, for models whose outputs are as long as the longest example of a
                batch: these are run one example at a time, so that nothing depends on the others' lengths. None: they
                are `scores`.
            counts: False for a batch that is there to keep others company, and adds nothing.

        Raises:
            LossShapeError: the scores are not [K, B].
            NotFiniteError: a score is NaN or infinite.
            CoupledExamplesError, RandomOutputsError: the outputs for an example depend on the others, or on chance.
        """
        try:
            self._add(call, scores, counts=counts)
        except LengthsVaryError as error:
            for each in range(self.company.most(call.size)):
                b = min(each, call.size - 1)
                own = scores if alone is None else alone(b, error.shapes)
                self._add(call.examples(b, b + 1), own, counts=counts and each == b)

    def _add(self, call: Call, scores: Scores, *, counts: bool) -> None:
        checked = partial(_checked, scores, call.size, self._where, counts)
        at_outputs = None
        if self._engine is not None:
            try:
                at_outputs, self.missed = self._engine.add(call, checked, self._totals)
            except RouteDeclinedError:
                self._selects = self._engine.selects
                self._engine = None
        if at_outputs is None:
            # with a graph, although none is needed: a forward pass may take gradients itself
            outputs = call(unwrap(self._model))
            with self.company.failing_together():
                at_outputs = OutputGradients(outputs, call.size, checked)
            self.missed = frozenset(self._totals)
        if self.missed and at_outputs.used:
            self._add_missed(call, at_outputs)
        self.num_examples += call.size if counts else 0

    def _add_missed(self, call: Call, at_outputs: OutputGradients) -> None:
        if not self.company.is_alone:
            if len(self._fallbacks) > 1:
                self._warn_slow("its weights are spread over processes")
                del self._fallbacks[0]
            given: dict[str, Any] = {"phi": self._phi, "names": self.missed, "company": self.company}
            self._totals.add(sums_in_company(self._model, call, at_outputs, **given))
            return
        while True:
            try:
                if len(self._fallbacks) > 1 and (self._selects if self._engine is None else self._engine.selects):
                    # some such functions take down the process under vmap, in place of an error
                    raise RouteDeclinedError("it selects rows by their values")
                if not self.missed <= self._proven and len(self._fallbacks) > 1:
                    self._prove(call)
                sums = self._fallbacks[0](self._model, call, at_outputs, phi=self._phi, names=self.missed)
                break
            except RouteDeclinedError as reason:
                self._warn_slow(str(reason))
                del self._fallbacks[0]
        self._totals.add(sums)

    def _prove(self, call: Call) -> None:
        scores = partial(random_scores, call.size)
        at_outputs = OutputGradients(call(unwrap(self._model)), call.size, scores)
        found = self._fallbacks[0](self._model, call, at_outputs, phi="signed", names=self.missed)
        ordinary = gradient(self._model, call, scores)
        expected = {name: ordinary[name] for name in self.missed}
        wrong = mismatches(found, expected, rtol=tolerance(self._model), company=self.company)
        if wrong:
            raise RouteDeclinedError(f"its per-example gradients do not add up to the gradient of {wrong[0]!r}")
        self._proven |= self.missed

    def _warn_slow(self, reason: str) -> None:
        kind, missed = type(unwrap(self._model)).__name__, sorted(self.missed)
        if len(missed) == len(self._totals):
            what = kind
        else:
            shown = ", ".join(map(repr, missed[:5])) + (f" and {len(missed) - 5} more" if len(missed) > 5 else "")
            what = f"of {kind} {shown}"
        warnings.warn(
            f"{self._where}: {what} is measured one example at a time, right but slow: torch.func cannot differentiate "
            f"it example by example ({reason}). Lower num_examples if it takes too long.",
            stacklevel=5,
        )


def _checked(scores: Scores, size: int, where: str, counts: bool, outputs: object) -> Tensor:
    rows = scores(outputs) if counts else scores(outputs) * 0
    if rows.ndim != 2 or rows.shape[1] != size:
        raise LossShapeError(
            f"{where}: found scores of shape {list(rows.shape)} for {size} examples, expected [K, {size}]: "
            "one column an example."
        )
    bad = ~torch.isfinite(rows.detach()).all(dim=0)
    if bad.any():
        first = int(bad.nonzero()[0])
        raise NotFiniteError(
            f"{where}: the loss is not finite for {int(bad.sum())} of {size} examples of a batch, the first being "
            f"number {first} of it. Look for NaN in the model's weights or the data, or an overflow under half "
            "precision."
        )
    return rows
