"""Every command that writes: what is not its own is refused before any work, and survives it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import recipes.rosenbrock_command as valleys
from benchmarks import __main__ as benchmarks
from benchmarks.tables import Part
from recipes import QUICK, recipe_named
from recipes import __main__ as recipes
from recipes.carry_out import answer
from tests.files.folders import fill, listing
from tests.lab.made_up import result
from tests.language import tiny
from tests.recipes.made_up import filled

from holdfast import cli
from holdfast.lab import configure
from holdfast.lab import demo as experiment
from holdfast.lab.generation import configure_generation

TINY = {"num_tasks": 2, "epochs": 1, "hidden": (8,)}
SWEEP = ["sweep", "permuted-digits", "--methods", "none"]
FLAGS = ["--num-tasks", "2", "--epochs", "1", "--hidden", "8"]


@dataclass(frozen=True)
class Command:
    """A command that fills a folder.

    Attributes:
        name: of the test.
        work: what it does first once it has looked where to; replaced by an error, for that must not be reached.
        folder: the folder that it fills, below the one that `argv` names.
        reads: the input, a name of the fixture's, that lies in the way if the command is to write there.
    """

    name: str
    work: str
    folder: str
    argv: Callable[[Path, Path], list[str]]
    reads: str = ""


def _of_model(name: str, *more: str) -> Callable[[Path, Path], list[str]]:
    return lambda given, out: [
        *(name, str(given / "causal"), str(given / "prose"), "-o", str(out), "--length", "16", "--quiet"),
        *(str(given / part) if part == "keep" else part for part in more),
    ]


RUN = configure("permuted-digits", "none", **TINY)
DRAWN = configure_generation("digits-generation", "none", num_tasks=2, iterations=2, images=8)

COMMANDS = {
    command.name: command
    for command in (
        Command("importance", "holdfast.cli.importance.load_model", "", _of_model("importance"), "causal"),
        Command(
            "finetune",
            "holdfast.language.keeping.load_model",
            "",
            _of_model("finetune", "--keep", "keep", "--strength", "1", "--steps", "2"),
            "keep",
        ),
        Command(
            "dream",
            "holdfast.cli.dream.load_model",
            "",
            lambda given, out: [
                *("dream", str(given / "causal"), "-o", str(out)),
                *("--length", "16", "--count", "8", "--quiet"),
            ],
            "causal",
        ),
        Command(
            "run",
            "holdfast.lab.streams.catalog.load_data",
            RUN.name,
            lambda _, out: ["run", "permuted-digits", "--method", "none", *FLAGS, "--output", str(out), "--quiet"],
        ),
        Command(
            "generation",
            "holdfast.lab.streams.catalog.load_data",
            DRAWN.name,
            lambda _, out: [
                *("run", "digits-generation", "--method", "none", "--num-tasks", "2", "--iterations", "2"),
                *("--images", "8", "--output", str(out), "--quiet"),
            ],
        ),
        Command(
            "report",
            "holdfast.lab.report.write.results",
            "",
            lambda given, out: ["report", str(given / "runs"), "--output", str(out), "--quiet"],
            "runs",
        ),
        Command("demo", "holdfast.lab.demo.run", "demo", lambda _, out: ["demo", "--output", str(out)]),
        Command(
            "rosenbrock",
            "recipes.rosenbrock.Plane",
            "rosenbrock",
            lambda _, out: ["recipes", "rosenbrock", "--output", str(out)],
        ),
        Command(
            "reproduce",
            "recipes.published.known_outcomes",
            "quick/correlation",
            lambda _, out: ["recipes", "correlation", "--quick", "--seeds", "0", "--output", str(out), "--quiet"],
        ),
    )
}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands read: a model, a text, an importance, runs."""
    folder = tmp_path_factory.mktemp("given")
    tiny.causal(folder / "causal")
    tiny.prose(folder / "prose", lines=40)
    argv = ["importance", str(folder / "causal"), str(folder / "prose"), "-o", str(folder / "keep"), "--length", "16"]
    assert main([*argv, "--quiet"]) == 0
    (folder / "runs" / "0").mkdir(parents=True)
    result().save(folder / "runs" / "0" / "result.json")
    return folder


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    def demo(**options: Any) -> experiment.Demo:
        return experiment.demo(**options, settings=TINY, methods=("none", "ewc-mas", "joint"))

    monkeypatch.setattr("holdfast.cli.demo.demo", demo)
    monkeypatch.setattr("holdfast.lab.report.write.write_pictures", lambda section, folder: [])
    whole = valleys.rosenbrock
    monkeypatch.setattr(valleys, "rosenbrock", lambda **options: whole(**options, steps=10, strengths=(1.0,)))


