"""Results of a training loop of your own, in the form that the report takes."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypedDict, get_type_hints

from holdfast.choices import check_choice
from holdfast.errors import OptionError
from holdfast.files.typed import Amount, Count, Fraction, Within, listed_mistakes, typed
from holdfast.lab.configured import folder_name, settings_hash
from holdfast.lab.folder import RunFolder, versions
from holdfast.lab.result import RunResult, misshapen, summarise
from holdfast.likelihoods.masks import Scenario

_NAMES = ("stream", "method")


class _Given(TypedDict):
    """What is to be recorded, and of what type."""

    stream: str
    method: str
    seed: Annotated[int, Within(0, 2**31 - 1)]
    accuracy: list[list[Fraction]]
    validation: list[list[Fraction]]
    baseline: list[Fraction] | None
    settings: dict[str, Any]
    seconds: Amount
    num_parameters: Count | None
    held_bytes: Count | None


class _Recorded:
    """Those of a run that was not configured here."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = dict(settings)

    def to_dict(self) -> dict[str, Any]:
        return self._settings

    def defaults(self) -> dict[str, Any]:
        return {}


def record(
    *,
    stream: str,
    method: str,
    accuracy: Sequence[Sequence[float]],
    seed: int = 0,
    validation: Sequence[Sequence[float]] | None = None,
    baseline: Sequence[float] | None = None,
    scenario: Scenario = "domain",
    settings: Mapping[str, Any] | None = None,
    seconds: float = 0.0,
    num_parameters: int | None = None,
    held_bytes: int | None = None,
    output: str | os.PathLike[str] = "runs",
) -> Path:
    """Write what a run found that another program than `holdfast run` did; `holdfast report` shows it beside others.

    Args:
        stream: name of the task stream; runs of one name and scenario are compared.
        method: name of the method.
        accuracy: T x T, row t: test accuracy on every task after task t, 0..1.
        seed: of the run.
        validation: row t: validation accuracies on tasks 0..t (or on all) after task t; None: the test accuracies.
        baseline: of the untrained network on every task, for the forward transfer; None: zeros.
        scenario: what was to be told at test time.
        settings: of the run, JSON values: runs that differ in nothing but the seed are averaged.
        seconds: of the run.
        num_parameters: weights of the model.
        held_bytes: of what the method keeps beside model and optimizer.
        output: parent of the run folders.

    Returns:
        The run's folder, stream-method-seed-hash; a result that it held is replaced.

    Raises:
        OptionError: figures that do not fit together.
        OutputError: the folder cannot be written, or is somebody else's.
    """
    check_choice("scenario", scenario, ("task", "domain", "class"))
    given = {"stream": stream, "method": method, "seed": seed, "accuracy": _listed(accuracy)}
    given |= {"validation": _listed(accuracy if validation is None else validation), "baseline": _listed(baseline)}
    given |= {"settings": dict(settings) if isinstance(settings, Mapping) else {} if settings is None else settings}
    given |= {"seconds": seconds, "num_parameters": num_parameters, "held_bytes": held_bytes}
    values, mistakes = typed(given, get_type_hints(_Given, include_extras=True))
    mistakes += [
        f"{name} is {given[name]!r}, expected a name" for name in _NAMES if not re.search(r"\w", str(given[name]))
    ]
    if mistakes:
        raise OptionError(f"record: {listed_mistakes(mistakes)}.")
    told = {"stream": stream, "method": method, "seed": seed, "scenario": scenario}
    if taken := sorted(told.keys() & values["settings"].keys()):
        raise OptionError(f"record: settings hold {taken[0]!r}, which is an argument. Leave it out of them.")
    told |= values["settings"]
    try:
        json.dumps(told, allow_nan=False, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise OptionError(f"record: settings are no JSON values by name: {error}.") from error
    matrix = values["accuracy"]
    if not matrix or any(len(row) != len(matrix) for row in matrix):
        lengths = [len(row) for row in matrix]
        raise OptionError(f"record: accuracy has rows of {lengths}; expected a square, a row and a column a task.")
    seen = [row[: t + 1] for t, row in enumerate(values["validation"])]
    summary = summarise(matrix, seen, values["baseline"] or [0.0] * len(matrix))
    if mistakes := misshapen(summary):
        raise OptionError(f"record: {mistakes[0]}.")
    name = "-".join((folder_name(stream), folder_name(method), str(seed), settings_hash(told, {})))
    folder = RunFolder(Path(output) / name, _Recorded(told))
    result = RunResult(
        stream=stream,
        scenario=scenario,
        method=method,
        seed=seed,
        **summary,
        seconds=values["seconds"],
        seconds_training=values["seconds"],
        config=told,
        versions=versions(),
        num_parameters=num_parameters,
        held_bytes=held_bytes,
    )
    folder.open()
    result.save(folder.result)
    return folder.path


def _listed(value: Any) -> Any:
    """Arrays, tensors and sequences as lists."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return [_listed(part) for part in value] if isinstance(value, list | tuple) else value
