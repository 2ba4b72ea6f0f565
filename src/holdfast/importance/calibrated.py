"""An importance from elsewhere, with its worth in nats: what a budget needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from torch import Tensor, nn

from holdfast.curvature import FactoredImportance
from holdfast.importance.calibration import CALIBRATION_EXAMPLES
from holdfast.importance.loss import MeasuredLoss
from holdfast.importance.measure import DataPass
from holdfast.likelihoods.likelihood import Likelihood, resolve_likelihood
from holdfast.moments.state import measuring
from holdfast.records import Importance, check_names
from holdfast.tensors import unwrap

AnImportance = TypeVar("AnImportance", bound=Importance | FactoredImportance)


def calibrated(
    importance: AnImportance,
    model: nn.Module,
    data: Iterable[Any],
    *,
    loss: str | Likelihood | Callable[[Any, Any], Tensor] | None = None,
    seed: int = 0,
) -> AnImportance:
    """The importance with `info.nats_per_unit` measured: how many nats per target 1/2 sum Omega d^2 is worth.

    What estimators do with `calibrate=True`, for an importance that was made in another way: the weights that it covers
    are moved along four random directions, and the rise of the mean loss over targets is compared with what the
    diagonal predicts.

    Args:
        importance: of the model as it is now; its values stay as they are.
        model: any module; left exactly as it was.
        data: of the skill, an iterable of batches as for `fisher`; read once, the first 1,000 examples.
        loss: in whose nats, as for `fisher`.
        seed: of the directions.

    Returns:
        The same values, with another `info`. Its `nats_per_unit` is None, with a warning, where the loss does not rise
        or all importances are zero.

    Raises:
        ParameterMismatchError: names or shapes that do not match the model.
        LossShapeError, CoupledExamplesError, EmptyDataError, BatchError, OptionError: as for `fisher`.

    Cost: about twenty forward passes over the examples that are read, and two copies of the weights.
    """
    measured = MeasuredLoss(resolve_likelihood(loss, where="calibrated"), model, where="calibrated")
    diagonal = importance.to_diagonal().to(next(unwrap(model).parameters()).device)
    check_names(diagonal, model, where="calibrated")
    with measuring(model):
        data_pass = DataPass(
            model,
            data,
            where="calibrated",
            num_examples=CALIBRATION_EXAMPLES,
            calibration=measured,
            seed=seed,
        )
        for _ in data_pass:
            pass
        found = data_pass.importance(diagonal, kind=importance.info.kind, unit=importance.info.unit)
    return importance.with_info(  # pyright: ignore[reportReturnType]  # its own kind
        nats_per_unit=found.info.nats_per_unit, calibration=found.info.calibration, rehearsed_at=None, scatter=None
    )
