"""What is known of runs: their folders, and the compact files in which results are kept."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from holdfast.errors import FileFormatError, OptionError, OutputError
from holdfast.files import check_output, holds, read_sealed, seal_of, write_sealed, write_text
from holdfast.files.sealed import SEAL
from holdfast.files.typed import Amount, Count, Fraction, listed_mistakes, typed
from holdfast.lab.config import RunConfig
from holdfast.lab.result import RunResult, misshapen, summarise
from holdfast.lab.streams import STREAMS
from recipes.outcome import Outcome

RESULTS, DIVERGED = "results.json", "diverged.json"


def committed(folder: Path) -> dict[RunConfig, Outcome]:
    """Every run that the results below a folder hold: `*/results.json`, and `*/runs/*.json` as runs write them.

    Runs of generation, which no recipe asks for, are passed over.

    Raises:
        FileFormatError: a file is damaged.
    """
    found: dict[RunConfig, Outcome] = {}
    for path in sorted(folder.glob("*/runs/*.json")):
        result = RunResult.load(path)
        if not result.generation:
            config = RunConfig.from_dict(result.config)
            found[config] = Outcome(config, result)
    for path in sorted(folder.glob(f"*/{RESULTS}")):
        found |= {outcome.config: outcome for outcome in read_outcomes(path)}
    return found


def finished(configs: Iterable[RunConfig], output: Path) -> dict[RunConfig, Outcome]:
    """Those of the runs whose folders in `output` hold a result, or the note that training diverged.

    Raises:
        FileFormatError: a file is damaged.
    """
    found = {}
    for config in configs:
        folder = output / config.name
        if (folder / "result.json").exists():
            found[config] = Outcome(config, RunResult.load(folder / "result.json"))
        elif (folder / DIVERGED).exists():
            found[config] = Outcome(config, None, _why_diverged(folder / DIVERGED))
    return found


def note_divergence(config: RunConfig, output: Path, message: str) -> None:
    """Write into a run's folder that its training diverged, so that it is not tried again."""
    write_sealed(output / config.name / DIVERGED, {"diverged": message})


def _why_diverged(path: Path) -> str:
    found, mistakes = typed(read_sealed(path), {"diverged": str})
    if mistakes:
        raise FileFormatError(f"{path} is damaged: {listed_mistakes(mistakes)}. Delete it, and the run is tried again.")
    return found["diverged"]


def check_results(folder: Path) -> None:
    """Refuse the folder of a recipe's results, before any work, unless it is new, empty, or holds results of a recipe.

    Raises:
        OutputError: see `holdfast.files.check_output`.
    """
    check_output(folder, is_ours=lambda found: holds(found / RESULTS, ("recipe", "runs", "measured")))


