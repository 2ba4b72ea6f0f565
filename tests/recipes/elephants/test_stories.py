"""Both stories, with tiny models and data made up."""

from __future__ import annotations

import itertools
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from recipes.__main__ import main
from recipes.elephants import encoder, gpt, learning, story
from recipes.elephants.encoder import Encoder
from recipes.elephants.gpt import Gpt
from recipes.elephants.learning import Pace, learn, shuffled
from recipes.elephants.methods import STORY_METHODS, Start, learn_with
from recipes.elephants.story import carry_out, choose, tuning
from recipes.elephants.trial import StoryTrial, do_all, known_trials
from tests.language import tiny

from holdfast.errors import (
    DataFileError,
    FileFormatError,
    NotFiniteError,
    OptionError,
    RunMismatchError,
    UnknownNameError,
)
from holdfast.files import write_state
from holdfast.files.exclusive import locked
from holdfast.language.batches import examples
from holdfast.language.models import load_model
from holdfast.language.rows import read_rows
from holdfast.language.skills import likelihood_of
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
        "speeches",
        "wikitext2",
    ):
        (folder / "text" / name).mkdir(parents=True)
    for part in ("train", "dev", "test"):
        tiny.pairs(folder / "text" / "stsb" / f"stsb-en-{part}.csv", count=120)
    for place in (folder / "text").glob("*/*"):
        if place.is_dir():
            rows = [f"{('card', 'money', 'dog')[n % 3]} {tiny.sentence(n)}" for n in range(48)]
            (place / "seq.in").write_text("\n".join(rows) + "\n")
            (place / "label").write_text("\n".join(row.split()[0] for row in rows) + "\n")
    (folder / "text" / "speeches" / "one.txt").write_text("".join(f"{tiny.sentence(n)}.\n" for n in range(4000)))
    lines = [" ".join(tiny.sentence(n + k) for k in range(4)) for n in range(400)]
    (folder / "text" / "wikitext2" / "valid.txt").write_text("\n".join(lines) + "\n")
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


def learned_by(folder: Path, data: Path, name: str, value: float | None, **options: Any) -> tuple[Encoder, Any, Any]:
    """The story, the similarity model and its weights before, after intents were learned by a method."""
    told = Encoder(data, folder, "quick", model=str(data / "encoder"))
    bare = told.fresh()
    similarity, model = told.over(bare), told.classifier(encoder.TASK, bare, 0)
    before = copies(all_parameters(similarity.module))

    def stream() -> Any:
        return shuffled(model, told.sentences(model, encoder.TASK, "train"), size=8, seed=0)

    pace = Pace(10, 1e-2, **options)
    start = Start(
        model,
        similarity.module,
        held=told.importance,
        past=lambda source, share: told.past(source, share, 0, similarity.module, model),
        loss=likelihood_of("similarity"),
        trained=lambda: learn(model, stream(), pace) and None,
    )
    learn_with(STORY_METHODS[name], value, start, stream(), pace)
    return told, similarity, before


def test_each_method_is_what_its_name_says(quick: Path, tmp_path: Path):
    """From one seed: each differs from plain, and holds on to the start in its own way."""
    moved, rises = {}, {}
    for method, value in (
        ("plain", None),
        ("frozen", None),
        ("l2", 1e9),
        ("lora-8", None),
        ("replay-10", 1.0),
        ("distil", 1.0),
        ("dreams", 1.0),
        ("dreams-kfac", 1e6),
        ("dreams-budget", 1e-4),
        ("average", 0.5),
        ("rewind", 1e-4),
        ("ewc", 1e6),
        ("wva", 1e12),
    ):
        told, similarity, before = learned_by(tmp_path, quick, method, value)
        after = all_parameters(similarity.module)
        assert list(after) == list(before)  # no adapters are left
        assert all(parameter.requires_grad for parameter in after.values())
        moved[method] = {name: after[name].detach() - before[name] for name in before}
        source = STORY_METHODS[method].source
        rises[method] = told.importance(STORY_METHODS[method].form, source).probes.rise(similarity.module)
    length = {method: float(sum(d.square().sum() for d in change.values()) ** 0.5) for method, change in moved.items()}
    assert length["frozen"] == 0
    assert length["plain"] > 0.05
    assert length["l2"] < 1e-3 * length["plain"]
    assert all(torch.allclose(moved["average"][name], moved["plain"][name] / 2, atol=1e-6) for name in moved["plain"])
    adapted = {name for name, change in moved["lora-8"].items() if change.abs().max() > 0}
    assert adapted
    assert all("weight" in name and "embeddings" not in name for name in adapted)
    assert min(abs(length[method] - length["plain"]) for method in ("replay-10", "distil", "dreams")) > 0
    assert max(rises["rewind"], rises["dreams-budget"]) <= 1e-4 < rises["plain"]
    assert max(rises["ewc"], rises["wva"], rises["dreams-kfac"]) < rises["plain"] / 10


@pytest.mark.parametrize("story", ["encoder", "gpt"])
def test_all_that_can_be_set_have_as_many_trials(story: str):
    for method in STORY_METHODS.values():
        found = method.settings_for(story)
        left_out = (("frozen", "gpt"), ("budget", "gpt"), ("replay-20", "encoder"), ("dreams-20", "encoder"))
        assert len(found) == (0 if (method.name, story) in left_out else 1 if method.name == "frozen" else 4)
        assert len(set(found)) == len(found)


