"""Targets of the outputs' own shape: real numbers, and answers of yes or no."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from holdfast.errors import BatchError, OptionError
from holdfast.likelihoods.batches import targets_of
from holdfast.likelihoods.draws import Draws
from holdfast.likelihoods.outputs import logits_of, seen_any, widened


@dataclass(frozen=True)
class Gaussian:
    """Real targets of the outputs' shape: y ~ N(f(x), variance), independent over the output axes.

    nll = sum_j (y_j - f_j)^2 / (2 variance), **without** the constant log(2 pi variance)/2 an output.

    Attributes:
        variance: of the noise, in squared units of the targets; positive and finite.

    Raises:
        OptionError: the variance is not positive and finite.
    """

    variance: float = 1.0

    def __post_init__(self) -> None:
        """Check the variance."""
        if not 0 < self.variance < math.inf:
            raise OptionError(f"Gaussian: variance={self.variance}, expected a positive, finite number.")

    @property
    def name(self) -> str:
        """The name kept in the record of an importance: "gaussian"."""
        return "gaussian"

    def nll(self, outputs: Any, batch: Any) -> Tensor:
        """[B]: half the squared error over the variance.

        Raises:
            BatchError: the targets do not have the outputs' shape.
        """
        means = widened(logits_of(outputs))
        return self._nll(means, _targets_like(means, batch, self.name))

    def exact_scores(self, outputs: Any, batch: Any) -> Tensor:
        """[J, B]: f_j / sqrt(variance) for each output j of an example. The targets are not looked at."""
        means = widened(logits_of(outputs))
        return _rows(means).T / math.sqrt(self.variance)

    def sampled(self, outputs: Any, batch: Any, *, draws: Draws) -> Tensor:
        """[B]: the nll at y = f(x) + sqrt(variance) * noise. The targets are not looked at."""
        means = widened(logits_of(outputs))
        noise = draws.normal(means.shape, means)
        return self._nll(means, means.detach() + math.sqrt(self.variance) * noise)

    def answers(self, outputs: Any, batch: Any) -> dict[str, Tensor]:
        """What the outputs say: the means, of their own shape."""
        return {"means": widened(logits_of(outputs)).detach()}

    def divergence(self, outputs: Any, answers: Mapping[str, Tensor], batch: Any) -> Tensor:
        """[B]: KL from earlier `answers` to the outputs, sum_j (f_j - f0_j)^2 / (2 variance).

        Raises:
            BatchError: the outputs have another shape than the answers.
        """
        means = widened(logits_of(outputs))
        _check_like(means, answers["means"], self.name, "answers")
        return self._nll(means, answers["means"])

    def _nll(self, means: Tensor, targets: Tensor) -> Tensor:
        return _rows((targets - means).square()).sum(dim=1) / (2 * self.variance)


@dataclass(frozen=True)
class Bernoulli:
    """Targets in 0..1 of the outputs' shape: p(y_j = 1|x) = sigmoid(z_j), independent over the output axes."""

    @property
    def name(self) -> str:
        """The name kept in the record of an importance: "bernoulli"."""
        return "bernoulli"

    def nll(self, outputs: Any, batch: Any) -> Tensor:
        """[B]: the binary cross-entropy, summed over the outputs of an example.

        Raises:
            BatchError: the targets do not have the outputs' shape, or one is outside 0..1.
        """
        logits = widened(logits_of(outputs))
        targets = _targets_like(logits, batch, self.name)
        outside = ~((targets >= 0) & (targets <= 1))
        if seen_any(outside):
            found = f"{targets[outside][0].item():g}"
            raise BatchError(f"bernoulli loss: found the target {found}, expected targets in 0..1.")
        return self._nll(logits, targets)

    def exact_scores(self, outputs: Any, batch: Any) -> Tensor:
        """[J, B]: sqrt(p_j (1 - p_j)) z_j, the root held constant. The targets are not looked at."""
        logits = widened(logits_of(outputs))
        p = logits.detach().sigmoid()
        return _rows((p * (1 - p)).sqrt() * logits).T

    def sampled(self, outputs: Any, batch: Any, *, draws: Draws) -> Tensor:
        """[B]: the nll at answers drawn from the sigmoids. The targets are not looked at."""
        logits = widened(logits_of(outputs))
        answers = draws.uniform(logits.shape, logits) < logits.detach().sigmoid()
        return self._nll(logits, answers.to(logits.dtype))

    def answers(self, outputs: Any, batch: Any) -> dict[str, Tensor]:
        """What the outputs say: the logits, of their own shape."""
        return {"logits": widened(logits_of(outputs)).detach()}

    def divergence(self, outputs: Any, answers: Mapping[str, Tensor], batch: Any) -> Tensor:
        """[B]: the sum of the binary KLs from earlier `answers` to the outputs.

        Raises:
            BatchError: the outputs have another shape than the answers.
        """
        old, new = answers["logits"], widened(logits_of(outputs))
        _check_like(new, old, self.name, "answers")
        entropy = self._nll(old, old.sigmoid())
        return self._nll(new, old.sigmoid()) - entropy

    def _nll(self, logits: Tensor, targets: Tensor) -> Tensor:
        return _rows(F.binary_cross_entropy_with_logits(logits, targets, reduction="none")).sum(dim=1)


def _targets_like(outputs: Tensor, batch: Any, name: str) -> Tensor:
    """The batch's targets, in the outputs' dtype, if they have the outputs' shape."""
    targets = targets_of(batch)
    _check_like(outputs, targets, name, "targets")
    return targets.to(outputs.dtype)


def _check_like(outputs: Tensor, others: Tensor, name: str, kind: str) -> None:
    if others.shape != outputs.shape:
        raise BatchError(
            f"{name} loss: found outputs of shape {list(outputs.shape)} with {kind} of shape "
            f"{list(others.shape)}, expected equal shapes. Reshape one, as with {kind}.unsqueeze(1)."
        )


def _rows(tensor: Tensor) -> Tensor:
    """[B, J] from [B, ...]."""
    return tensor.reshape(len(tensor), tensor.shape[1:].numel())
