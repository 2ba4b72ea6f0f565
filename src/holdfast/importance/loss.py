"""The loss of one measurement: what is decided about it on one batch holds for all, and is checked on all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from holdfast.errors import HoldfastError, OptionError
from holdfast.importance.loss_check import LossCheck
from holdfast.likelihoods.batches import batch_size
from holdfast.likelihoods.draws import Draws
from holdfast.likelihoods.likelihood import OWN, Categorical, Likelihood, num_targets
from holdfast.likelihoods.shift import Shift, check_shift, shift_of


class MeasuredLoss:
    """A likelihood as one measurement of one model uses it; a `Likelihood` itself.

    Whether a `Categorical` shifts the targets, and which axis holds its classes, is decided once, on the first batch
    that shows it. A loss that is not the library's own is checked to keep the examples of a batch apart.

    Args:
        likelihood: as the caller gave it.
        model: the one that is measured.
        where: the estimator, for messages.

    Attributes:
        is_own: whether it is one of the library's own, which are known to read a batch example by example.
    """

    def __init__(self, likelihood: Likelihood, model: nn.Module, *, where: str) -> None:
        self._likelihood, self._model, self._where = likelihood, model, where
        self._shift: Shift | None = None
        self._has_compared = False
        self.is_own = type(likelihood) in OWN
        self._check = None if self.is_own else LossCheck(model, where=where)

    @property
    def name(self) -> str:
        """The name kept in the record of an importance."""
        return self._likelihood.name

    @property
    def details(self) -> dict[str, str | bool]:
        """For the record of an importance: whether targets were shifted and why, if there were sequences of them."""
        return {} if self._shift is None else {"causal": self._shift.causal, "causal_by": self._shift.reason}

    def decide(self, batch: Any) -> None:
        """Decide whether targets are shifted, by a batch as the data gave it; later calls change nothing."""
        if self._shift is None:
            self.decided(batch)

    def num_targets(self, batch: Any) -> int:
        """How many targets a batch has, see `likelihoods.num_targets`; the first batch decides as `decide` does.

        Raises:
            BatchError: as for `nll`.
        """
        return num_targets(self.decided(batch), batch)

    def nll(self, outputs: Any, batch: Any) -> Tensor:
        """[B]: as the likelihood's own.

        Raises:
            BatchError: the labels contradict the decision that was taken on the first batch.
            CoupledExamplesError: the value of an example depends on the others.
        """
        likelihood = self.decided(batch, outputs)
        found = likelihood.nll(outputs, batch)
        self._examine(likelihood.nll, found, outputs, batch)
        return found

    def exact_scores(self, outputs: Any, batch: Any) -> Tensor:
        """[K, B]: as the likelihood's own.

        Raises:
            BatchError, CoupledExamplesError: as for `nll`.
        """
        likelihood = self.decided(batch, outputs)
        found = likelihood.exact_scores(outputs, batch)
        self._examine(likelihood.exact_scores, found, outputs, batch)
        return found

    def sampled(self, outputs: Any, batch: Any, *, draws: Draws) -> Tensor:
        """[B]: as the likelihood's own.

        Raises:
            BatchError, CoupledExamplesError: as for `nll`.
        """
        likelihood = self.decided(batch, outputs)

        def drawn(outputs: Any, batch: Any) -> Tensor:
            return likelihood.sampled(outputs, batch, draws=Draws(range(batch_size(batch))))

        found = likelihood.sampled(outputs, batch, draws=draws)
        self._examine(drawn, found, outputs, batch, draws=True)
        if not (self.is_own or self._has_compared):
            self._has_compared = batch_size(batch) > 1
            self._compare_at_labels(likelihood, outputs, batch)
        return found

    def top_scores(self, outputs: Any, batch: Any, *, top_k: int, draws: Draws) -> Tensor:
        """[top_k + 1, B]: as `Categorical.top_scores`.

        Raises:
            BatchError: as for `nll`.
            OptionError: the likelihood is not categorical.
        """
        likelihood = self.decided(batch, outputs)
        if not isinstance(likelihood, Categorical):
            raise OptionError(
                f'{self._where}: top_k={top_k} with loss="{self.name}", expected loss="categorical". Drop top_k.'
            )

        def scores(outputs: Any, batch: Any) -> Tensor:
            return likelihood.top_scores(outputs, batch, top_k=top_k, draws=Draws(range(batch_size(batch))))

        found = likelihood.top_scores(outputs, batch, top_k=top_k, draws=draws)
        self._examine(scores, found, outputs, batch, draws=True)
        return found

    def decided(self, batch: Any, outputs: Any = None) -> Likelihood:
        """The likelihood, with what this batch shows about shift and axis if none before has shown it.

        Raises:
            BatchError: the labels contradict what was decided.
        """
        if not isinstance(self._likelihood, Categorical):
            return self._likelihood
        if self._likelihood.class_axis is None and outputs is not None:
            axis = self._likelihood.only_axis(outputs, batch)
            self._likelihood = self._likelihood if axis is None else replace(self._likelihood, class_axis=axis)
        if self._shift is not None:
            check_shift(self._shift, batch, where=self._where)
            return self._likelihood
        self._shift = shift_of(self._likelihood, self._model, batch)
        if self._shift is not None:
            self._likelihood = replace(self._likelihood, causal=self._shift.causal)
        return self._likelihood

    def _compare_at_labels(self, likelihood: Likelihood, outputs: Any, batch: Any) -> None:
        """Check the values that a likelihood of the user's gives at the labels: those at drawn ones never repeat."""
        try:
            found = likelihood.nll(outputs, batch)
        except (HoldfastError, RuntimeError, TypeError, ValueError, LookupError, NotImplementedError):
            return  # the data may have no labels
        self._examine(likelihood.nll, found, outputs, batch)

    def _examine(
        self,
        score: Callable[[Any, Any], Tensor],
        found: Any,
        outputs: Any,
        batch: Any,
        *,
        draws: bool = False,
    ) -> None:
        if self._check is not None:
            self._check(score, found, outputs, batch, draws=draws)
