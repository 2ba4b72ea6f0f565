"""The code in the docs does what the pages say, and their numbers are those of the committed results."""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import itertools
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.tables import keep
from recipes import RECIPES
from recipes.carry_out import page_of
from tests.claims.files import RESULTS, ROOT, recipe
from tests.claims.numbers import EXEMPT, PAGES, paragraphs, unclaimed
from tests.claims.pages import claims
from torch import nn
from torch.optim import SGD, Adam, Optimizer

import holdfast as hf
from holdfast.errors import OptionError

DOCS = Path(__file__).parents[1] / "docs"


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (DOCS / page).read_text(), flags=re.MULTILINE | re.DOTALL)


def run(page: str) -> dict[str, Any]:
    """The names that the page's blocks leave, run one after the other; a fault has the line of the page."""
    text, names = (DOCS / page).read_text(), {"__name__": page}
    for block in blocks(page):
        line = text[: text.index(block)].count("\n")
        exec(compile("\n" * line + block, DOCS / page, "exec", dont_inherit=True), names)
    return names


def num_lines(page: str, start: str) -> int:
    """Of the class or function that starts so, with its blank lines."""
    text = next(block for block in blocks(page) if start in block)
    rest = text[text.index(start) :].splitlines()[1:]
    inside = list(itertools.takewhile(lambda line: line[:1] in ("", " "), rest))
    return 1 + len("\n".join(inside).rstrip().splitlines())


def test_results_in_a_notebook(tmp_path: Path):
    with contextlib.chdir(tmp_path):
        names = run("report.md")
        assert names["page"].is_file()
    runs = names["runs"]
    columns = re.findall(r"^\| (`.*?) \|", (DOCS / "report.md").read_text(), flags=re.MULTILINE)
    told = re.findall(r"`(\w+)`", "".join(columns))
    assert len(told) > 15
    assert set(told) - {"frechet_distance", "reverse_accuracy", "judge_accuracy"} <= set(runs.columns)
    assert names["table"]["count"].to_dict() == {"ewc-fisher": 2, "joint": 2, "none": 2}
    assert list(names["gain"].index) == [0, 1]
    assert names["first_task"].shape == (3, 3)
    assert set(runs.columns) - set(told) >= {"stream", "method", "lr", "hidden", "strength"}


def test_new_classes_without_old_data(tmp_path: Path):
    with contextlib.chdir(tmp_path), contextlib.redirect_stdout(io.StringIO()) as printed:
        names = run("classes.md")
        loaded = hf.AnalyticHead.load("head")
    at_the_end, classes = printed.getvalue().splitlines()
    assert float(at_the_end) == pytest.approx(0.98, abs=0.01)
    assert classes == "(0, 1, 2, 3, 4, 5, 6, 7, 8)"
    head, tasks, accuracy = names["head"], names["tasks"], names["accuracy"]
    assert accuracy(names["merged"], tasks[:4]) > 0.97
    never = hf.AnalyticHead(projection=500)
    for features, labels in itertools.chain(*(hf.features_of(names["model"], task.train) for task in tasks)):
        if bool((labels != 9).any()):
            never.fit(features[labels != 9], labels[labels != 9])
    ((features, _),) = list(hf.features_of(names["model"], tasks[0].test))[:1]
    assert torch.allclose(loaded(features), never(features), atol=1e-6)
    assert head.nbytes == 8 * (500 * 500 + 500 * 10 + 10)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder, printed = tmp_path_factory.mktemp("own"), io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(printed):
        return {**run("own.md"), "printed": printed.getvalue(), "skills": folder / "skills"}


def from_learned(
    own: dict[str, Any],
    make: Callable[[nn.Module], hf.Keeper] | None,
    optimizer: type[Optimizer] = Adam,
    *,
    epochs: int = 1,
) -> nn.Module:
    """The page's model as it was when it knew the old digits, and then learned the new ones."""
    model = copy.deepcopy(own["model"])
    model.load_state_dict(own["learned"])
    its = optimizer(model.parameters(), lr=2e-3 if optimizer is Adam else 0.1)  # pyright: ignore[reportCallIssue]
    if make is not None:
        make(model).attach(its)
    own["train"](model, its, own["new"], epochs=epochs)
    return model


def close(one: nn.Module, other: nn.Module, atol: float) -> bool:
    return all(torch.allclose(a, b, atol=atol, rtol=0) for a, b in zip(one.parameters(), other.parameters()))


def test_own_parts_are_short():
    assert num_lines("own.md", "@dataclass\nclass Interval") < 40
    assert num_lines("own.md", "def hessian") < 40


def test_the_table_of_accuracies(own):
    model = from_learned(own, None, epochs=0)
    assert own["accuracy"](model, own["old"]) == pytest.approx(0.94, abs=0.02)
    plain = from_learned(own, None, epochs=10)
    assert own["accuracy"](plain, own["old"]) < 0.75
    for name, (old, new) in {"interval": (0.94, 0.87), "budget": (0.96, 0.78), "dense": (0.95, 0.90)}.items():
        assert own[f"{name}_old"] == pytest.approx(old, abs=0.03)
        assert own[f"{name}_new"] == pytest.approx(new, abs=0.03)