def main(argv: list[str]) -> int:
    return recipes.main(argv[1:]) if argv[0] == "recipes" else cli.main(argv)


def refused(root: Path, argv: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = listing(root)
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert told in said
    assert listing(root) == before


def _foreign(place: Path, _: pytest.MonkeyPatch) -> None:
    (place / "notes").mkdir(parents=True)
    (place / "notes" / "precious.md").write_text("precious")


def _working_directory(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place.mkdir(parents=True)
    monkeypatch.chdir(place)


def _above(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "below").mkdir(parents=True)
    monkeypatch.chdir(place / "below")


def _repository(place: Path, _: pytest.MonkeyPatch) -> None:
    fill(place)
    (place / ".git").mkdir()
    (place / ".git" / "HEAD").write_text("precious")


def _link(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _foreign(place.parent / "elsewhere", monkeypatch)
    place.symlink_to("elsewhere")


def _file(place: Path, _: pytest.MonkeyPatch) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("precious")


CASES = {
    "holds what holdfast did not write (notes)": _foreign,
    "is the working directory": _working_directory,
    "is above the working directory": _above,
    "contains .git": _repository,
    "holds what holdfast did not write (notes).": _link,
    "is a file; a folder is to be written there": _file,
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("case", CASES)
def test_what_is_not_ours_is_refused_before_any_work(
    name: str,
    case: str,
    given: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    command = COMMANDS[name]
    monkeypatch.setattr(command.work, _forbidden)
    output = tmp_path / "a" / "out"
    CASES[case](output / command.folder, monkeypatch)
    refused(tmp_path, command.argv(given, output), case.rstrip("."), capsys)


def _forbidden(*_: Any, **__: Any) -> None:
    raise AssertionError("the work has begun")


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if command.reads])
@pytest.mark.parametrize("is_link", [True, False])
def test_what_is_read_is_refused_before_any_work(
    name: str,
    is_link: bool,
    given: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    command = COMMANDS[name]
    monkeypatch.setattr(command.work, _forbidden)
    output = given / command.reads
    if is_link:
        (tmp_path / "link").symlink_to(output)
        output = tmp_path / "link"
    refused(given, command.argv(given, output), "is read from", capsys)


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "generation"])
def test_an_empty_folder_is_filled_in_place_and_filled_again(
    name: str, given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    command = COMMANDS[name]
    place = tmp_path / "out" / command.folder
    place.mkdir(parents=True)
    inode, argv = place.stat().st_ino, command.argv(given, tmp_path / "out")
    assert main(argv) == 0
    written = set(listing(place))
    (place / "notes").mkdir()
    (place / "notes" / "precious.md").write_text("precious")
    assert main(argv) == 0
    assert place.stat().st_ino == inode
    assert (place / "notes" / "precious.md").read_text() == "precious"
    assert set(listing(place)) == {*written, "notes", "notes/precious.md"}
    assert not [path for path in listing(tmp_path) if ".holdfast-" in path]


def test_a_name_that_is_needed_is_refused_before_any_work(
    given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    fill(tmp_path / "out")
    for name in ("config.json", "importance_config.json", "dreams_config.json", "report.html", "demo/matrix.png"):
        (tmp_path / "out" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "out" / name).write_text("precious")
    fill(tmp_path / "out" / "demo" / "below")
    for name, needed in (
        ("finetune", "config.json"),
        ("importance", "importance_config.json"),
        ("dream", "dreams_config.json"),
        ("report", "report.html"),
    ):
        monkeypatch.setattr(COMMANDS[name].work, _forbidden)
        refused(tmp_path, COMMANDS[name].argv(given, tmp_path / "out"), f"{needed} stands there already", capsys)


# --- single files among others


@pytest.mark.parametrize(
    ("argv", "file", "work"),
    [
        (SWEEP, "sweep-permuted-digits.json", "holdfast.lab.sweep.carry_out.pool_of"),
        (SWEEP, "sweep-permuted-digits.csv", "holdfast.lab.sweep.carry_out.pool_of"),
        (SWEEP, "sweep.db", "holdfast.lab.sweep.storage._opened"),
        (["advise", "mlp"], "advice/mlp-on-permuted-mnist.json", "holdfast.lab.workloads.build_stream"),
        (
            ["recipes", "elephants", "encoder", "--data-dir", "."],
            "elephants/encoder/full/report.md",
            "recipes.elephants.story.Encoder",
        ),
        (
            ["recipes", "elephants", "encoder", "--data-dir", "."],
            "elephants/encoder/full/encoder.png",
            "recipes.elephants.story.Encoder",
        ),
    ],
)
@pytest.mark.parametrize("kind", ["text", "json", "folder"])
def test_files_of_others_are_refused_before_any_work(
    argv: list[str],
    file: str,
    work: str,
    kind: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(work, _forbidden)
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "folder":
        path.mkdir()
    else:
        path.write_text("precious" if kind == "text" else json.dumps({"mine": 1}))
    told = "is no file (a folder" if kind == "folder" else "stands there already and was not written by holdfast"
    refused(tmp_path, [*argv, "--output", str(tmp_path)], told, capsys)


def test_a_database_of_others_is_not_filled(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    import sqlite3

    with sqlite3.connect(tmp_path / "sweep.db") as database:
        database.execute("CREATE TABLE mine (precious INTEGER)")
    database.close()
    argv = ["sweep", "permuted-digits", "--methods", "none", *FLAGS, "--seeds", "0", "--output", str(tmp_path)]
    refused(tmp_path, argv, "sweep.db stands there already and was not written by holdfast", capsys)


def test_a_sweep_and_advice_are_written_again(tmp_path: Path):
    (tmp_path / "notes.md").write_text("precious")
    sweep = ["sweep", "permuted-digits", "--methods", "none", *FLAGS, "--seeds", "0", "--output", str(tmp_path)]
    advise = ["advise", "mlp", "--stream", "permuted-digits", "--hidden", "8", "--batches", "1", "--batch-size", "8"]
    advise += ["--methods", "none", "--examples", "8", "--output", str(tmp_path)]
    for argv in (sweep, sweep, advise, advise):
        assert main([*argv, "--quiet"]) == 0
    assert (tmp_path / "notes.md").read_text() == "precious"


def test_tables_of_others_are_refused_before_anything_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    module = type("Module", (), {"__doc__": "It: x.", "measure": lambda **_: [Part("a", "A", [], [{"x": 1}])]})
    monkeypatch.setitem(benchmarks.BENCHMARKS, "step", module)
    for _ in range(2):
        benchmarks.main(["step", "--output", str(tmp_path)])
    (tmp_path / "step.json").write_text("{}")
    monkeypatch.setattr(module, "measure", _forbidden)
    before = listing(tmp_path)
    with pytest.raises(OSError, match=r"step.json, .*step.md stands there already and was not written by holdfast"):
        benchmarks.main(["step", "--output", str(tmp_path)])
    assert listing(tmp_path) == before


def test_results_of_a_recipe_are_refused_where_something_else_stands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    recipe = recipe_named("increments", QUICK)
    folder = tmp_path / "quick" / "increments"
    folder.mkdir(parents=True)
    (folder / "beside.png").write_text("precious")
    before = listing(tmp_path)
    with pytest.raises(OSError, match=r"holds what holdfast did not write \(beside.png\)"):
        answer(recipe, filled(recipe), {}, results=tmp_path / "quick", command="")
    assert listing(tmp_path) == before
    os.unlink(folder / "beside.png")
    for _ in range(2):
        answer(recipe, filled(recipe), {}, results=tmp_path / "quick", command="")
