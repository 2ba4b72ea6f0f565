"""Whatever happens to runs, sweeps, reports and results, it is refused with one line, or gives what was saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from recipes.outcome import Outcome
from recipes.store import committed, finished, note_divergence, read_measured, write_outcomes
from tests.damages import Kind, check
from tests.lab.generation import small
from tests.lab.made_up import result
from tests.lab.tiny import killed_at, tiny
from tests.recipes.made_up import outcome

from holdfast.files import read_state
from holdfast.lab import running
from holdfast.lab.config import configure
from holdfast.lab.frame import runs_table
from holdfast.lab.generation import run as generation_module
from holdfast.lab.generation.pictures import draw_samples
from holdfast.lab.generation.run import run_generation, samples_path
from holdfast.lab.report import write_report
from holdfast.lab.result import RunResult, find_results
from holdfast.lab.running import run
from holdfast.lab.sweep import Space, sweep

EWC = tiny("ewc-fisher", epochs=1)
GAN = small.small(iterations=2, images=8)
SPACE = Space(
    stream="permuted-digits",
    methods=("ewc-fisher",),
    strengths=(1.0, 10.0),
    optimizers=("sgd",),
    lrs=(0.1,),
    seeds=(0,),
    settings={"num_tasks": 2, "epochs": 1, "batch_size": 256, "hidden": (4,), "importance_examples": 8, "slope": 0.2},
    prune=False,
)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    small.quick_judge(monkeypatch)
    monkeypatch.setattr(running, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(generation_module, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr("holdfast.lab.report.write.write_pictures", lambda section, folder: [])
    monkeypatch.setattr("holdfast.lab.sweep.drive.PATIENCE", 0.01)


def figures(result: RunResult) -> Any:
    """What does not depend on the clock."""
    return result.accuracy_matrix, result.validation_accuracy, result.config, result.generation


def _killed(path: Path) -> None:
    assert killed_at(4, EWC, path)


def _killed_generation(path: Path) -> None:
    assert small.killed_at(5, GAN, path)


def _of_run(path: Path) -> Any:
    return [*map(figures, find_results([path])), figures(run(EWC, output=path))]


def _of_generation(path: Path) -> Any:
    found = run_generation(GAN, output=path)
    draw_samples(path / GAN.name, title="x")
    return figures(found), read_state(samples_path(path / GAN.name))


def _reported(path: Path) -> Any:
    return write_report(runs_table([result()]), path).num_runs


ONE, TWO = configure("permuted-digits", "ewc-fisher", seed=1, num_tasks=3), configure("permuted-digits", "l2")


def _results(path: Path) -> None:
    outcomes = [outcome(ONE, 0.87), Outcome(TWO, None, "the loss is nan")]
    write_outcomes(path / "it" / "results.json", {"recipe": "it"}, outcomes, [{"seed": 3, "x": 1}])
    found = outcomes[0].result
    assert found is not None
    (path / "it" / "runs").mkdir()
    found.save(path / "it" / "runs" / "any.json")
    for config in (ONE, TWO):
        (path / "out" / config.name).mkdir(parents=True)
    found.save(path / "out" / ONE.name / "result.json")
    note_divergence(TWO, path / "out", "the loss is nan")


def _of_results(path: Path) -> Any:
    """All that a recipe reads before it decides what is left to do; what is missing would be done again."""
    found = {**finished([ONE, TWO], path / "out"), **committed(path)}
    every = {config: found.get(config, known) for config, known in ((ONE, outcome(ONE, 0.87)), (TWO, _LOST))}
    told = [entry.diverged if entry.result is None else _rounded(entry.result) for entry in every.values()]
    return told, read_measured(path / "it" / "results.json") or {3: {"seed": 3, "x": 1}}


def _rounded(result: RunResult) -> Any:
    """As compact files have it."""
    return [[round(value, 4) for value in row] for row in result.accuracy_matrix], result.config


_LOST = Outcome(TWO, None, "the loss is nan")


def _swept(path: Path) -> Any:
    return [(finding.choice, finding.validation, finding.test) for finding in sweep(SPACE, output=path).all]


KINDS = {
    "run": (Kind("run", lambda path: run(EWC, output=path), _of_run, goes_on=True), 100),
    "killed-run": (Kind("killed-run", _killed, lambda path: figures(run(EWC, output=path)), goes_on=True), 100),
    "results": (Kind("results", _results, _of_results), 200),
    "report": (Kind("report", _reported, _reported, goes_on=True), 60),
    "sweep": (Kind("sweep", _swept, _swept, goes_on=True, has_digests=False), 60),
    "sweep.db": (Kind("sweep.db", _swept, _swept, goes_on=True, has_digests=False, only="sweep.db"), 60),
    "sweep.json": (Kind("sweep.json", _swept, _swept, goes_on=True, only="sweep-*"), 30),
    "generation": (Kind("generation", lambda path: run_generation(GAN, output=path), _of_generation, goes_on=True), 60),
    "killed-generation": (Kind("killed-generation", _killed_generation, _of_generation, goes_on=True), 40),
}
"""Of folders, and how many damages of it make the slow test."""


@pytest.mark.parametrize("name", KINDS)
def test_a_damaged_folder_is_refused_or_gives_what_was_saved(tmp_path: Path, name: str):
    check(KINDS[name][0], tmp_path, times=8, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_many_damages(tmp_path: Path, name: str):
    kind, times = KINDS[name]
    check(kind, tmp_path, times=times, seed=1)
