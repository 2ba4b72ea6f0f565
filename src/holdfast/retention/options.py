"""The options of every keeper, and those that have a meaning only together or only for some importances."""

from __future__ import annotations

import math
import os
from typing import Literal, TypedDict

from torch.optim import LBFGS, Optimizer

from holdfast.curvature import Accumulate, Measured, Weighting
from holdfast.curvature.rules import check_rule
from holdfast.errors import OptionError
from holdfast.memory import AnchorForm, Forms, ImportanceForm
from holdfast.retention.mechanism import Mechanism
from holdfast.retention.statistics import Statistics

NewParameters = Literal["error", "free"]


class KeeperOptions(TypedDict, total=False):
    """The options of every keeper; `Keeper` says what they mean."""

    accumulate: Accumulate
    weighting: Weighting
    new_parameters: NewParameters
    importance_dtype: ImportanceForm
    anchor_dtype: AnchorForm
    anchors: str | os.PathLike[str] | None
    offload: Literal["cpu"] | None
    statistics: Statistics
    probe_every: int | Literal["auto"]
    log_every: int


def check_rule_of(accumulate: Accumulate, mechanism: Mechanism) -> None:
    """Raise `OptionError` where the tasks of this mechanism cannot be merged by this rule."""
    where = mechanism.name
    check_rule(accumulate, where=where)
    if accumulate == "per_task" and not mechanism.anchored:
        raise OptionError(f'{where}: accumulate="per_task" joins anchors, and {where} has none. Use "sum".')


def check_implicit(pull: str, *, strength: float | None, budget: float | None, every: int | str) -> None:
    """Raise `OptionError` where an option of EWC needs the implicit pull, and this is another."""
    if budget is not None and pull != "implicit":
        raise OptionError(f'EWC: a budget is kept by projection; pull={pull!r} has no part in it. Use pull="implicit".')
    if strength == math.inf and pull != "implicit":
        raise OptionError(f'EWC: an infinite strength needs pull="implicit"; pull is {pull!r}.')
    if every != 1 and pull != "implicit":
        raise OptionError(f'EWC: every={every!r} belongs to pull="implicit"; found pull={pull!r}. Leave it at 1.')


def check_on_disk(path: str | os.PathLike[str], forms: Forms, accumulate: Accumulate) -> None:
    """Raise `OptionError` where anchors in a checkpoint contradict another option of EWC."""
    if not isinstance(path, str | os.PathLike):
        raise OptionError(f"EWC: anchors is {path!r}; expected the path of a safetensors checkpoint, or None.")
    if forms.anchors != "float32":
        raise OptionError(
            f"EWC: anchor_dtype={forms.anchors!r} is a form in memory, and anchors={os.fspath(path)!r} are on disk as "
            "they are there. Leave out one of them."
        )
    if accumulate == "per_task":
        raise OptionError(
            f'EWC: accumulate="per_task" moves anchors to where no checkpoint has them; found anchors='
            f'{os.fspath(path)!r}. Keep them in memory, in 16 bits with anchor_dtype="int16", or use "sum".'
        )


def in_nats(importance: Measured, *, where: str) -> Measured:
    """The importance in nats, as a budget needs it that nothing is measured for.

    Raises:
        OptionError: its factor to nats is not known.
    """
    if importance.info.nats_per_unit is None:
        raise OptionError(
            f"{where}: a budget is in nats, and the unit of this {importance.info.kind!r} importance "
            f"({importance.info.unit}) has no known factor to nats. Pass probes= (hf.probes_of), on which the rise is "
            "measured; or calibrate the importance with hf.calibrated; or build the keeper with strength=."
        )
    return importance if importance.info.nats_per_unit == 1 else importance * importance.info.nats_per_unit


def laplace_warning(importance: Measured, *, where: str) -> str:
    """What to say of a strength of 1.0, which is meant for nats, over an importance in another unit; else empty."""
    info = importance.info
    if info.nats_per_unit == 1 or info.unit.split(" ")[0] in ("1", _FISHER):
        return ""  # of the user's own, whoever made them knows the unit
    remedy = (
        f"strength={info.nats_per_unit:.3g} is the same in its unit"
        if info.nats_per_unit is not None
        else "hf.calibrated(model, importance, data) measures what it is in its unit: strength=found.info.nats_per_unit"
    )
    return (
        f"{where}: a strength of 1.0 is meant for importances in nats, and the unit of this {info.kind!r} importance "
        f"is {info.unit}: it may freeze the model, or hold nothing. {remedy}. Or try others by factors of ten on "
        "validation data, or build the keeper with budget= and retain with probes."
    )


_FISHER = "nats/weight^2"
"""The unit of 1.0 = 1.0 nats, whatever it was multiplied with by somebody who knows."""


def own_weights_warning(kind: str, key: str | None = None) -> str:
    """What to say of an optimizer that keeps weights beside the model's, in its state under `key` if known."""
    state = "" if key is None else f", in its state under {key!r},"
    return (
        f"{kind} keeps weights of its own beside the model's{state} and goes on from them. They are not held: what it "
        "saves or returns to is not what the keeper holds. Train with an optimizer that keeps none, such as AdamW."
    )


def unheld_warning(where: str, kinds: str) -> str:
    """What to say where weights have moved and were not held; `kinds`: the attached optimizers."""
    return (
        f"{where}: the weights have moved since the last backward pass, and not by a step() that could be held "
        f"(attached: {kinds}). Nothing holds them. Attach the optimizer whose step() moves them: the one within, where "
        "another takes the steps by hand, and every one that trains the model."
    )


def moved_around_warning(where: str, kind: str, inner: str) -> str:
    """What to say of an optimizer of this kind that changes weights after each step of the inner one."""
    return (
        f"{where}: {kind} changes the weights after each step() of the {inner} within it, and what it adds is not "
        f"held. Let the {inner} take the steps alone (WSAM: decouple=False), or train with another optimizer."
    )


def is_unsteady(optimizer: Optimizer) -> bool:
    """Whether it is LBFGS without a line search, which pulls after its steps make diverge."""
    return isinstance(optimizer, LBFGS) and all(group["line_search_fn"] is None for group in optimizer.param_groups)


def unsteady_warning(*, others: str) -> str:
    """What to say then; `others`: what the mechanism offers besides, or nothing."""
    return (
        "LBFGS without a line search is not stable here: it takes what is pulled back after its steps for curvature of "
        f'the loss, and the weights may grow without bound. Use {others}LBFGS with line_search_fn="strong_wolfe", '
        "which stays bounded and may stop short of the balance between old and new, or another optimizer."
    )


def no_rate(where: str, kind: str, found: str, *, remedy: str) -> str:
    """What to say of an optimizer whose groups have no learning rate, where the metric of its steps is needed."""
    return (
        f"{where}: the parameter groups of this {kind} have no learning rate to take the metric of its steps from "
        f"({found}). {remedy}Give the optimizer a learning rate (Adafactor: lr=1e-3, relative_step=False)."
    )
