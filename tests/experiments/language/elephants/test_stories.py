"""Both stories, with tiny models and data made up."""

from __future__ import annotations

import itertools
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.experiments.language import tiny

from holdfast.cli import main
from holdfast.errors import (
    DataFileError,
    FileFormatError,
    NotFiniteError,
    OptionError,
    RunMismatchError,
    UnknownNameError,
)
from holdfast.experiments.language import learning
from holdfast.experiments.language.batches import examples
from holdfast.experiments.language.elephants import encoder, gpt, story
from holdfast.experiments.language.elephants.encoder import Encoder
from holdfast.experiments.language.elephants.gpt import Gpt
from holdfast.experiments.language.elephants.methods import STORY_METHODS, Learned, Start, StoryMethod, learn_with
from holdfast.experiments.language.elephants.story import carry_out, choose_setting, tuning
from holdfast.experiments.language.elephants.trial import StoryTrial, do_all, known_trials
from holdfast.experiments.language.learning import Old, Pace, learn, shuffled
from holdfast.experiments.language.measuring import measure_importance
from holdfast.experiments.language.models import LanguageModel, load_model
from holdfast.experiments.language.rows import read_rows
from holdfast.experiments.lock import locked
from holdfast.files import write_state
from holdfast.tensors import all_parameters, copies


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of the real data, with little in them."""
    folder = tmp_path_factory.mktemp("data")
    for name in (
        "stsb",
        "banking77/train",
        "banking77/valid",
        "banking77/test",
        "clinc150/train",
        "clinc150/valid",
        "clinc150/test",
        "speeches",
    ):
        (folder / "text" / name).mkdir(parents=True)
    for part in ("train", "dev", "test"):
        tiny.pairs(folder / "text" / "stsb" / f"stsb-en-{part}.csv", count=64)
    for place in (folder / "text").glob("*/*"):
        if place.is_dir():
            rows = [f"{('card', 'money', 'dog')[n % 3]} {tiny.sentence(n)}" for n in range(48)]
            (place / "seq.in").write_text("\n".join(rows) + "\n")
            (place / "label").write_text("\n".join(row.split()[0] for row in rows) + "\n")
    (folder / "text" / "speeches" / "one.txt").write_text("".join(f"{tiny.sentence(n)}.\n" for n in range(4000)))
    return folder


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, data: Path) -> Path:
    """A few steps, and a tiny encoder."""
    model = tiny.encoder(data / "encoder")
    monkeypatch.setitem(encoder.PACES, "quick", Pace(10, 1e-2, head_lr=1e-2, batch_size=8))
    monkeypatch.setattr(story, "Encoder", lambda *given: Encoder(*given, model=str(model)))
    small = Pace(6, 3e-3, batch_size=4)
    sizes = replace(
        gpt.SIZES["quick"],
        width=32,
        layers=1,
        vocabulary=300,
        english=small,
        python=small,
        measured=32,
        evaluated=4,
        characters=40_000,
    )
    monkeypatch.setitem(gpt.SIZES, "quick", sizes)
    return data


def start_of(
    folder: Path, data: Path, method: str, setting: float, **options: Any
) -> tuple[LanguageModel, dict, Learned]:
    """A model that learned intents by a method, its weights before, and what the method says."""
    told = Encoder(data, folder, "quick", model=str(data / "encoder"))
    bare = told.ready.base
    before = copies(all_parameters(bare))
    model = told.classifier("banking77", bare, 0)
    old = Old(told.ready, shuffled(told.ready, told.pairs("train"), size=8, seed=0), 0.0)
    held = ((told.importance(lambda _: None), before),)
    start = Start(model, held, lambda share: replace(old, share=share))
    stream = shuffled(model, told.sentences(model, "banking77", "train"), size=8, seed=0)
    return model, before, learn_with(method, setting, start, stream, Pace(10, 1e-2, **options))


def test_each_method_is_what_its_name_says(quick: Path, tmp_path: Path):
    """From one seed: each differs from plain, and holds on to the start in its own way."""
    moved, rises = {}, {}
    for method, setting in (
        ("plain", 0.0),
        ("frozen", 0.0),
        ("l2", 1e9),
        ("lora", 1e-2),
        ("replay-10", 0.1),
        ("average", 0.5),
        ("ewc", 1e6),
        ("ewc-budget", 1e-5),
        ("wva", 1e12),
    ):
        model, before, learned = start_of(tmp_path, quick, method, setting)
        after = all_parameters(model.base)
        assert list(after) == list(before)  # no adapters are left
        assert all(parameter.requires_grad for parameter in after.values())
        moved[method] = {name: after[name].detach() - before[name] for name in before}
        rises[method] = learned.predicted_rise
    length = {method: float(sum(d.square().sum() for d in change.values()) ** 0.5) for method, change in moved.items()}
    assert length["frozen"] == 0
    assert length["plain"] > 0.05
    assert length["l2"] < 1e-3 * length["plain"]
    assert all(torch.allclose(moved["average"][name], moved["plain"][name] / 2, atol=1e-6) for name in moved["plain"])
    adapted = {name for name, change in moved["lora"].items() if change.abs().max() > 0}
    assert adapted
    assert all("weight" in name and "embeddings" not in name for name in adapted)
    assert 0 < abs(length["replay-10"] - length["plain"])
    assert rises["ewc-budget"] <= 1e-5 < rises["ewc"] + 1e-5 < rises["plain"] / 10
    assert rises["wva"] < rises["plain"] / 10


@pytest.mark.parametrize(
    ("method", "published", "power"),
    [
        ("ewc", (3e-3, 1e-2, 3e-2), 1),
        ("ewc-kfac", (3e-3, 1e-2, 1.5e-2), 1),
        ("wva", (10.0, 100.0, 1e3), 1),
        ("ewc-budget", (64.0,), -1),
        ("l2", (1e-4, 1e-3, 1e-2, 1e-1), 0),  # of no likelihood
    ],
)
def test_settings_of_the_gpt_are_the_published_ones_in_nats_a_token(
    method: str, published: tuple[float, ...], power: int
):
    num_targets = gpt.LENGTH - 1  # of a block: nothing predicts its first token
    found = STORY_METHODS[method].settings_for("gpt")
    assert found == pytest.approx(tuple(setting * num_targets**power for setting in published))


def test_the_encoder_story_is_told_on_one_page(quick: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    asked = [
        "elephants",
        "encoder",
        "--size",
        "quick",
        "--seeds",
        "0",
        "--methods",
        "ewc-budget",
        "--output",
        str(tmp_path),
    ]
    assert main([*asked, "--data-dir", str(quick)]) == 0
    said = capsys.readouterr().out
    assert "EWC, budget" in said
    assert "of plain's loss of the old skill" in said
    folder = tmp_path / "elephants" / "encoder" / "quick"
    page = (folder / "report.md").read_text()
    assert "| plain fine-tuning |  |" in page
    assert "| EWC, budget | nats 0.05 |" in page
    assert (folder / "encoder.png").is_file()
    assert not list(folder.glob(".holdfast-*"))
    assert main([*asked, "--data-dir", str(quick), "--quiet"]) == 0
    assert "step 0" not in capsys.readouterr().out  # all is there already


def test_the_gpt_story_is_told_too(quick: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    asked = [
        "elephants",
        "gpt",
        "--size",
        "quick",
        "--seeds",
        "0",
        "1",
        "--methods",
        "replay-10",
        "ewc-kfac",
        "--output",
        str(tmp_path),
    ]
    assert main([*asked, "--data-dir", str(quick)]) == 0
    page = (tmp_path / "elephants" / "gpt" / "quick" / "report.md").read_text()
    assert "| replay, 10% old data | share 0.1 |" in page
    assert "| EWC, Kronecker factors | strength" in page
    assert "±" in page
    found = Gpt(quick, tmp_path / "elephants" / "gpt" / "quick", "quick")
    assert found.english["train"]
    assert found.python["test"]
    assert not set(found.python["train"].splitlines()[:50]) == set(found.python["test"].splitlines()[:50])


def test_kronecker_factors_hold_a_gpt(quick: Path, tmp_path: Path):
    told = Gpt(quick, tmp_path, "quick")
    lengths = []
    for strength in (1e-6, 1e6):
        model = load_model(str(told.prepared()), task="causal-lm")
        before = copies(all_parameters(model.base))
        held = ((told.importance(lambda _: None), before),)
        start = Start(model, held, factors=lambda: told.factors(lambda _: None))
        stream = shuffled(model, told.blocks["python", "train"], size=4, seed=0)
        learn_with("ewc-kfac", strength, start, stream, Pace(8, 3e-3))
        after = all_parameters(model.base)
        lengths.append(float(sum((after[name].detach() - before[name]).square().sum() for name in before)) ** 0.5)
    assert 0 < lengths[1] < 0.5 * lengths[0]
    factors = told.factors(lambda _: None)
    assert "transformer.h.0.mlp.c_fc.weight" in factors
    assert "transformer.wte.weight" in factors.diagonal
    with pytest.raises(OptionError, match="ewc-kfac: there are no Kronecker factors"):
        learn_with("ewc-kfac", 1.0, replace(start, factors=None), iter(()), Pace(1, 1e-3))


def test_a_setting_is_chosen_that_learns_enough_and_keeps_the_most():
    ewc = StoryMethod("ewc", "", (1.0, 10.0, 100.0), "")

    def found(similarity: float, accuracy: float) -> dict[str, Any]:
        values = {
            "similarity": {"validation": {"value": similarity}},
            "accuracy": [{"validation": {"value": accuracy}}],
        }
        return {"after": [values]}

    known = {tuning("encoder", STORY_METHODS["plain"], "full")[0]: found(0.70, 0.90)}
    known |= dict(zip(tuning("encoder", ewc, "full"), (found(0.75, 0.90), found(0.80, 0.88), found(0.82, 0.80))))
    assert choose_setting("encoder", ewc, "full", known) == 10.0
    known |= dict(zip(tuning("encoder", ewc, "full"), (found(0.75, 0.80), found(0.80, 0.78), found(0.82, 0.70))))
    assert choose_setting("encoder", ewc, "full", known) == 1.0
    known |= dict(zip(tuning("encoder", STORY_METHODS["ewc"], "full"), [found(0.8, 0.9)] * 5))
    assert choose_setting("encoder", STORY_METHODS["ewc-8bit"], "full", known) == STORY_METHODS["ewc"].settings[0]

    def read(english: float, python: float) -> dict[str, Any]:
        return {"after": {"english": {"validation": {"value": english}}, "python": {"validation": {"value": python}}}}

    known = {tuning("gpt", STORY_METHODS["plain"], "full")[0]: read(300.0, 20.0)}
    known |= dict(zip(tuning("gpt", ewc, "full"), (read(200.0, 20.2), read(120.0, 20.9), read(90.0, 25.0))))
    assert choose_setting("gpt", ewc, "full", known) == 10.0


def test_trials_are_shared_between_processes(tmp_path: Path):
    trials = [StoryTrial("gpt", "plain", 0.0, seed) for seed in range(3)]
    done: list[StoryTrial] = []

    def do(trial: StoryTrial, _: Any) -> dict[str, Any]:
        done.append(trial)
        return {"seed": trial.seed}

    with locked(
        tmp_path / f".holdfast-{trials[0].name}.lock"
    ):  # as if another process did the first one, and were killed
        with pytest.raises(StopIteration):
            do_all(
                trials,
                lambda trial, on_message: do(trial, on_message) if trial.seed == 1 else next(iter(())),
                tmp_path,
                settings={},
                on_message=str,
            )
    assert do_all(trials, do, tmp_path, settings={}, on_message=str).keys() == set(trials)
    assert [trial.seed for trial in done] == [1, 0, 2]


def test_trials_of_other_settings_are_not_mixed_in(tmp_path: Path):
    trials = [StoryTrial("gpt", "plain", 0.0, 0)]
    do_all(trials, lambda trial, on_message: {}, tmp_path, settings={"steps": 10}, on_message=str)
    assert known_trials(tmp_path, {"steps": 10}).keys() == set(trials)
    for read in (
        lambda: known_trials(tmp_path, {"steps": 20}),
        lambda: do_all(trials, lambda trial, on_message: {}, tmp_path, settings={"steps": 20}, on_message=str),
    ):
        with pytest.raises(RunMismatchError, match="steps 10 there, 20 here. Choose another --output"):
            read()


def test_training_that_diverges_stops(tmp_path: Path):
    model = load_model(str(tiny.causal(tmp_path / "causal")))
    found = list(examples(model, read_rows(str(tiny.prose(tmp_path / "a.txt"))), length=16, labelled=False))
    with pytest.raises(NotFiniteError, match="training has diverged. Lower the learning rate"):
        learn(model, shuffled(model, found, size=4, seed=0), Pace(50, 1e30))
    importance, _ = measure_importance(load_model(str(tmp_path / "causal")), lambda: iter(found))
    with pytest.raises(OptionError, match="replay-1: there are no old data"):
        learn_with("replay-1", 0.01, Start(model, ((importance, {}),)), iter(()), Pace(1, 1e-3))


def test_training_goes_on_where_it_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(learning, "_SAVED_EVERY", 5)
    folder = tiny.causal(tmp_path / "causal")
    text = tiny.prose(tmp_path / "a.txt")
    pace = Pace(18, 1e-2)

    def learned(checkpoint: Path | None, *, killed_at: int | None = None) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = load_model(str(folder))
        found = list(examples(model, read_rows(str(text)), length=16, labelled=False))
        batches = shuffled(model, found, size=4, seed=0)
        stream = batches if killed_at is None else itertools.islice(batches, killed_at)
        learn(model, stream, pace, checkpoint=checkpoint)
        return copies(all_parameters(model.base))

    checkpoint = tmp_path / "half.safetensors"
    whole = learned(None)
    with pytest.raises(StopIteration):
        learned(checkpoint, killed_at=13)
    assert checkpoint.exists()
    resumed = learned(checkpoint)
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
    assert not checkpoint.exists()
    for told, why in ((asdict(pace), "Missing key"), (asdict(Pace(18, 1e-3)), "it is at another pace")):
        write_state(checkpoint, {"model/other": torch.zeros(1)}, {"done": 5, "pace": told})
        with pytest.raises(FileFormatError, match=rf"half.safetensors does not fit this training .*{why}.* Delete it"):
            learned(checkpoint)


def test_what_is_not_there_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UnknownNameError, match="unknown method 'ewx'. Did you mean 'ewc'"):
        carry_out("gpt", work=tmp_path, data_dir=tmp_path, methods=["ewx"])
    with pytest.raises(DataFileError, match="none of speeches, tinyshakespeare, wikitext2. Name another --data-dir"):
        _ = Gpt(tmp_path, tmp_path).english
    told = Encoder(tmp_path, tmp_path, model=str(tiny.encoder(tmp_path / "encoder")))
    with pytest.raises(DataFileError, match="Put the intents there, or name another --data-dir"):
        told.classifier("banking77", told.ready.base, 0)
    monkeypatch.delenv("HOLDFAST_DATA", raising=False)
    assert main(["elephants", "gpt"]) == 2
    assert "where are the texts? Give --data-dir" in capsys.readouterr().err
    assert main(["elephants", "encoder", "--size", "large", "--data-dir", str(tmp_path)]) == 2
    assert "encoder has no size large" in capsys.readouterr().err