def write_outcomes(path: Path, head: Mapping[str, Any], outcomes: Sequence[Outcome], measured: Sequence[Any]) -> None:
    """Write a compact file of results: what stands in `head`, and a line a run or measurement.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error}. Choose a folder that can be written.") from error
    runs = [_packed(outcome) for outcome in outcomes]
    head = {**head, SEAL: seal_of({**head, "runs": runs, "measured": measured})}
    lines = [f"  {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}," for name, value in head.items()]
    lines += [_listed("runs", runs) + ",", _listed("measured", measured)]
    write_text(path, "{\n" + "\n".join(lines) + "\n}\n")


def read_outcomes(path: Path) -> list[Outcome]:
    """The runs of a compact file.

    Raises:
        FileFormatError: it is damaged.
    """
    runs = read_compact(path)["runs"]
    return [_unpacked(entry, where=f"{path}, run {number}") for number, entry in enumerate(runs, start=1)]


def read_measured(path: Path) -> dict[int, Any]:
    """The measurements of a compact file by their seed; none where there is no file.

    Raises:
        FileFormatError: it is damaged.
    """
    if not path.exists():
        return {}
    measured = read_compact(path)["measured"]
    mistakes = [told for entry in measured for told in typed(entry, {"seed": Count})[1]]
    if mistakes:
        raise FileFormatError(
            f"{path} is no file of results: {listed_mistakes(mistakes)}. Delete it and reproduce again."
        )
    return {entry["seed"]: entry for entry in measured}


def read_compact(path: Path) -> dict[str, Any]:
    """The content of a compact file: "runs" and "measured", each a list of objects, and "date", "" where it is missing.

    Raises:
        FileFormatError: it is damaged or was edited.
    """
    hints = {"runs": list[dict[str, Any]], "measured": list[dict[str, Any]], "date": str}
    content = {"date": "", **read_sealed(path)}
    found, mistakes = typed(content, hints)
    if mistakes:
        raise FileFormatError(
            f"{path} is no file of results: {listed_mistakes(mistakes)}. Delete it and reproduce again."
        )
    return found


def _listed(name: str, entries: Sequence[Any]) -> str:
    rows = ",\n".join(f"    {json.dumps(entry)}" for entry in entries)
    return f'  "{name}": [\n{rows}\n  ]' if entries else f'  "{name}": []'


def _packed(outcome: Outcome) -> dict[str, Any]:
    config = outcome.config
    usual = {**config.defaults(), "seed": config.seed}
    settings = {name: value for name, value in config.to_dict().items() if name not in usual or value != usual[name]}
    entry: dict[str, Any] = {"config": settings, "seed": config.seed}
    result = outcome.result
    if result is None:
        return entry | {"diverged": outcome.diverged}
    return entry | {
        "average_accuracy": _rounded(result.average_accuracy),
        "validation_accuracy": _rounded(result.validation_accuracy),
        "accuracy_matrix": [_rounded(row) for row in result.accuracy_matrix],
        "baseline_accuracy": _rounded(result.baseline_accuracy),
        "seconds": [round(getattr(result, name), 1) for name in _SECONDS],
        "versions": result.versions,
    }


_SECONDS = ("seconds", "seconds_training", "seconds_importance")


_RUN = {"config": dict[str, Any], "seed": Count}
_FIGURES = {
    "average_accuracy": list[Fraction],
    "validation_accuracy": list[Fraction],
    "accuracy_matrix": list[list[Fraction]],
    "baseline_accuracy": list[Fraction],
    "seconds": list[Amount],
    "versions": dict[str, str],
}


def _unpacked(packed: Mapping[str, Any], *, where: str) -> Outcome:
    is_diverged = "diverged" in packed
    entry, mistakes = typed(packed, {**_RUN, **({"diverged": str} if is_diverged else _FIGURES)})
    if not mistakes and not is_diverged:
        mistakes = misshapen(entry)
        if len(entry["seconds"]) != len(_SECONDS):
            mistakes.append(f"seconds has {len(entry['seconds'])} entries, expected {len(_SECONDS)}")
    if mistakes:
        raise FileFormatError(
            f"{where} is no result: {listed_mistakes(mistakes)}. Delete the file and reproduce again."
        )
    try:
        config = RunConfig.from_dict({**entry["config"], "seed": entry["seed"]})
    except (OptionError, TypeError) as error:
        raise FileFormatError(f"{where} is no result: {error} Delete the file and reproduce again.") from error
    if is_diverged:
        return Outcome(config, None, entry["diverged"])
    figures = summarise(entry["accuracy_matrix"], [], entry["baseline_accuracy"])
    figures["validation_accuracy"] = entry["validation_accuracy"]
    return Outcome(
        config,
        RunResult(
            stream=config.stream,
            scenario=config.scenario or STREAMS[config.stream].scenario,
            method=config.method,
            seed=config.seed,
            **figures,
            **dict(zip(_SECONDS, entry["seconds"], strict=True)),
            config=config.to_dict(),
            versions=entry["versions"],
        ),
    )


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 4) for value in values]