def test_what_is_stopped_early_ends_at_its_best(quick: Path, tmp_path: Path):
    told = Encoder(quick, tmp_path, "quick", model=str(quick / "encoder"))
    model = told.classifier(encoder.TASK, told.fresh(), 0)
    weights, seen = all_parameters(model.module), []
    losses = iter([3.0, 2.0, 1.0, 4.0, 5.0])

    def judge() -> float:
        seen.append(copies(weights))
        return next(losses)

    stream = shuffled(model, told.sentences(model, encoder.TASK, "train"), size=8, seed=0)
    assert learn(model, stream, Pace(5, 1e-2), judge=judge) == 3
    assert all(torch.equal(weights[name], value) for name, value in seen[2].items())
    assert not all(torch.equal(seen[4][name], value) for name, value in seen[2].items())


def test_the_encoder_story_is_told_on_one_page(quick: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    asked = [
        "elephants",
        "encoder",
        "--size",
        "quick",
        "--seeds",
        "0",
        "--methods",
        "dreams-budget",
        "average",
        "--output",
        str(tmp_path),
    ]
    assert main([*asked, "--data-dir", str(quick)]) == 0
    said = capsys.readouterr().out
    assert "a budget, Kronecker factors: " in said
    assert "of what plain training loses" in said
    folder = tmp_path / "elephants" / "encoder" / "quick"
    page = (folder / "report.md").read_text()
    assert "| plain fine-tuning | rate x" in page
    assert "| average with the old model | share of the new 0." in page
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
        "dreams-kfac",
        "--output",
        str(tmp_path),
    ]
    assert main([*asked, "--data-dir", str(quick)]) == 0
    page = (tmp_path / "elephants" / "gpt" / "quick" / "report.md").read_text()
    assert "| replay, 10% old data | weight " in page
    assert "| free texts and EWC, Kronecker factors | strength" in page
    assert "±" in page
    found = Gpt(quick, tmp_path / "elephants" / "gpt" / "quick", "quick")
    assert found.english["train"]
    assert found.python["test"]
    assert not set(found.python["train"].splitlines()[:50]) == set(found.python["test"].splitlines()[:50])


def test_kronecker_factors_of_dreams_hold_a_gpt(quick: Path, tmp_path: Path):
    told = Gpt(quick, tmp_path, "quick")
    lengths = []
    for strength in (1e-6, 1e6):
        model = load_model(str(told.prepared()), task="causal-lm")
        before = copies(all_parameters(model.base))
        start = Start(model, model.base, held=told.importance, past=lambda source, share: told.past(source, share, 0))
        stream = shuffled(model, told.blocks["python", "train"], size=4, seed=0)
        learn_with(STORY_METHODS["dreams-kfac"], strength, start, stream, Pace(8, 3e-3))
        after = all_parameters(model.base)
        lengths.append(float(sum((after[name].detach() - before[name]).square().sum() for name in before)) ** 0.5)
    assert 0 < lengths[1] < 0.5 * lengths[0]
    factors = told.importance("kronecker", "free")
    assert "transformer.h.0.mlp.c_fc.weight" in factors.layers
    assert "transformer.wte.weight" in factors.diagonal
    start = replace(start, trained=None)
    with pytest.raises(OptionError, match="rewind: there are no trained weights to go back from"):
        learn_with(STORY_METHODS["rewind"], 1.0, start, iter(()), Pace(1, 1e-3))


def test_a_setting_is_chosen_that_learns_enough_and_keeps_the_most():
    plain, ewc = (tuning("gpt", STORY_METHODS[name], "full", None) for name in ("plain", "ewc"))

    def found(nats: float, perplexity: float) -> dict[str, Any]:
        return {
            "before": {"old": {"validation": {"value": 50.0, "loss": 4.0}}},
            "after": {
                "old": {"validation": {"value": 50.0, "loss": 4.0 + nats}},
                "new": {"validation": {"value": perplexity}},
            },
        }

    known = dict(zip(plain, (found(1.0, 30.0), found(2.0, 20.0), found(2.5, 21.0), found(3.0, 40.0))))
    assert choose("gpt", plain, known, None) == plain[1]
    known |= dict(zip(ewc, (found(1.5, 20.0), found(0.9, 20.1), found(0.2, 20.9), found(0.1, 25.0))))
    assert choose("gpt", ewc, known, plain[1]) == ewc[1]
    known |= dict(zip(ewc, (found(1.5, 23.0), found(0.9, 22.0), found(0.2, 24.0), found(0.1, 25.0))))
    assert choose("gpt", ewc, known, plain[1]) == ewc[1]
    lora, dreams = (tuning("gpt", STORY_METHODS[name], "full", 0.5) for name in ("lora-8", "dreams"))
    assert [trial.lr for trial in lora] == [0.15, 0.5, 1.5, 5.0]
    assert [(trial.lr, trial.value) for trial in dreams] == [(0.5, 0.3), (0.5, 1.0), (0.5, 3.0), (0.5, 10.0)]


def test_trials_are_shared_between_processes(tmp_path: Path):
    trials = [StoryTrial("gpt", "plain", 1.0, None, seed) for seed in range(3)]
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
    trials = [StoryTrial("gpt", "plain", 1.0, None, 0)]
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
