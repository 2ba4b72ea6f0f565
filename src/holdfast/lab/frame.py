"""Finished runs as a table of pandas: what a notebook works with, and what the report is made from."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from holdfast.errors import OptionError
from holdfast.lab.folder import TRIAL, purpose_of
from holdfast.lab.packages import check_installed
from holdfast.lab.result import Folders, RunResult, find_runs
from holdfast.lab.trials import Trials, trials_in

DataFrame = Any
"""A table of pandas, which has no types for a checker, and is imported where one is made."""

FIGURES = (
    "accuracy",
    "validation",
    "forgetting",
    "backward_transfer",
    "forward_transfer",
    "learning_accuracy",
    "seconds",
    "seconds_training",
    "seconds_importance",
    "num_parameters",
    "held_bytes",
)
"""Columns of numbers: accuracies and their differences are fractions; times are in seconds."""

DRAWING = ("frechet_distance", "reverse_accuracy", "judge_accuracy")
"""Columns of numbers that only runs have which learned to draw."""

ARRAYS = ("average_accuracy", "validation_accuracy", "baseline_accuracy", "accuracy_matrix")
"""Columns of arrays, [T] or [T, T], where T is the number of tasks."""

IDENTITY = ("stream", "scenario", "method", "seed", "num_tasks")
ABOUT = ("purpose", "keeper", "versions", "folder")


def results(folders: Folders) -> DataFrame:
    """Every finished run at or below a folder, or several, as a table with one row per run.

    Args:
        folders: searched for `result.json`; a file is taken as a result itself, whatever its name.

    Returns:
        A DataFrame sorted by stream, method and seed. Its columns: `stream`, `scenario`, `method`, `seed` and
        `num_tasks`; the run's settings, each under its own name; the figures of `FIGURES`, of which `accuracy` and
        `validation` are the averages over all tasks after the last one; of runs that learned to draw those of
        `DRAWING`; the arrays of `ARRAYS`; `purpose`, which is "quick" for a run of a recipe's small version, "trial"
        for a run of a sweep whose setting was not chosen, and else empty; `keeper`, what the keeper said at the end;
        `versions`; and `folder`, where the run stands. What a run did not record is missing (NaN, NA or None).

    Raises:
        FileFormatError: a folder is missing, holds no finished run, or holds a damaged file.
        OptionError: no folder is given, what is given is no path, or pandas is not installed.
    """
    check_installed("pandas", what="results are made a table", extra="report")
    found = find_runs(folders)
    return runs_table([result for _, result in found], paths=[path for path, _ in found])


def task_accuracies(runs: DataFrame) -> DataFrame:
    """The accuracy matrices in long form: one row per run, task learned, and task tested.

    Args:
        runs: as `results` has them.

    Returns:
        The columns of `runs` without its arrays, and `after_task` and `on_task`, which count from 1, and
        `task_accuracy`, a fraction.

    Raises:
        OptionError: what is given is no such table.
    """
    if not hasattr(runs, "columns") or not set(ARRAYS) <= set(runs.columns):
        raise OptionError("task_accuracies: no table of runs; expected what holdfast.lab.results(folder) gives.")
    sizes = [len(matrix) for matrix in runs["accuracy_matrix"]]
    long = runs.drop(columns=list(ARRAYS)).loc[runs.index.repeat([size**2 for size in sizes])]
    tasks = [np.indices((size, size)).reshape(2, -1) + 1 for size in sizes]
    after, on = np.concatenate(tasks, axis=1) if tasks else np.empty((2, 0), int)
    values = [value for matrix in runs["accuracy_matrix"] for value in np.ravel(matrix)]
    return long.assign(after_task=after, on_task=on, task_accuracy=np.asarray(values, float)).reset_index(drop=True)


def runs_table(found: Iterable[RunResult], *, paths: Sequence[Path] | None = None) -> DataFrame:
    """Results as a table; see `results`.

    Args:
        found: the results.
        paths: the file that each was read from; None for results that were read from none.
    """
    check_installed("pandas", what="results are made a table", extra="plots")
    import pandas as pd

    found = list(found)
    places = [None] * len(found) if paths is None else paths
    rows = [_row(result, path) for result, path in zip(found, places, strict=True)]
    settings = dict.fromkeys(name for row in rows for name in row if name not in _KNOWN)
    drawing = [name for name in DRAWING if any(name in row for row in rows)]
    order = [*IDENTITY, *settings, *FIGURES, *drawing, *ARRAYS, *ABOUT]
    table = pd.DataFrame({name: _column([row.get(name) for row in rows]) for name in order})
    _mark_trials(table)
    return table


def settings_in(runs: DataFrame) -> list[str]:
    """The columns that hold settings, in their order."""
    return [str(name) for name in runs.columns if name not in _KNOWN]


def is_missing(value: Any) -> bool:
    """Whether a cell says that nothing was recorded, or that the setting was left out."""
    return value is None or type(value).__name__ == "NAType" or value != value


ADDED = ("configuration", "variant", "num_variants", "family", "shade", "num_shades", "chosen")
"""Columns that `holdfast.lab.groups` adds."""

_KNOWN = {*IDENTITY, *FIGURES, *DRAWING, *ARRAYS, *ABOUT, *ADDED}


def _row(result: RunResult, path: Path | None) -> dict[str, Any]:
    settings = {name: value for name, value in result.config.items() if name not in IDENTITY}
    drawn = {name: value for name, value in result.generation.items() if name in DRAWING}
    if "frechet_distance" in drawn:
        drawn["frechet_distance"] = drawn["frechet_distance"][-1]
    figures = {name: getattr(result, name) for name in FIGURES if name not in ("accuracy", "validation")}
    return {
        **{name if name not in _KNOWN else f"setting_{name}": value for name, value in _flat(settings)},
        "stream": result.stream,
        "scenario": result.scenario,
        "method": result.method,
        "seed": result.seed,
        "num_tasks": len(result.average_accuracy),
        "accuracy": result.final_accuracy,
        "validation": result.validation_accuracy[-1],
        **figures,
        **drawn,
        **{name: np.array(getattr(result, name)) for name in ARRAYS},
        "purpose": "" if path is None else purpose_of(path.parent),
        "keeper": result.keeper,
        "versions": ", ".join(f"{name} {version}" for name, version in sorted(result.versions.items())),
        "folder": None if path is None else str(path.parent),
    }


def _flat(settings: Mapping[str, Any], *, above: str = "") -> Iterator[tuple[str, Any]]:
    """Settings with those of inner records under names such as "outer.inner", and lists as tuples."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, above=f"{above}{name}.")
        elif isinstance(value, list | tuple):
            yield above + name, tuple(each if _is_plain(each) else json.dumps(each) for each in value)
        else:
            yield above + name, value


def _is_plain(value: Any) -> bool:
    return not isinstance(value, Mapping | list)


def _column(values: list[Any]) -> Any:
    """A column whose numbers stay whole where all are, though some are missing."""
    import pandas as pd

    kinds = {type(value) for value in values if value is not None}
    if kinds == {int} and all(abs(value) < 2**63 for value in values if value is not None):
        return pd.array(values, dtype="Int64") if None in values else np.array(values, dtype=np.int64)
    if kinds and kinds <= {int, float}:
        return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    return pd.Series(values, dtype=bool if kinds == {bool} and None not in values else object)


def _mark_trials(table: DataFrame) -> None:
    """Note the runs that a sweep in the folder above them tried and did not choose."""
    above = ["" if folder is None else os.path.dirname(folder) for folder in table["folder"]]
    known: dict[str, list[Trials]] = {folder: trials_in(Path(folder)) for folder in set(above) - {""}}
    for place, (folder, row) in enumerate(zip(above, table.to_dict("records"), strict=True)):
        if any(trials.rejected(row) for trials in known.get(folder, ())):
            table.loc[place, "purpose"] = TRIAL
