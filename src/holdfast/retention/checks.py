"""What a keeper is given to hold, looked at whole before any of it is taken: a refusal changes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.errors import FileFormatError, NotFiniteError, OptionError, ParameterMismatchError
from holdfast.files import check_described
from holdfast.memory import Retained
from holdfast.records import check_importance_values, check_shapes, check_tensors
from holdfast.tensors import TensorMap, all_parameters, local, shard

_AGAIN = "Save the keeper again, or take an older copy."

NUMBERS = {
    **dict.fromkeys(("num_tasks", "first_targets"), "a whole number >= 0"),
    **dict.fromkeys(("constant", "start"), "a finite number"),
    "largest": "a finite number >= 0",
    "nats_per_unit": "a finite number >= 0, or null",
    "scatter": "a finite number >= 0, or null",
}
"""The fields of `Retained` that are no tensors, and what they must be."""

SINCE = {"scatter": None}
"""Those that older files lack, and what they are then."""


def check_finite(tensors: TensorMap, *, where: str, what: str, remedy: str) -> None:
    """Raise `NotFiniteError` naming every tensor with a NaN or infinite entry; `what` they are."""
    bad = [f"{name!r} ({_num_bad(t)} of {t.numel()} entries)" for name, t in tensors.items() if not _is_finite(t)]
    if bad:
        raise NotFiniteError(f"{where}: {what} that are NaN or infinite: {', '.join(bad)}. {remedy}")


def check_anchors(weights: TensorMap, *, where: str, sum_of: Callable[[Iterable[Tensor]], float] | None) -> None:
    """Raise `NotFiniteError` where weights that are to become anchors are NaN or infinite.

    Args:
        weights: this process's, by name.
        where: for the message.
        sum_of: adds up the terms of all processes where the model is sharded, so that all of them raise; else None.
    """
    remedy = "A NaN anchor would spread at the first step. Go back to a checkpoint from before the training diverged."
    mine = sum(not _is_finite(weight) for weight in weights.values())
    if sum_of is not None and weights:
        device = next(iter(weights.values())).device
        if sum_of([torch.tensor(float(mine), device=device)]) and not mine:
            raise NotFiniteError(f"{where}: weights of another process's shards are NaN or infinite. {remedy}")
    if mine:
        check_finite(weights, where=where, what="weights", remedy=remedy)


def weights_elsewhere(
    given: TensorMap, names: Iterable[str], model: nn.Module, *, where: str, what: str
) -> dict[str, Tensor]:
    """Weights of another time for parameters of the model, beside these: of a sharded model this process's own.

    Args:
        given: name -> weights, whole.
        names: of all that are needed.
        model: the model.
        where: for messages.
        what: these weights are, likewise.

    Raises:
        ParameterMismatchError: some are missing, no tensors or of another shape.
    """
    needed = list(dict.fromkeys(names))
    if missing := [name for name in needed if name not in given]:
        raise ParameterMismatchError(
            f"{where}: the {what} lack {', '.join(map(repr, missing))}. Give them under the names of the bare model's "
            "state_dict()."
        )
    found = {name: given[name] for name in needed}
    check_tensors(found, where=where, error=ParameterMismatchError)
    check_shapes(found, model, where=where, remedy="Give the weights of this model.")
    parameters = all_parameters(model)
    return {name: shard(value.detach(), parameters[name]) for name, value in found.items() if name in parameters}


def check_notes(tensors: TensorMap, notes: Any, *, parts: Iterable[str], mechanism: str, where: str) -> None:
    """Raise `FileFormatError` where tensors or notes are not as `Keeper.state` gave them.

    Args:
        tensors: by "part/name".
        notes: a mapping with "held" and "progress".
        parts: that are known.
        mechanism: name of that of the keeper that takes them.
        where: for the message.
    """
    check_tensors(tensors, where=where, error=FileFormatError)
    unknown = sorted({name for name in tensors if name.partition("/")[0] not in set(parts)})
    if unknown:
        raise FileFormatError(f"{where}: {', '.join(map(repr, unknown))} are no tensors of a keeper's state. {_AGAIN}")
    for part in ("held", "progress"):
        if not isinstance(notes, Mapping) or not isinstance(notes.get(part), Mapping):
            raise FileFormatError(f"{where}: the notes have no {part!r}, or it is damaged. {_AGAIN}")
    check_described({"format_version": 2, **notes}, where=where)  # states bore none before version 3
    if (found := notes.get("mechanism", mechanism)) != mechanism:
        raise FileFormatError(f"{where}: this is the state of a keeper of {found!r}. Load it into one of {found!r}.")
    check_numbers(notes["held"], where=where)
    if more := sorted(set(notes["held"]) - set(NUMBERS)):
        raise FileFormatError(f"{where}: 'held' has {', '.join(map(repr, more))}, which no keeper holds. {_AGAIN}")


def check_numbers(numbers: Mapping[str, Any], *, where: str) -> None:
    """Raise `FileFormatError` unless every field of `Retained` that is no tensor is a number that it can be."""
    found = {name: numbers.get(name, SINCE.get(name, "missing")) for name in NUMBERS}
    wrong = [
        f"{name} is {value!r:.40}, expected {NUMBERS[name]}"
        for name, value in found.items()
        if not _is_in_range(value, NUMBERS[name])
    ]
    if wrong:
        raise FileFormatError(f"{where}: 'held' is damaged: {'; '.join(wrong)}. {_AGAIN}")


def check_retained(held: Retained, *, anchored: bool, where: str) -> None:
    """Raise where what was read of past tasks cannot be held.

    Args:
        held: whole, as it was read; its numbers have passed `check_numbers`.
        anchored: whether this mechanism has anchors.
        where: for the message.

    Raises:
        NotFiniteError: importances that are not finite numbers >= 0, or anchors that are not finite.
        FileFormatError: importances without a task, or a parameter without its anchor.

    Cost: one pass over what is in memory as tensors; codes of fewer bits are finite by their form.
    """
    check_importance_values({n: v for n, v in held.importance.items() if isinstance(v, Tensor)}, where=where)
    anchors = {name: value for name, value in held.anchors.items() if isinstance(value, Tensor)}
    check_finite(anchors, where=where, what="anchors", remedy=_AGAIN)
    if held.num_tasks == 0 and held.covered:
        raise FileFormatError(f"{where}: num_tasks is 0, and importances are held. {_AGAIN}")
    missing = [name for name in held.covered if name not in held.anchors] if anchored else []
    if missing:
        raise FileFormatError(f"{where}: {', '.join(map(repr, missing))} have no anchor. {_AGAIN}")


def check_extra(extra: Mapping[str, TensorMap], shapes: Mapping[str, torch.Size], *, where: str) -> None:
    """Raise `FileFormatError` where tensors beside what is held have another shape than their parameter, or are NaN.

    Args:
        extra: part -> name -> tensor.
        shapes: name -> that of the parameter, or of its layer as one matrix, as the part has it.
        where: for the message.
    """
    for part, tensors in extra.items():
        wrong = [
            f"{name!r} {tuple(t.shape)}"
            for name, t in tensors.items()
            if (f"{part}/{name}" in shapes and t.shape != shapes[f"{part}/{name}"]) or not _is_finite(t)
        ]
        if wrong:
            raise FileFormatError(f"{where}: {part} of another shape, or not finite: {', '.join(wrong)}. {_AGAIN}")


def check_progress(progress: Mapping[str, Any], *, names: Iterable[str], where: str) -> tuple[list[int], list[int]]:
    """The steps of every attached optimizer, and how many of them were made up for between two.

    Of a keeper saved before optimizers were told apart: of all together.

    Raises:
        FileFormatError: it lacks one of the figures, its own or those of these names, or has one of a wrong type.
    """
    own = ("num_steps", "pinned", "pull_ratio")
    figures = {name: progress.get(name, "missing") for name in (*own, *names)}
    wrong = {name: value for name, value in figures.items() if not _is_progress(name, value)}
    steps = progress.get("steps", [figures["num_steps"]])
    if not isinstance(steps, list) or not all(_is_count(value, whole=True) for value in steps):
        wrong["steps"] = steps = []
    made_up = progress.get("made_up", [0] * len(steps))
    beside = zip(made_up, steps) if isinstance(made_up, list) and len(made_up) == len(steps) else [(-1, 0)]
    if not all(_is_count(count, whole=True) and count <= most for count, most in beside):
        wrong["made_up"] = made_up
    if wrong:
        listed = ", ".join(f"{name}={value!r}" for name, value in wrong.items())
        raise FileFormatError(f"{where}: the progress is damaged: {listed}; expected numbers >= 0. {_AGAIN}")
    return steps, made_up


def check_mechanism_progress(progress: Mapping[str, Any], *, taken: Iterable[str], where: str) -> None:
    """Raise `OptionError` for what a mechanism says of its progress and no file could give back.

    Args:
        progress: as the mechanism gave it.
        taken: names of the keeper's own figures.
        where: for the message.
    """
    wrong = {n: v for n, v in progress.items() if n in set(taken) or not _is_count(v, whole=False)}
    if wrong:
        listed = ", ".join(f"{name}={value!r:.40}" for name, value in wrong.items())
        raise OptionError(
            f"{where}: its progress() gives {listed}; expected finite numbers >= 0, under names other than "
            f"{', '.join(taken)}."
        )


def _is_progress(name: str, value: Any) -> bool:
    if name in ("pinned", "pull_ratio"):  # only told, and of a training that diverged they may be anything
        return value is None or _is_number(value)
    return _is_count(value, whole=name == "num_steps")


def _is_in_range(value: Any, expected: str) -> bool:
    if value is None:
        return expected.endswith("null")
    if ">= 0" in expected:
        return _is_count(value, whole="whole" in expected)
    return _is_number(value) and math.isfinite(value)


def _is_count(value: Any, *, whole: bool) -> bool:
    """Whether it is a finite number >= 0, and a whole one where asked."""
    return _is_number(value) and 0 <= value < math.inf and (isinstance(value, int) or not whole)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_finite(tensor: Tensor) -> bool:
    tensor = local(tensor)
    if not tensor.numel() or not tensor.is_floating_point():
        return True
    low, high = tensor.aminmax()  # NaN passes through
    return bool(-math.inf < low) and bool(high < math.inf)


def _num_bad(tensor: Tensor) -> int:
    return int((~torch.isfinite(local(tensor))).sum())
