from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from recipes import FULL, Size, recipe_named
from recipes.carry_out import answer, measure_recipe
from recipes.elephants import gpt
from recipes.findings import Recipe, RecipeFindings
from recipes.lessons import Way, learn, perplexity
from recipes.networks import settings_of, texts_of
from recipes.page import NOT_YET, conclusion
from recipes.promise import at_rise, promise, promise_texts, worst
from tests.language import tiny
from tests.recipes.made_up import TINY

from holdfast.errors import DataFileError
from holdfast.lab.streams import Examples

SMALL = replace(TINY, settings={"num_tasks": 3, "epochs": 2, "hidden": (24,)}, seeds=(0,))


def entry(recipe: Recipe, rise: float) -> dict:
    """Runs of which each lesson raises the oldest skill so much under a budget of 0.05, and more the less is held."""

    def run(name: str) -> dict:
        value = 0.0 if name.endswith(("plain", "joint")) else float(name.split()[-1])
        loss = 1 / (1 + value) if "strength" in name else rise * value / 0.05 if value else 1.0
        if "joint" in name:
            return {"lessons": [{"increments": [], "trained": 0.9, "new": 0.9}], "accuracy": [0.9, 0.9]}
        first, second = ({"increments": [loss] * number, "trained": 0.97, "new": 0.97} for number in (0, 1))
        if "GPT" in name:  # what is held learns 1% worse
            second |= {"new": 40.4 if "budget" in name else 40.0}
            return {"lessons": [first, second], "perplexity": [30 * math.exp(loss), second["new"]]}
        return {"lessons": [first, second], "accuracy": [0.97 - min(loss, 0.5), 0.97]}

    return {"seed": 0, **{name: run(name) for name in recipe.parts}}


def test_it_is_run_and_told_end_to_end(tmp_path: Path):
    recipe = promise(SMALL)
    measured = measure_recipe(recipe, results=tmp_path)
    assert recipe.measured_seeds(measured) == [0]
    for name, run in measured[0].items():
        if "budget" in name:
            assert [len(lesson["increments"]) for lesson in run["lessons"]] == [0, 1, 2]
            assert all(rise < 3 * 0.05 for rise in worst(run))
        elif "plain" in name:
            assert max(worst(run)) > 3 * 0.05  # there is something to be kept
    answered = answer(recipe, {}, measured, results=tmp_path, command="it")
    assert "| MLP | Adam | budget 0.05 | " in answered.page.read_text()
    assert "**Conclusion.** MLP: in " in answered.page.read_text()
    assert "| ConvNet | Adam | budget 0.05 | " in answered.page.read_text()
    assert [picture.name for picture in answered.pictures] == ["increments.png", "mlp.png", "convnet.png"]
    before = (tmp_path / "promise" / "results.json").read_bytes()
    again = measure_recipe(recipe, results=tmp_path)
    answer(recipe, {}, again, results=tmp_path, command="it")
    assert (tmp_path / "promise" / "results.json").read_bytes() == before


def test_a_stopped_measurement_goes_on_where_it_stopped(tmp_path: Path):
    way = Way("adam", "budget", 0.05)
    asked: list[str] = []

    def part(name: str):
        def measured(seed: int, data_dir: str | None) -> dict:
            asked.append(f"{name}{seed}")
            if asked == ["a0", "b0"]:
                raise KeyboardInterrupt
            return learn(settings_of(SMALL)[0], way, seed, data_dir)

        return measured

    recipe = replace(promise(SMALL), parts={name: part(name) for name in "ab"}, measure_seeds=(0, 1))
    with pytest.raises(KeyboardInterrupt):
        measure_recipe(recipe, results=tmp_path)
    kept = measure_recipe(recipe, results=tmp_path, kept_only=True)
    assert list(kept[0]) == ["seed", "a"]
    assert recipe.measured_seeds(kept) == []
    findings = RecipeFindings(recipe, {}, kept)
    assert not findings.complete
    assert conclusion(findings) == NOT_YET
    done = measure_recipe(recipe, results=tmp_path)
    assert asked == ["a0", "b0", "b0", "a1", "b1"]
    assert recipe.measured_seeds(done) == [0, 1]
    assert done[0]["a"] == done[0]["b"] != done[1]["a"]  # the same seed, the same figures
    assert json.loads(json.dumps(done[0])) == done[0]


