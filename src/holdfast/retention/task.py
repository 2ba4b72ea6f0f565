"""A task as `retain` is given it, checked against the model and against what is held of the tasks before it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from holdfast.curvature import Measured, shapes_of
from holdfast.curvature.exchange import elsewhere_in
from holdfast.errors import OptionError
from holdfast.memory import Retained
from holdfast.records import Importance, ImportanceInfo, check_names, check_tensors
from holdfast.retention.checks import weights_elsewhere
from holdfast.retention.mechanism import Mechanism
from holdfast.retention.plan import check_covered, check_held_shapes, check_same_curvature
from holdfast.tensors import TensorMap, all_parameters, trainable_parameters


def as_importance(importance: Any, *, where: str) -> Measured:
    """As it is; of a plain mapping an `Importance` of unknown unit."""
    if hasattr(importance, "layers") and hasattr(importance, "info"):
        return importance
    check_tensors(importance, where=where, error=OptionError)
    return Importance(dict(importance), ImportanceInfo(kind="custom", num_examples=0))


def covered_by(given: Measured, model: nn.Module, *, held: Retained, where: str) -> dict[str, Tensor]:
    """Name -> a tensor of the parameter's shape, for all that the importance is of; of whole layers no frozen part.

    Raises:
        ParameterMismatchError: names or shapes that the model does not have, or no longer has.
    """
    parameters, everything = trainable_parameters(model), all_parameters(model)
    in_layers = shapes_of({**given.layers, **elsewhere_in(given)})
    rests = {name for name in in_layers if name in everything and name not in parameters}
    covers = {**given.diagonal, **{name: zero for name, zero in in_layers.items() if name not in rests}}
    check_names(covers, model, where=where)
    check_held_shapes(held, model, where=where)
    return covers


def check_joins(
    covers: dict[str, Tensor], accepted: Measured, held: Retained, model: nn.Module, *, new_parameters: str, where: str
) -> None:
    """Raise where a task cannot be held together with those before it.

    Args:
        covers: what it is of (`covered_by`).
        accepted: its importance, as the mechanism holds it.
        held: of the tasks before.
        model: the model.
        new_parameters: "error" or "free".
        where: for messages.

    Raises:
        OptionError: a parameter is held in a layer for some tasks and by itself for others.
        ParameterMismatchError: a trainable parameter has no importance, and is not to be free.
    """
    in_layers = shapes_of({**accepted.layers, **elsewhere_in(accepted)})
    check_same_curvature(covers, in_layers, held, where=where)
    together = Retained(importance={**held.covered, **covers}, num_tasks=held.num_tasks)
    check_covered(list(trainable_parameters(model)), together, new_parameters=new_parameters, where=where)


def anchors_given(
    anchors: TensorMap,
    names: Iterable[str],
    model: nn.Module,
    *,
    mechanism: Mechanism,
    checkpoint: str | None,
    where: str,
) -> dict[str, Tensor]:
    """Name -> the weights at which a task was closed elsewhere.

    Raises:
        OptionError: the mechanism has no anchors, or they are to be found in a checkpoint.
        ParameterMismatchError: names or shapes that do not match the model.
    """
    if not mechanism.anchored:
        raise OptionError(f"{where}: {mechanism.name} keeps no anchors. Leave anchors= out, or hold with EWC.")
    if checkpoint is not None:
        raise OptionError(
            f"{where}: anchors= are given, and the keeper is to find today's weights in {checkpoint!r}. Build it "
            "without anchors=."
        )
    return weights_elsewhere(anchors, names, model, where=where, what="weights of anchors=")
