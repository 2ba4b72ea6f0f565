from __future__ import annotations

from pathlib import Path

import pytest
from recipes import QUICK, RECIPES, recipe_named, rosenbrock_command
from recipes.__main__ import main
from recipes.carry_out import answer
from tests.recipes.made_up import filled

from holdfast.cli import main as holdfast_main


def asked(output: Path, *more: str) -> list[str]:
    return [*more, "--quick", "--output", str(output)]


def fill(output: Path, name: str) -> None:
    recipe = recipe_named(name, QUICK)
    answer(recipe, filled(recipe), {}, results=output / "quick", command="")


def test_the_list_names_every_experiment_with_its_source(capsys: pytest.CaptureFixture[str]):
    assert main(["--list"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in RECIPES)
    assert "2502.11756" in said


def test_an_experiment_is_measured_drawn_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(asked(tmp_path, "correlation", "--seeds", "0")) == 0
    said = capsys.readouterr().out
    folder = tmp_path / "quick" / "correlation"
    assert "0 runs done, 1 to do: about" in said  # the cost comes before the work
    assert said.index("about") < said.index("measured under seed 0")
    assert f"written to {folder / 'report.md'}" in said
    assert "`python -m recipes correlation --quick --seeds 0`" in (folder / "report.md").read_text()
    assert (folder / "correlation.png").is_file()


def test_finished_it_is_redrawn_without_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    fill(tmp_path, "increments")
    assert main(asked(tmp_path, "increments")) == 0
    said = capsys.readouterr().out
    assert "0 to do" in said
    assert "Adam, gradients" in said
    assert "Increments minus gradients, in points under the same seeds" in said
    assert not list(tmp_path.glob("permuted-*"))


def test_a_dry_run_lists_what_would_be_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(asked(tmp_path, "attenuation", "strength", "--dry-run")) == 0
    said = capsys.readouterr().out
    configs = {c for name in ("attenuation", "strength") for c in recipe_named(name, QUICK).to_do({})}
    assert all(config.name in said for config in configs)
    assert f"together: 0 runs done, {len(configs)} to do" in said
    assert list(tmp_path.iterdir()) == []


def test_from_results_nothing_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(asked(tmp_path, "strength", "--from-results")) == 2
    assert (
        "strength: nothing of what it reports is done. Do it with: python -m recipes strength"
        in capsys.readouterr().err
    )
    fill(tmp_path, "strength")
    assert main(asked(tmp_path, "strength", "--from-results")) == 0


def test_all_are_every_experiment(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(asked(tmp_path, "all", "--dry-run")) == 0
    said = capsys.readouterr().out
    assert all(f"{name}: " in said for name in RECIPES)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "recipes: which experiment? Give one or more of: curve, increments"),
        (("curv",), "unknown experiment 'curv'. Did you mean 'curve'?"),
        (("curve", "--jobs", "two"), "--jobs is 'two'; expected a whole number"),
    ],
)
def test_bad_input_is_one_clear_line(
    arguments: tuple[str, ...], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(asked(tmp_path, *arguments)) == 2
    assert expected in capsys.readouterr().err


def test_quiet_tells_only_where_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    fill(tmp_path, "increments")
    assert main(asked(tmp_path, "increments", "--quiet")) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("written to ")


def test_rosenbrock(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    quick = rosenbrock_command.rosenbrock
    monkeypatch.setattr(rosenbrock_command, "rosenbrock", lambda *, output: quick(output=output, steps=20))
    assert main(["rosenbrock", "--output", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "without EWC" in said
    assert "EWC, strength 1" in said
    assert str(tmp_path / "rosenbrock" / "rosenbrock.png") in said


def test_the_command_line_of_the_package_names_ours(capsys: pytest.CaptureFixture[str]):
    assert holdfast_main(["reproduce", "curve"]) == 0
    assert "python -m recipes curve" in capsys.readouterr().out
