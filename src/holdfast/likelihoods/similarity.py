"""What a sentence encoder says: how alike any two inputs are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from holdfast.errors import BatchError, OptionError
from holdfast.likelihoods.batches import batch_size
from holdfast.likelihoods.draws import Draws
from holdfast.likelihoods.outputs import logits_of, widened


@dataclass(frozen=True)
class Similarity:
    """The cosine of each input's embedding with the next one's; the last goes with the first.

    The outputs are embeddings [B, H]. A change of a cosine costs (cos - cos_0)^2 / (2 variance) nats, so that it is
    read as an answer with Gaussian noise of 0.2 in the cosine, about what human judges of similarity differ by.

    An importance is measured of each input by itself, without targets: where the others' embeddings e' point anywhere,
    a change of e, of length one, moves a cosine by |de|^2 / H in the mean square, and a target has two ends. So its
    Fisher information is that of 2 / (H variance) |de|^2.

    Attributes:
        variance: of the noise, > 0.

    Raises:
        OptionError: the variance is not positive and finite.
    """

    variance: float = 0.04

    def __post_init__(self) -> None:
        """Check the variance."""
        if not 0 < self.variance < math.inf:
            raise OptionError(f"Similarity: variance={self.variance!r}, expected a positive, finite number.")

    @property
    def name(self) -> str:
        """The name kept in records: "similarity"."""
        return "similarity"

    def num_targets(self, batch: Any) -> int:
        """The inputs; none of a single one, such as the last of the data may be, which no other is compared with."""
        size = batch_size(batch)
        return size if size > 1 else 0

    def nll(self, outputs: Any, batch: Any) -> Tensor:
        """Not possible: there is no target.

        Raises:
            OptionError: always.
        """
        raise OptionError(
            'similarity: found no target, which the inputs do not have. Measure with kind="sampled" or "exact"; losses '
            'of pairs with a known similarity are those of "gaussian".'
        )

    def exact_scores(self, outputs: Any, batch: Any) -> Tensor:
        """[H, B]: sqrt(2 / (H variance)) e, e the embeddings of length one."""
        return self._scaled(outputs).T

    def sampled(self, outputs: Any, batch: Any, *, draws: Draws) -> Tensor:
        """[B]: the sum of the exact scores, each times Gaussian noise."""
        scaled = self._scaled(outputs)
        noise = draws.normal(scaled.shape, scaled)
        return (noise * scaled).sum(dim=1)

    def answers(self, outputs: Any, batch: Any) -> dict[str, Tensor]:
        """The cosines [B].

        Raises:
            BatchError: the outputs are no embeddings of two inputs or more.
        """
        return {"cosines": self._cosines(outputs)}

    def divergence(self, outputs: Any, answers: Mapping[str, Tensor], batch: Any) -> Tensor:
        """[B]: (cos - cos_0)^2 / (2 variance)."""
        return (self._cosines(outputs) - answers["cosines"]).square() / (2 * self.variance)

    def _scaled(self, outputs: Any) -> Tensor:
        found = widened(logits_of(outputs))
        _check_embeddings(found, least=1)
        return math.sqrt(2 / (found.shape[1] * self.variance)) * F.normalize(found, dim=1)

    def _cosines(self, outputs: Any) -> Tensor:
        found = widened(logits_of(outputs))
        _check_embeddings(found, least=2)
        return F.cosine_similarity(found, found.roll(-1, 0), dim=1)


def _check_embeddings(found: Tensor, *, least: int) -> None:
    if found.ndim != 2 or len(found) < least:
        raise BatchError(
            f"similarity: found outputs of shape {list(found.shape)}, expected embeddings [B, H] of two inputs or "
            "more. Return the pooled embedding from the model, and give probes in larger batches."
        )
