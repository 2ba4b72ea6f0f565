"""Recipes carried out: what is missing is run, and the answer written down."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.errors import FailedRunsError, OptionError
from holdfast.files import write_text
from holdfast.lab.config import RunConfig
from holdfast.lab.folder import note_purpose, versions
from holdfast.lab.parallel import run_all
from holdfast.lab.running import EventCallback
from recipes.findings import Recipe, RecipeFindings
from recipes.lines import Outcomes, once
from recipes.outcome import Outcome
from recipes.page import page
from recipes.store import (
    RESULTS,
    check_results,
    committed,
    finished,
    note_divergence,
    read_compact,
    read_measured,
    read_outcomes,
    write_outcomes,
)

_SIGNS_OF_DIVERGENCE = ("training has diverged", "not finite", "hold NaN")
"""In what the training loop says, and the estimators where the last step of a task was the one too many."""


def known_outcomes(recipes: Sequence[Recipe], *, output: Path, results: Path) -> dict[RunConfig, Outcome]:
    """All outcomes that are committed below `results`, and those of the recipes' runs in `output`, which go first."""
    found = committed(results)
    while True:
        wanted = once(config for recipe in recipes for config in recipe.wanted(found))
        more = finished([config for config in wanted if config not in found], output)
        if not more:
            return found | finished(wanted, output)
        found |= more


def train(
    recipes: Sequence[Recipe],
    found: Outcomes,
    *,
    output: Path,
    jobs: int = 1,
    device: str = "cpu",
    data_dir: str | os.PathLike[str] | None = None,
    on_event: EventCallback | None = None,
) -> dict[RunConfig, Outcome]:
    """Do every run that is missing, round after round, until all choices are made and reported.

    Returns:
        `found`, and what was added.

    Raises:
        FailedRunsError: a run failed otherwise than by divergence.
    """
    known = dict(found)
    quick = any(recipe.size.name == "quick" for recipe in recipes)
    while missing := once(config for recipe in recipes for config in recipe.to_do(known)):
        told = _noting(missing, output, on_event) if quick else on_event
        try:
            run_all(missing, output=output, jobs=jobs, device=device, data_dir=data_dir, on_event=told)
        except FailedRunsError as error:
            by_name = {config.name: config for config in missing}
            for name, message in error.failures.items():
                if not any(sign in message for sign in _SIGNS_OF_DIVERGENCE):
                    raise
                note_divergence(by_name[name], output, message)
        known |= finished(missing, output)
    return known


def _noting(configs: Sequence[RunConfig], output: Path, on_event: EventCallback | None) -> EventCallback:
    """A callback that notes of each new run that it is of a small version, so that reports leave it out."""
    new = {config.name for config in configs if not (output / config.name).exists()}

    def told(event: Mapping[str, Any]) -> None:
        if event["event"] == "start" and event["run"] in new:
            note_purpose(output / event["run"], "quick")
        if on_event is not None:
            on_event(event)

    return told


@dataclass(frozen=True)
class Answered:
    """What is left of a recipe that was carried out.

    Attributes:
        findings: recipe, outcomes and measurements.
        page: path of `report.md`.
        pictures: paths of the PNGs beside it.
    """

    findings: RecipeFindings
    page: Path
    pictures: tuple[Path, ...]


def measure_recipe(
    recipe: Recipe,
    *,
    results: Path,
    data_dir: str | None = None,
    on_event: EventCallback | None = None,
    kept_only: bool = False,
) -> dict[int, Any]:
    """What a recipe measures, under each of its seeds: as kept in its file of results, or measured now and kept."""
    path = results / recipe.name / RESULTS
    measured = read_measured(path)
    if kept_only or (recipe.measure is None and not recipe.parts):
        return measured
    check_results(path.parent)
    for seed in recipe.measure_seeds:
        for name, entry in _missing(recipe, measured.get(seed), seed, data_dir):
            measured[seed] = entry
            write_outcomes(path, _head(recipe), [], list(measured.values()))
            if on_event is not None:
                on_event({"event": "measured", "run": name, "seed": seed})
    return measured


def _missing(
    recipe: Recipe, entry: dict[str, Any] | None, seed: int, data_dir: str | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Measure what a seed lacks: the name of each part, and the seed's entry with it."""
    if entry is None:
        entry = {"seed": seed}
        if recipe.measure is not None:
            entry |= recipe.measure(seed, data_dir)
            yield recipe.name, entry
    for name, part in recipe.parts.items():
        if name not in entry:
            entry = {**entry, name: part(seed, data_dir)}
            yield f"{recipe.name}, {name}", entry


def answer(recipe: Recipe, found: Outcomes, measured: Mapping[int, Any], *, results: Path, command: str) -> Answered:
    """Write a recipe's compact file of results, its pictures and its page into `results`/its name.

    Raises:
        OptionError: nothing of what it reports is done, or matplotlib is not installed.
        OutputError: the folder cannot be written, or holds something and no results of a recipe.
    """
    findings = RecipeFindings(recipe, found, measured)
    if not measured and not any(answer.outcomes for answer in findings.answers):
        raise OptionError(
            f"{recipe.name}: nothing of what it reports is done. Do it with: python -m recipes {recipe.name}"
        )
    folder = results / recipe.name
    check_results(folder)
    date = _date(findings, folder)
    head = {**_head(recipe), "command": command, "date": date}
    write_outcomes(folder / RESULTS, head, findings.outcomes, list(measured.values()))
    pictures = tuple(recipe.draw(findings, folder))
    write_text(folder / "report.md", page_of(findings, pictures, command=command, date=date))
    return Answered(findings, folder / "report.md", pictures)


def page_of(findings: RecipeFindings, pictures: Sequence[Path], *, command: str, date: str) -> str:
    """The page, with the versions under which the runs were done."""
    return page(findings, pictures, command=command, date=date, versions=_versions(findings))


def _head(recipe: Recipe) -> dict[str, Any]:
    return {"recipe": recipe.name, "size": recipe.size.name, "source": recipe.source}


def _versions(findings: RecipeFindings) -> dict[str, str]:
    used = [outcome.result.versions for outcome in findings.outcomes if outcome.result is not None]
    return used[-1] if used else versions()


def _date(findings: RecipeFindings, folder: Path) -> str:
    """Today, or, where the folder has these runs and measurements already, the day on which it was written."""
    path = folder / RESULTS
    if path.exists():
        before = read_compact(path)
        runs = {outcome.config for outcome in read_outcomes(path)}
        same = runs == {outcome.config for outcome in findings.outcomes}
        if same and before["measured"] == list(findings.measured.values()) and before["date"]:
            return before["date"]
    return datetime.date.today().isoformat()


def kept(recipe: Recipe, results: str | os.PathLike[str]) -> RecipeFindings:
    """What a folder of results says of a recipe, nothing run."""
    folder = Path(results)
    return RecipeFindings(recipe, committed(folder), measure_recipe(recipe, results=folder, kept_only=True))