def test_an_own_mechanism_keeps_every_weight_within_its_interval(own):
    keepers = []

    def make(model: nn.Module) -> hf.Keeper:
        keepers.append(hf.Keeper(model, own["Interval"](1e-5)).retain(hf.fisher(model, own["old"].train)))
        return keepers[0]

    model, at_bound = from_learned(own, make), 0
    for name, weight in model.named_parameters():
        rise = 0.5 * keepers[0].held.importance[name] * (weight - own["learned"][name]).square()
        assert rise.max() < 1.01e-5
        at_bound += int((rise > 0.99e-5).sum())
    assert at_bound > 20
    with pytest.raises(OptionError, match="most is in nats, and the importance is not"):
        keepers[0].retain(hf.mas(model, own["old"].train))
    with pytest.raises(OptionError, match="most is -1; expected nats above 0"):
        own["Interval"](-1)


def test_an_own_mechanism_is_reported_saved_and_loaded(own):
    assert re.search(r"^Interval: 1 task held, 380 steps, .* pull / task step 0\.\d+, predicted rise", own["printed"])
    assert own["loaded"].mechanism == own["Interval"](1e-5)
    assert own["loaded"].report().num_steps == 380
    folder = own["skills"] / "interval"
    with pytest.raises(hf.HoldfastError, match=r"Use hf\.Keeper\.load\(folder, model, mechanism=Interval\)\."):
        hf.EWC.load(folder, own["model"])
    told = 'keeper = hf.Keeper.load("THIS FOLDER", model, mechanism=Interval).attach(optimizer)'
    assert told in (folder / "README.md").read_text()


def test_an_own_importance_is_the_diagonal_of_the_hessian(own):
    """Of a linear model the loss's Hessian is the exact Fisher."""
    model, data = nn.Linear(6, 3), [(torch.randn(50, 6), torch.randint(3, (50,)))]
    found, exact = own["hessian"](model, data, num_probes=3000), hf.fisher(model, data)
    for name, value in exact.items():
        assert torch.allclose(found[name], value, rtol=0.2, atol=0.01)


def test_an_own_importance_keeps_a_budget_in_nats(own):
    assert hf.Importance.load(own["skills"] / "hessian").info.kind == "hessian"
    risen = re.findall(r"skill 0 measured ([\d.]+) of 0.05 nats in this lesson", own["printed"])
    assert 0.01 < float(risen[0]) <= 0.05


def test_an_own_importance_is_calibrated(own):
    model, old = from_learned(own, None, epochs=0), own["old"]
    shuffled = old.train.batches(32, generator=torch.Generator().manual_seed(0))
    found = hf.calibrated(model, own["hessian"](model, old.train), shuffled, budget=0.05)
    assert found.info.calibration == "made-up lessons"
    assert found.info.nats_per_unit > 10  # a diagonal sees little of where training goes


