"""The loop of the estimators that sum over examples: batch after batch of the data, in step with other processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from holdfast.importance.alone import alone
from holdfast.importance.gathering import gathered_batches
from holdfast.importance.measure import Batch, DataPass
from holdfast.moments.sums import MomentSums


def add_all(
    sums: MomentSums, data_pass: DataPass, scores: Callable[[Any, Batch], Tensor], *, join: bool = True
) -> None:
    """Add all batches of the data.

    Args:
        sums: what they are added to.
        data_pass: over the data, of this process where the model is sharded; its counts are then those of all.
        scores: from the outputs and their batch to [K, B].
        join: whether small batches go together, as they may where no example is looked at by a function of the user's.
    """
    batches = gathered_batches(data_pass, lambda: sums.room if join else 0)
    for batch, counts in sums.company.in_step(batches):
        own = alone(scores, batch)
        sums.add(batch.call, lambda outputs, batch=batch: scores(outputs, batch), alone=own, counts=counts)
    data_pass.join()
