"""What `--method auto` chooses, and that it keeps what plain fine-tuning loses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.language import tiny
from tests.language.test_past import LENGTH, SETTINGS, learn, learned, prose_of

import holdfast as hf
from holdfast.errors import OptionError
from holdfast.language.automatic import AutomaticChoice, choose
from holdfast.language.finetuning import HoldOptions
from holdfast.language.models import load_model
from holdfast.language.past import RehearsalOptions
from holdfast.language.rows import Source


def ready(task: str) -> Any:
    return SimpleNamespace(name="the model", task=task)


def importance(*, probes: bool = False, calibrated: bool = False) -> hf.Importance:
    model = torch.nn.Linear(2, 2)
    batches = [(torch.randn(4, 2), torch.tensor([0, 1, 0, 1]))]
    found = hf.fisher(model, batches)
    if calibrated:
        found = found.with_info(calibration="made-up lessons")
    return found.with_probes(hf.probes_of(model, batches)) if probes else found


def chosen(
    task: str, asked: str | None = None, found: Any = None, what: str | None = None, **held: Any
) -> AutomaticChoice:
    rehearsing = None if what is None else RehearsalOptions(what)
    return choose(ready(task), asked or task, found, HoldOptions(**held), rehearsing)  # type: ignore[arg-type]


MEASURED = "auto: EWC on an importance of what is rehearsed, by hf.measure: none was given"


@pytest.mark.parametrize("told", [{"probes": True}, {"calibrated": True}])
@pytest.mark.parametrize("task", ["causal-lm", "classification", "similarity"])
def test_an_importance_whose_rise_is_known_is_held_alone_under_the_default_budget(task: str, told: dict[str, bool]):
    found = importance(**told)
    choice = chosen(task, found=found)
    assert choice.holding == HoldOptions(budget=0.02)
    assert choice.rehearsing is None
    how = "measured on the importance's probes" if "probes" in told else "foreseen by its calibrated forecast"
    assert choice.reasons == (
        "auto: EWC on the diagonal of the importance that was given",
        f"auto: a budget of 0.02 nats a target, the default; {how}",
    )
    beside = chosen(task, found=found, what="new", budget=0.1)
    assert (beside.holding, beside.rehearsing) == (HoldOptions(budget=0.1), RehearsalOptions("new", 0.1))
    assert "auto: one step of 10 rehearses (share 0.1)" in beside.reasons
    assert f"auto: a budget of 0.1 nats a target, as given; {how}" in beside.reasons


def test_another_importance_gets_a_past_beside():
    causal, encoder = chosen("causal-lm", found=importance()), chosen("similarity", found=importance())
    assert causal.rehearsing == RehearsalOptions("self")
    assert encoder.rehearsing == RehearsalOptions("new")
    assert causal.holding == encoder.holding == HoldOptions(budget=0.02)
    assert causal.reasons[0].startswith("auto: rehearses its own dreams: the importance has neither probes nor a worth")
    assert causal.reasons[-1].endswith("measured on a part of the past that is set apart")
    assert encoder.reasons[-1].endswith("foreseen by its forecast, which is too small")
    turned = chosen("causal-lm", "classification", found=importance())
    assert turned.rehearsing is None
    assert turned.holding == HoldOptions(budget=0.02)


def test_without_an_importance_one_is_measured_on_the_past_where_this_shows_the_old_skill():
    causal = chosen("causal-lm")
    assert MEASURED in causal.reasons
    assert causal.rehearsing == RehearsalOptions("self")
    assert causal.holding == HoldOptions(budget=0.02)
    for task in ("causal-lm", "classification", "similarity"):
        old = chosen(task, what="old.jsonl", importance_dtype="int8")
        assert MEASURED in old.reasons
        assert old.holding == HoldOptions(budget=0.02, importance_dtype="int8")
        new = chosen(task, what="new")
        assert (new.holding, new.rehearsing) == (None, RehearsalOptions("new"))
        assert new.reasons[-1].startswith("auto: no weights are held")
    assert chosen("similarity").rehearsing == RehearsalOptions("new")


def test_what_it_refuses():
    with pytest.raises(OptionError, match="--strength beside --method auto, which holds to a budget. Leave it out, or"):
        chosen("causal-lm", strength=1.0)
    with pytest.raises(
        OptionError, match="the model was made for causal-lm and now learns classification; .* --keep DIR"
    ):
        chosen("causal-lm", "classification")
    with pytest.raises(OptionError, match="--budget, --pull-every beside --method auto, which holds no weights here"):
        chosen("classification", budget=0.1, pull_every=2)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    prose_of(folder / "old.txt", tiny.WORDS[:12])
    prose_of(folder / "new.txt", tiny.WORDS[12:])
    learned(folder / "causal", load_model(str(tiny.causal(folder / "bare"))), folder / "old.txt", steps=150)
    tiny.encoder(folder / "encoder")
    tiny.intents(folder / "new.jsonl")
    tiny.prose(folder / "prose.txt")
    return folder


def test_a_causal_model_dreams_measures_and_is_held(place: Path, tmp_path: Path):
    lines: list[str] = []
    kept = learn(
        place,
        tmp_path / "out",
        "causal",
        "new.txt",
        None,
        automatic=True,
        compare=True,
        old_data=Source(str(place / "old.txt")),
        on_plan=lines.extend,
        settings=replace(SETTINGS, lr=1e-3),
    )
    assert len(kept.choices) == 4
    assert set(kept.choices) <= set(lines)
    assert json.loads((tmp_path / "out" / "kept_and_learned.json").read_text())["choices"] == list(kept.choices)
    assert kept.budget == 0.02
    assert "of 0.02 nats in this lesson" in kept.report
    assert "256 dreams of" in kept.rehearsed
    rises = {way: kept.old[way].loss - kept.old["before"].loss for way in ("held", "plain")}
    assert rises["held"] < 0.7 * rises["plain"]
    assert kept.new["held"].loss < kept.new["before"].loss


def test_an_encoder_is_held_by_unlabelled_old_texts(place: Path, tmp_path: Path):
    """Kronecker factors over single texts, a budget on cosines that are not rehearsed, and old cosines."""
    kept = learn(place, tmp_path / "out", "encoder", "new.jsonl", "prose.txt", automatic=True, length=LENGTH)
    assert "EWC: 1 task held" in kept.report
    measured = float(kept.report.split("skill 0 measured ")[1].split()[0])
    assert measured <= 0.02
    assert kept.new["held"].loss < kept.new["before"].loss