@pytest.mark.parametrize(("rise", "stands"), [(0.07, "is kept"), (0.08, "is not kept")])
def test_the_conclusion_is_arithmetic(rise: float, stands: str):
    recipe = promise(replace(FULL, seeds=(0,)))
    findings = RecipeFindings(recipe, {}, {0: entry(recipe, rise)})
    told = conclusion(findings)
    assert f"the largest was {rise / 0.05:.2f} budgets" in told
    assert f"the promise {stands}" in told
    assert f"calibrated along lessons, the largest was {rise / 0.05:.1f} budgets" in told
    assert f"not calibrated it was {rise / 0.05:.1f}" in told
    assert "within 1 point of what fixed strengths reach at the same rise under 9 of 9 budgets" in told
    recipe = promise_texts(replace(FULL, seeds=(0,)))
    told = conclusion(RecipeFindings(recipe, {}, {0: entry(recipe, rise)}))
    assert f"the promise {stands}" in told
    assert "calibrated" not in told
    assert "within 2% of perplexity of what fixed strengths reach at the same rise under 3 of 3 budgets" in told
    assert "difference is 1.0%, under Adam, budget 0.02" in told


def test_half_done_it_is_drawn_without_a_conclusion(tmp_path: Path):
    recipe = promise(SMALL)
    whole = entry(recipe, 0.05)
    half = RecipeFindings(recipe, {}, {0: {name: whole[name] for name in list(whole)[:3]}})
    assert conclusion(half) == NOT_YET
    assert recipe.table is not None
    assert recipe.table(half).count("\n") == 3
    assert recipe.draw(half, tmp_path)


def test_a_grid_at_a_rise():
    grid = [(0.01, 0.9), (1.0, 0.8), (0.1, 0.96)]
    assert at_rise(grid, 0.005) is None
    assert at_rise(grid, 0.01) == 0.9
    assert at_rise(grid, 10**-1.5) == pytest.approx(0.93)
    assert at_rise(grid, 0.5) == 0.96  # what rises less may be taken instead


@pytest.mark.parametrize("size", [FULL, SMALL])
def test_every_part_has_a_name_of_its_own(size: Size):
    of_images, of_texts = (recipe_named(name, size).parts for name in ("promise", "promise-texts"))
    assert len(of_images) == (33 + 24 if size.name == "full" else 8 + 6)
    assert len(of_texts) == (27 + 10 if size.name == "full" else 7 + 8)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """The folders of texts, with little in them."""
    for part, count in (("train", 12), ("valid", 4), ("test", 4)):
        folder = tmp_path / "text" / "clinc150" / part
        folder.mkdir(parents=True)
        labels = [f"intent{number}" for number in range(20) for _ in range(count)]
        (folder / "label").write_text("\n".join(labels) + "\n")
        (folder / "seq.in").write_text("".join(f"{tiny.sentence(n)} {label}\n" for n, label in enumerate(labels)))
    (tmp_path / "text" / "speeches").mkdir()
    (tmp_path / "text" / "speeches" / "one.txt").write_text("".join(f"{tiny.sentence(n)}.\n" for n in range(4000)))
    return tmp_path


@pytest.mark.parametrize("name", ["Transformer", "GPT"])
def test_networks_that_read_texts(name: str, texts: Path, monkeypatch: pytest.MonkeyPatch):
    sizes = replace(gpt.SIZES["quick"], width=32, layers=1, vocabulary=300, characters=40_000)
    monkeypatch.setitem(gpt.SIZES, "quick", sizes)
    size = replace(FULL, settings={"num_tasks": 2})
    setting = replace(next(setting for setting in texts_of(size) if setting.name == name), epochs=2)
    plain, held = (learn(setting, way, 0, str(texts)) for way in (Way("adam", "plain"), Way("adam", "budget", 0.05)))
    assert max(worst(held)) < min(0.1, max(worst(plain)))
    assert plain["lessons"][0] == held["lessons"][0]  # nothing is held in the first
    first, second = (lesson["new"] for lesson in plain["lessons"])
    net, tasks = setting.build(0, str(texts))
    untrained = [setting.judge(net, task.test) for task in tasks]
    if name == "GPT":
        assert first < untrained[0]
        assert second < untrained[1]
        assert untrained[0] == pytest.approx(300, rel=0.2)  # as many as there are tokens
        tokens = tasks[0].validation.inputs[:3]
        own = float(net(tokens, labels=tokens).loss.detach())
        assert perplexity(net, Examples(tokens, tokens)) == pytest.approx(math.exp(own), rel=1e-5)
    else:
        assert [sorted(set(task.test.targets.tolist())) for task in tasks] == [list(range(10))] * 2
        assert first > untrained[0]


def test_nobody_says_where_the_texts_are(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("HOLDFAST_DATA", raising=False)
    setting = texts_of(FULL)[-1]
    with pytest.raises(DataFileError, match="Give --data-dir, the parent of text/, or set HOLDFAST_DATA"):
        setting.build(0, None)
