from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from recipes import Recipe, recipe_named
from recipes.carry_out import answer, known_outcomes, measure_recipe, train
from recipes.lines import RecipeLine, around
from tests.recipes.made_up import TINY, filled

from holdfast.errors import FailedRunsError, OptionError
from holdfast.files import read_sealed, seal_of
from holdfast.lab import RunConfig, results
from holdfast.lab.running import run


def small(**settings: Any) -> Recipe:
    """Three strengths on trial, one reported, and plain training."""
    ewc = TINY.config("permuted", "ewc-fisher", importance_data="validation", **settings)
    lines = (
        RecipeLine(label="EWC", candidates=around(ewc, (0.1, 1, 10)), seeds=(0, 1)),
        RecipeLine(label="plain", candidates=(TINY.config("permuted", "none"),), seeds=(0, 1)),
    )
    return replace(recipe_named("increments", TINY), name="small", lines=lines, conclude=lambda findings: "Done.")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_trials_are_run_then_what_was_chosen_and_nothing_twice(tmp_path: Path):
    recipe, events = small(), []
    found = train([recipe], {}, output=tmp_path, on_event=events.append)
    assert len(found) == 3 + 2 + 2
    assert recipe.to_do(found) == []
    assert names(tmp_path) == sorted(config.name for config in found)
    assert [event["event"] for event in events].count("finished") == 7

    def on_event(event: Mapping[str, Any]) -> None:
        raise AssertionError(f"nothing was left to do, found {event}")

    again = known_outcomes([recipe], output=tmp_path, results=tmp_path / "none")
    assert again == found
    assert train([recipe], again, output=tmp_path, on_event=on_event) == found


@pytest.mark.parametrize("size", ["quick", "full"])
def test_runs_of_a_small_version_are_noted_and_no_others(size: str, tmp_path: Path):
    recipe = replace(small(), size=replace(TINY, name=size))
    before = recipe.lines[1].reported({})[0]
    run(before, output=tmp_path)
    train([recipe], {}, output=tmp_path)
    table = results(tmp_path)
    noted = table[table["purpose"] == "quick"]
    assert len(noted) == (6 if size == "quick" else 0)
    assert str(tmp_path / before.name) not in set(noted["folder"])
    assert run(before, output=tmp_path).method == "none"  # what is noted is read back as any other


def test_what_is_committed_is_not_run_again(tmp_path: Path):
    recipe = small()
    made = filled(recipe)
    answer(recipe, made, {}, results=tmp_path, command="python -m recipes small")
    found = known_outcomes([recipe], output=tmp_path / "runs", results=tmp_path)
    assert found.keys() == made.keys()
    train([recipe], found, output=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_run_in_the_output_goes_before_a_committed_one(tmp_path: Path):
    recipe = small()
    answer(recipe, filled(recipe), {}, results=tmp_path, command="")
    config = recipe.lines[1].reported({})[0]
    own = filled(recipe, lambda config: 0.3)[config].result
    assert own is not None
    (tmp_path / "runs" / config.name).mkdir(parents=True)
    own.save(tmp_path / "runs" / config.name / "result.json")
    found = known_outcomes([recipe], output=tmp_path / "runs", results=tmp_path)
    assert found[config].result == own


def test_divergence_is_a_result_and_is_not_tried_again(tmp_path: Path):
    recipe = small(pull="gradient", strength=1e12)
    found = train([recipe], {}, output=tmp_path)
    told = {outcome.diverged for config, outcome in found.items() if config.method == "ewc-fisher"}
    assert all("training has diverged" in text for text in told)
    assert known_outcomes([recipe], output=tmp_path, results=tmp_path / "none") == found
    written = answer(recipe, found, {}, results=tmp_path / "results", command="")
    assert "2 of 2 diverged" in written.page.read_text()


def test_any_other_failure_is_told(tmp_path: Path):
    config = TINY.config("permuted", "ewc-kfac", accumulate="max")
    recipe = replace(small(), lines=(RecipeLine(label="wrong", candidates=(config,), seeds=(0,)),))
    with pytest.raises(FailedRunsError, match="accumulate is 'max', a rule that Kronecker factors do not have"):
        train([recipe], {}, output=tmp_path)


def test_an_answer_is_a_page_its_pictures_and_one_file_of_results(tmp_path: Path):
    recipe = recipe_named("increments", TINY)
    written = answer(recipe, filled(recipe), {}, results=tmp_path, command="python -m recipes increments --quick")
    assert names(tmp_path / "increments") == ["beside.png", "report.md", "results.json"]
    content = json.loads((tmp_path / "increments" / "results.json").read_text())
    assert content["command"] == "python -m recipes increments --quick"
    assert content["date"] in written.page.read_text()
    assert len(content["runs"]) == len(recipe.wanted(written.findings.found))


def test_redrawn_the_answer_keeps_its_date(tmp_path: Path):
    recipe = small()
    made = filled(recipe)
    written = answer(recipe, made, {}, results=tmp_path, command="it")
    path = tmp_path / "small" / "results.json"
    content = read_sealed(path)
    older = {**content, "date": "2001-02-03"}
    text = path.read_text().replace(content["date"], "2001-02-03")
    path.write_text(text.replace(seal_of(content), seal_of(older)))
    before = path.read_bytes()
    found = known_outcomes([recipe], output=tmp_path / "runs", results=tmp_path)
    assert "2001-02-03" in answer(recipe, found, {}, results=tmp_path, command="it").page.read_text()
    assert path.read_bytes() == before
    assert written.page.read_text() != ""
    others = small(slope=0.5)  # as many runs, of another protocol
    assert "2001-02-03" not in answer(others, filled(others), {}, results=tmp_path, command="it").page.read_text()


def test_measurements_are_kept_as_they_are_made(tmp_path: Path):
    asked: list[int] = []

    def measured(seed: int, data_dir: str | None) -> dict[str, Any]:
        asked.append(seed)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return {"x": seed}

    recipe = replace(small(), lines=(), measure=measured, measure_seeds=(0, 1))
    with pytest.raises(KeyboardInterrupt):
        measure_recipe(recipe, results=tmp_path)
    assert measure_recipe(recipe, results=tmp_path, kept_only=True) == {0: {"seed": 0, "x": 0}}
    assert measure_recipe(recipe, results=tmp_path) == {0: {"seed": 0, "x": 0}, 1: {"seed": 1, "x": 1}}
    assert asked == [0, 1, 1]


def test_of_nothing_there_is_no_answer(tmp_path: Path):
    with pytest.raises(
        OptionError, match="small: nothing of what it reports is done. Do it with: python -m recipes small"
    ):
        answer(small(), {}, {}, results=tmp_path, command="")


def test_a_configuration_is_asked_for_once_by_experiments_that_share_it(tmp_path: Path):
    first, second = small(), replace(small(), name="other")
    configs: list[RunConfig] = list(train([first, second], {}, output=tmp_path))
    assert len(configs) == len(set(configs)) == len(names(tmp_path)) == 7
