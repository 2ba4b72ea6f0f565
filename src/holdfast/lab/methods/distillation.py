"""Old answers, softened, as what is to be learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from holdfast.files.typed import Within


@dataclass(frozen=True, kw_only=True)
class DistillationOptions:
    """Of what is taught old answers.

    Attributes:
        temperature: the distilled answers are softened by it.
    """

    temperature: Annotated[float, Within(1e-3, 1e3)] = 2.0


def distillation(
    logits: Tensor,
    teacher: Tensor,
    *,
    temperature: float,
    old: Sequence[int] | None = None,
    now: Sequence[int] | None = None,
) -> Tensor:
    """How far the answers are from the teacher's, softened.

        T^2 mean_b -sum_c q_c log p_c,   q = softmax(teacher[old]/T),   p = softmax(logits[now]/T)

    Args:
        logits: [B, C], of the network that learns.
        teacher: [B, C], of the network before.
        temperature: T > 0; T^2 keeps the size of the gradient.
        old: the columns that the teacher knows; None: all.
        now: the columns among which the learner answers, those of `old` and perhaps more, for which q is 0.

    Returns:
        A scalar, nats times T^2.
    """
    known, open_now = (slice(None) if columns is None else list(columns) for columns in (old, now))
    soft = logits / temperature
    log_p = soft[:, known] - soft[:, open_now].logsumexp(1, keepdim=True)
    q = (teacher[:, known] / temperature).softmax(1)
    return -(q * log_p).sum(1).mean() * temperature**2
