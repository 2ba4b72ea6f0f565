"""The outcome of a run, as it stands in its folder and as reports read it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, TypedDict, get_type_hints

from holdfast.errors import FileFormatError, OptionError
from holdfast.files import read_sealed, write_sealed
from holdfast.files.typed import Amount, Change, Count, Fraction, Within, listed_mistakes, typed
from holdfast.lab import metrics

RESULT = "result.json"
"""The name of its file in a run's folder."""


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a finished run found; `result.json` holds the same.

    Attributes:
        stream: name of the stream.
        scenario: "task", "domain" or "class".
        method: name of the method.
        seed: the run's seed.
        accuracy_matrix: T x T, row t: test accuracy on every task after task t; fractions.
        baseline_accuracy: of the untrained network on every task, for forward transfer.
        average_accuracy: entry t: mean test accuracy over tasks 0..t after task t.
        validation_accuracy: the same on validation data: what tuning may see.
        forgetting: mean over earlier tasks of the best accuracy ever minus the last.
        backward_transfer: mean over earlier tasks of the last accuracy minus that just after learning it.
        forward_transfer: mean over later tasks of the accuracy before learning it minus the untrained one's.
        learning_accuracy: mean accuracy on each task just after learning it.
        seconds: of the whole run, over all its sessions.
        seconds_training: of that, in training steps.
        seconds_importance: of that, measuring importances.
        config: all settings.
        versions: of Python, torch and holdfast.
        keeper: what the keeper said of itself at the end of the last task's training; empty without one.
        num_parameters: weights of the model; None in results of versions that did not count them.
        held_bytes: of what the method keeps beside model and optimizer when the last task is closed: its tensors, and
            the training data of earlier tasks where it learns them again; None as above.
        generation: of a run that learned to draw: "frechet_distance" after each task, "reverse_accuracy",
            "judge_accuracy".
    """

    stream: str
    scenario: str
    method: str
    seed: Count
    accuracy_matrix: list[list[Fraction]]
    baseline_accuracy: list[Fraction]
    average_accuracy: list[Fraction]
    validation_accuracy: list[Fraction]
    forgetting: Change
    backward_transfer: Change
    forward_transfer: Change
    learning_accuracy: Fraction
    seconds: Amount
    seconds_training: Amount = 0.0
    seconds_importance: Amount = 0.0
    config: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    keeper: str = ""
    num_parameters: Count | None = None
    held_bytes: Count | None = None
    generation: dict[str, Any] = field(default_factory=dict)

    @property
    def final_accuracy(self) -> float:
        """Average accuracy after the last task."""
        return self.average_accuracy[-1]

    def save(self, path: Path) -> None:
        """Write it as JSON with a digest, whole or not at all."""
        write_sealed(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> RunResult:
        """Read `result.json`; fields that this version does not know are passed over.

        Raises:
            FileFormatError: the file is missing, damaged or edited, lacks a field, or a field has another type, range
                or shape.
        """
        remedy = "Give a result.json, or a folder that holds runs."
        if path.name == RESULT:
            remedy = "Delete it and run the same command again, which finishes from its checkpoint."
        hints = get_type_hints(cls, include_extras=True)
        optional = {entry.name for entry in fields(cls) if not _is_required(entry)}
        try:
            content = read_sealed(path)
        except FileFormatError as error:
            what = f"complete result ({error})" if path.name == RESULT else "result of a run"
            raise FileFormatError(f"{path} is no {what}. {remedy}") from error
        values, mistakes = typed(content, hints, optional=optional)
        mistakes = mistakes or misshapen(values)
        if mistakes:
            raise FileFormatError(f"{path} is no complete result: {listed_mistakes(mistakes)}. {remedy}")
        return cls(**values)


_PER_TASK = ("accuracy_matrix", "baseline_accuracy", "validation_accuracy")


class _Settings(TypedDict):
    """Of the settings, those that reports reckon with."""

    strength: Annotated[float, Within(0, math.inf)] | None


class _Generation(TypedDict):
    """What every run that learned to draw found."""

    frechet_distance: list[float]
    reverse_accuracy: Fraction
    judge_accuracy: Fraction


def _is_required(entry: Field[Any]) -> bool:
    return entry.default is MISSING and entry.default_factory is MISSING


def misshapen(values: Mapping[str, Any]) -> list[str]:
    """What does not fit together in the fields of a result, which have their types."""
    num_tasks, matrix = len(values["average_accuracy"]), values["accuracy_matrix"]
    if num_tasks == 0:
        return ["average_accuracy is empty, expected an entry for each task"]
    found = [
        f"{name} has {len(values[name])} entries, expected {num_tasks}, as many as average_accuracy"
        for name in _PER_TASK
        if len(values[name]) != num_tasks
    ]
    found += [
        f"accuracy_matrix is not square: row {t} has {len(row)} entries, expected {len(matrix)}"
        for t, row in enumerate(matrix)
        if len(row) != len(matrix)
    ]
    _, settings = typed(values.get("config", {}), get_type_hints(_Settings, include_extras=True), optional=["strength"])
    found += [f"config: {mistake}" for mistake in settings]
    if generation := values.get("generation"):
        _, drawn = typed(generation, get_type_hints(_Generation, include_extras=True))
        found += [f"generation: {mistake}" for mistake in drawn]
    return found


def summarise(
    accuracy_matrix: Sequence[Sequence[float]],
    validation_rows: Sequence[Sequence[float]],
    baseline: Sequence[float],
) -> dict[str, Any]:
    """The figures that follow from the accuracies, under the field names of `RunResult`.

    Args:
        accuracy_matrix: T x T test accuracies.
        validation_rows: row t: validation accuracies on tasks 0..t after task t.
        baseline: the untrained network's test accuracies.
    """
    matrix = [list(row) for row in accuracy_matrix]
    return {
        "accuracy_matrix": matrix,
        "baseline_accuracy": list(baseline),
        "average_accuracy": metrics.average_accuracy(matrix),
        "validation_accuracy": [sum(row) / len(row) for row in validation_rows],
        "forgetting": metrics.forgetting(matrix),
        "backward_transfer": metrics.backward_transfer(matrix),
        "forward_transfer": metrics.forward_transfer(matrix, list(baseline)),
        "learning_accuracy": metrics.learning_accuracy(matrix),
    }


Folders = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]
"""A folder that holds runs, or several; a file is taken as a result itself, whatever its name."""


def find_results(folders: Folders) -> list[RunResult]:
    """Every finished run at or below the given folders, sorted by stream, method and seed; see `find_runs`."""
    return [result for _, result in find_runs(folders)]


def find_runs(folders: Folders) -> list[tuple[Path, RunResult]]:
    """Every finished run at or below the given folders and the file it was read from, by stream, method and seed.

    Args:
        folders: searched for `result.json`; a file is taken as a result itself, whatever its name.

    Raises:
        FileFormatError: a folder is missing, holds no finished run, or holds a damaged result.
        OptionError: no folder is given, or what is given is no path.
    """
    found, given = [], paths_of(folders)
    for folder in given:
        if not folder.exists():
            raise FileFormatError(f"{folder}: no such folder; expected one that holds runs, such as runs/.")
        if not (folder.is_file() or folder.is_dir()):
            raise FileFormatError(f"{folder} is no folder and no file; expected a folder that holds runs, or a result.")
        paths = [folder] if folder.is_file() else sorted(folder.rglob(RESULT))
        found += [(path, RunResult.load(path)) for path in paths]
    if not found:
        listed = ", ".join(map(str, given))
        raise FileFormatError(f"no finished run below {listed}: there is no {RESULT}. Finish one with `holdfast run`.")
    return sorted(found, key=lambda run: (run[1].stream, run[1].method, run[1].seed))


def paths_of(folders: Folders) -> list[Path]:
    """One path or several as a list; raises `OptionError` where there is none, or something else."""
    given = list(folders) if isinstance(folders, Iterable) and not isinstance(folders, str) else [folders]
    wrong = [each for each in given if not isinstance(each, str | os.PathLike) or not os.fspath(each)]
    if wrong or not given:
        told = repr(wrong[0]) if wrong else "none are given"
        raise OptionError(f"results: {told}; expected folders that hold runs, such as runs/, or their result.json.")
    return [Path(each) for each in given]  # type: ignore[arg-type]