def test_an_own_curvature_is_fishers_block(own):
    for name, value in own["diagonals"](own["importance"].layers).items():
        exact = hf.fisher(from_learned(own, None, epochs=0), own["old"].train)[name]
        assert torch.allclose(value, exact, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("optimizer", [SGD, Adam])
@pytest.mark.parametrize("options", [{"strength": 10.0}, {"strength": math.inf}])
def test_an_own_curvature_without_correlations_pulls_as_a_diagonal(own, optimizer, options):
    fisher = hf.fisher(from_learned(own, None, epochs=0), own["old"].train)
    fisher = hf.Importance({name: value + 1e-3 for name, value in fisher.items()}, fisher.info)
    layer = own["importance"].layers["3.weight"]
    K = torch.cat([fisher[name].flatten() for name in layer.parameters]).diag()
    rest = {name: value for name, value in fisher.items() if name not in layer.parameters}
    mixed = own["Mixed"](hf.Importance(rest, fisher.info), {"3.weight": own["Dense"].of(K, layer.parameters)})
    one, other = (
        from_learned(own, lambda model, held=held: hf.EWC(model, **options).retain(held), optimizer)
        for held in (fisher, mixed)
    )
    assert close(one, other, 1e-4)
    assert not close(one, from_learned(own, None, optimizer), 1e-2)


def test_an_own_curvature_is_copied_and_loaded(own):
    model = from_learned(own, None, epochs=0)
    optimizer = SGD(model.parameters(), lr=0.1)
    keeper = hf.EWC(model, 10.0).retain(own["importance"]).attach(optimizer)
    keeper.save(own["skills"] / "again")
    copied, its, _ = copy.deepcopy((model, optimizer, keeper))
    fresh, again = copy.deepcopy((model, optimizer))
    again = SGD(fresh.parameters(), lr=0.1)
    loaded = hf.EWC.load(own["skills"] / "again", fresh).attach(again)
    assert loaded.predicted_rise() == 0
    for net, steps in ((model, optimizer), (copied, its), (fresh, again)):
        own["train"](net, steps, own["new"], epochs=1)
    assert close(model, copied, 0.0)
    assert close(model, fresh, 0.0)
    assert keeper.predicted_rise() == loaded.predicted_rise() > 0


def test_a_curvature_that_lacks_something_is_told_of_it(own):
    """When it is registered, and a subclass of the protocol also when it is made."""
    members = {name: value for name, value in vars(own["Dense"]).items() if name not in ("line", "PARTS", "__dict__")}
    lacking = type("Lacking", (), members)
    with pytest.raises(
        OptionError, match=r"register_curvature\('lacking'\): Lacking lacks PARTS, line[.] The docstrings"
    ):
        hf.curvature.register_curvature("lacking")(lacking)
    below = type("Below", (hf.Curvature,), {name: value for name, value in members.items() if name[:2] != "__"})
    with pytest.raises(OptionError, match=r"Below lacks PARTS, line[.]"):
        hf.curvature.register_curvature("below")(below)
    with pytest.raises(TypeError, match="abstract class Below .*line"):
        below()
    below.line, below.PARTS = own["Dense"].line, own["Dense"].PARTS
    assert hf.curvature.register_curvature("below")(below) is below


def test_an_unknown_curvature_is_told_how_to_be_saved(own):
    class Nameless(own["Dense"]):
        pass

    layer = own["importance"].layers["3.weight"]
    nameless = own["Mixed"](own["importance"].diagonal, {"3.weight": Nameless(layer.R, layer.parameters)})
    keeper = hf.EWC(from_learned(own, None, epochs=0), 1.0).retain(nameless)
    with pytest.raises(OptionError, match=r"'3.weight' \(Nameless\). Put @holdfast.curvature.register_curvature"):
        keeper.save(own["skills"] / "nameless")
    assert not (own["skills"] / "nameless").exists()


# --- figures


NOT_CARRIED_OUT = {"isolation"}
"""Recipes whose runs in full are still to be done."""


def test_recipes_that_are_not_carried_out_have_no_page():
    assert [name for name in RECIPES if not (RESULTS / name).is_dir()] == sorted(NOT_CARRIED_OUT)


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in NOT_CARRIED_OUT])
def test_a_page_of_results_is_what_its_results_say(name):
    folder = RESULTS / name
    told = (folder / "report.md").read_text()
    pictures = [folder / picture for picture in re.findall(r"^!\[.*\]\((.*)\)$", told, flags=re.MULTILINE)]
    head = json.loads((folder / "results.json").read_text())
    assert page_of(recipe(name), pictures, command=head["command"], date=head["date"]) == told
    assert pictures
    assert all(picture.exists() for picture in pictures)


@pytest.mark.parametrize("path", sorted((RESULTS / "benchmarks").glob("*.json")), ids=lambda path: path.stem)
def test_a_page_of_benchmarks_is_what_its_results_say(path, tmp_path):
    parts = json.loads(path.read_text())["parts"]
    about = importlib.import_module(f"benchmarks.{path.stem}").__doc__ or ""
    for part, content in parts.items():
        keep(tmp_path, path.stem, about=about, part=part, content=content)
    assert (tmp_path / f"{path.stem}.md").read_text() == path.with_suffix(".md").read_text()


@pytest.fixture(scope="module")
def claimed() -> list[tuple[str, str]]:
    return list(claims())


@pytest.mark.parametrize("page", PAGES)
def test_every_number_that_was_measured_follows_from_the_results(page, claimed):
    text = paragraphs((ROOT / page).read_text())
    mine = [said for place, said in claimed if place == page]
    exempt = [said for listed in EXEMPT.values() for place, said in listed if place == page]
    wrong = [said for said in mine if said not in text]
    assert not wrong, f"{page} does not say what the results say. Write there: {wrong}"
    gone = [said for said in exempt if said not in text]
    assert not gone, f"tests/claims/numbers.py exempts what is not in {page}: {gone}"
    loose = unclaimed(text, [*mine, *exempt])
    assert not loose, f"{page} has numbers that no claim in tests/claims bears out; add claims: {loose}"


def test_a_number_without_a_claim_is_found():
    text = paragraphs(
        "Runs keep 97.1 ± 0.4% in\n12 minutes, of 5 tasks; 61.6% without.\n\n    code 99%\n\n"
        "| a | b |\n| --- | --- |\n| it | 3.5 |\n"
    )
    assert len(unclaimed(text, [])) == 4
    assert len(unclaimed(text, ["keep 97.1 ± 0.4% in 12 minutes"])) == 2
    assert len(unclaimed(text, ["keep 97.1 ± 0.4% in 12 minutes", "| a | b |"])) == 1
    assert unclaimed(text, ["Runs keep 97.1 ± 0.4% in 12 minutes, of 5 tasks; 61.6%", "| it | 3.5 |"]) == []
