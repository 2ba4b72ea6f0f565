"""What a fine-tuning rehearses, on tiny models that have learned something first."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.files.folders import listing
from tests.language import tiny
from tests.language.test_keeping import keep

import holdfast as hf
from holdfast.errors import (
    CollapseError,
    DataFileError,
    EmptyDataError,
    FileFormatError,
    ModelMismatchError,
    OptionError,
)
from holdfast.language import dreamt
from holdfast.language.batches import collate, examples
from holdfast.language.dreamt import dream_into
from holdfast.language.finetuning import FineTuneSettings, HoldOptions, fine_tune
from holdfast.language.heads import head_tensors
from holdfast.language.keeping import keep_and_learn
from holdfast.language.kept import SkillChange
from holdfast.language.models import LanguageModel, load_model, revision_of
from holdfast.language.past import OldAnswers, Past, RehearsalOptions
from holdfast.language.rows import Source

SETTINGS = FineTuneSettings(steps=40, lr=5e-3, batch_size=8)
LENGTH = 16


def learned(folder: Path, model: LanguageModel, data: Path, *, steps: int) -> None:
    """Write a model that has learned these data."""
    found = list(examples(model, Source(str(data)).rows(), length=LENGTH, labelled=True))
    fine_tune(model, found, replace(SETTINGS, steps=steps), folder=folder.with_name("training"))
    model.save(folder)


def prose_of(path: Path, words: list[str]) -> None:
    """Sentences of these words alone, in random order."""
    drawn = torch.randint(len(words), (80, 6), generator=torch.Generator().manual_seed(0)).tolist()
    path.write_text("".join(" ".join(words[place] for place in line) + "\n" for line in drawn))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal model of some words, a classifier of two intents and an encoder, with old and new data."""
    folder = tmp_path_factory.mktemp("place")
    prose_of(folder / "old.txt", tiny.WORDS[:12])
    prose_of(folder / "new.txt", tiny.WORDS[12:])
    learned(folder / "causal", load_model(str(tiny.causal(folder / "bare"))), folder / "old.txt", steps=150)
    tiny.intents(folder / "old.jsonl", names=("card", "money"), count=120)
    topics = {"card": "bank", "money": "bank", "dog": "pet", "cat": "pet"}  # what was told apart becomes the same
    tiny.intents(folder / "new.jsonl", names=tuple(topics), count=120)
    rows = [json.loads(line) for line in (folder / "new.jsonl").read_text().splitlines()]
    rows = [{**row, "label": topics[row["label"]]} for row in rows]
    (folder / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    untaught = str(tiny.encoder(folder / "untaught"))
    classifier = load_model(untaught, task="classification", labels=("card", "money"), head="original")
    learned(folder / "classifier", classifier, folder / "old.jsonl", steps=60)
    tiny.classifier(folder / "bert")
    tiny.encoder(folder / "encoder")
    tiny.pairs(folder / "pairs.csv", count=80)
    tiny.prose(folder / "prose.txt")
    return folder


def learn(place: Path, output: Path, model: str, data: str, what: str | None, **options: Any) -> SkillChange:
    rehearsing = options.pop("rehearsing", None)
    if what is not None:
        share = options.pop("share", 0.5)
        rehearsing = RehearsalOptions(what if what in ("self", "new") else str(place / what), share)
        if rehearsing.kind == "data":
            rehearsing = replace(rehearsing, source=Source(rehearsing.what))
    given: dict[str, Any] = {"keep": None, "settings": SETTINGS, "length": LENGTH, "holding": HoldOptions()}
    given |= {"rehearsing": rehearsing, "output": output, **options}
    return keep_and_learn(str(place / model), Source(str(place / data)), **given)


@pytest.mark.parametrize(
    ("model", "data", "what", "old", "told"),
    [
        ("causal", "new.txt", "self", "old.txt", "dreams of"),
        ("causal", "new.txt", "old.txt", "old.txt", "blocks of tokens of"),
        ("classifier", "new.jsonl", "new", "old.jsonl", "old answers to 108 texts of the new data, head 'original'"),
        ("classifier", "new.jsonl", "old.jsonl", "old.jsonl", "120 examples of"),
        ("classifier", "new.jsonl", "prose.txt", "old.jsonl", "old answers to 80 texts of"),
    ],
)
def test_what_is_rehearsed_is_kept_where_plain_fine_tuning_loses_it(
    place: Path, tmp_path: Path, model: str, data: str, what: str, old: str, told: str
):
    logged: list[Mapping[str, Any]] = []
    kept = learn(
        place,
        tmp_path / "out",
        model,
        data,
        what,
        compare=True,
        old_data=Source(str(place / old)),
        on_log=lambda way, logs: logged.append({"way": way, **logs}),
    )
    rises = {way: kept.old[way].loss - kept.old["before"].loss for way in ("held", "plain")}
    assert rises["plain"] > 0.05
    assert rises["held"] < 0.5 * rises["plain"]
    assert kept.new["held"].loss < kept.new["before"].loss
    assert told in kept.rehearsed
    assert all(("rehearsal_loss" in logs) == (logs["way"] == "held") for logs in logged)
    assert kept.report == ""
    assert kept.method == "rehearsal"
    written = json.loads((tmp_path / "out" / "kept_and_learned.json").read_text())
    assert (written["rehearsed"], written["share"]) == (kept.rehearsed, 0.5)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not (tmp_path / "out" / ".holdfast-training").exists()


@pytest.mark.parametrize(
    ("what", "told"),
    [("new", "108 texts of the new data"), ("prose.txt", "to 80 texts"), ("old.jsonl", "to 120 texts")],
)
def test_an_encoders_old_cosines_are_kept(place: Path, tmp_path: Path, what: str, told: str):
    before = load_model(str(place / "encoder"))
    found = list(examples(before, Source(str(place / "old.jsonl")).rows(), length=LENGTH, labelled=False))
    probes = hf.probes_of(before.module, [collate(before, found)], loss="similarity")
    kept = learn(place, tmp_path / "out", "encoder", "new.jsonl", what, compare=True)
    assert told in kept.rehearsed
    held, plain = (
        probes.rise(load_model(str(tmp_path / name), task="similarity").module) for name in ("out", "out/plain")
    )
    assert plain > 0.02
    assert held < 0.5 * plain


def test_an_encoder_learns_old_pairs_with_their_similarities_again(place: Path, tmp_path: Path):
    old = Source(str(place / "pairs.csv"))
    kept = learn(place, tmp_path / "out", "encoder", "new.jsonl", "pairs.csv", compare=True, old_data=old)
    assert "80 examples of" in kept.rehearsed
    assert kept.old["held"].loss < kept.old["plain"].loss - 0.1


@pytest.mark.parametrize("what", ["self", "old.txt"])
def test_a_budget_is_measured_on_a_part_that_is_not_rehearsed(place: Path, tmp_path: Path, what: str):
    folder = keep(tmp_path / "keep", load_model(str(place / "causal")), place / "old.txt", kind="kfac")
    held = {"keep": folder, "holding": HoldOptions(budget=0.2)}
    kept = learn(place, tmp_path / "out", "causal", "new.txt", what, **held)
    assert "EWC: 1 task held, 40 steps" in kept.report
    assert "skill 0 measured" in kept.report
    assert "of 0.2 nats in this lesson" in kept.report


@pytest.mark.parametrize("case", ["bert old.jsonl", "classifier old.jsonl", "encoder pairs.csv"])
def test_a_budget_is_measured_through_the_old_head(place: Path, tmp_path: Path, case: str):
    """The importance names the base, and the probes are of another module over it."""
    model, what = case.split()
    folder = keep(tmp_path / "keep", load_model(str(place / model)), place / "prose.txt")
    held = {"keep": folder, "holding": HoldOptions(budget=1e-4)}
    kept = learn(place, tmp_path / "out", model, "new.jsonl", what, old_data=Source(str(place / what)), **held)
    assert "of 0.0001 nats in this lesson" in kept.report
    measured = float(kept.report.split("skill 0 measured ")[1].split()[0])
    assert measured <= 1e-4
    if model != "encoder":
        head = head_tensors(load_model(str(place / model)).module)
        again = head_tensors(load_model(str(tmp_path / "out"), head="original").module)
        assert all(torch.equal(head[name], again[name]) for name in head)
    with_anchors = {**held, "holding": HoldOptions(budget=1e-4, anchors=str(place / "encoder"))}
    if model == "encoder":
        with pytest.raises(OptionError, match="names the weights of .* Leave out --anchors, or give --strength"):
            learn(place, tmp_path / "other", model, "new.jsonl", what, **with_anchors)


@pytest.mark.parametrize("model", ["bert", "classifier"])
def test_a_head_that_learns_on_gives_its_own_old_answers(place: Path, tmp_path: Path, model: str):
    """Its classes are those of the new data, so that no head is added."""
    kept = learn(place, tmp_path / "out", model, "old.jsonl", "new")
    assert (kept.new_head, kept.kept_heads) == ("original", ())
    assert "old answers to 108 texts of the new data, head 'original'" in kept.rehearsed
    kept = learn(place, tmp_path / "out", model, "old.jsonl", "old.jsonl", automatic=True)
    assert "of 0.02 nats in this lesson" in kept.report
    folder = keep(tmp_path / "keep", load_model(str(place / model)), place / "prose.txt")
    held = {"keep": folder, "holding": HoldOptions(budget=0.01)}
    kept = learn(place, tmp_path / "out", model, "old.jsonl", "old.jsonl", **held)
    assert "of 0.01 nats in this lesson" in kept.report


def test_beside_a_strength_and_wva(place: Path, tmp_path: Path):
    folder = keep(tmp_path / "keep", load_model(str(place / "encoder")), place / "pairs.csv", kind="exact")
    for holding in (HoldOptions(strength=10.0), HoldOptions("wva", strength=10.0)):
        kept = learn(place, tmp_path / "out", "encoder", "new.jsonl", "new", keep=folder, holding=holding)
        assert "1 task held" in kept.report
        assert kept.rehearsed
        assert kept.method == holding.method


class Killed(Exception):
    pass


@pytest.mark.parametrize("held", [False, True])
def test_a_killed_training_ends_with_the_same_bits_and_does_not_dream_again(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: bool
):
    settings = replace(SETTINGS, steps=30, save_every=10)
    given: dict[str, Any] = {"settings": settings, "automatic": held}

    def kill(way: str, logs: Mapping[str, Any]) -> None:
        if logs["step"] == 20:
            raise Killed

    learn(place, tmp_path / "whole", "causal", "new.txt", "self", share=0.3, **given)
    with pytest.raises(Killed):
        learn(place, tmp_path / "out", "causal", "new.txt", "self", share=0.3, on_log=kill, **given)
    work = tmp_path / "out" / ".holdfast-training"
    assert (work / "dreams" / "dreams_config.json").is_file()
    assert (work / "importance").is_dir() == held
    monkeypatch.setattr(dreamt, "dreams", None)
    learn(place, tmp_path / "out", "causal", "new.txt", "self", share=0.3, **given)
    assert revision_of(tmp_path / "out") == revision_of(tmp_path / "whole")
    assert not work.exists()


def test_dreams_outlive_a_training_that_failed_before_its_first_checkpoint(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(way: str, logs: Mapping[str, Any]) -> None:
        raise Killed

    with pytest.raises(Killed):
        learn(place, tmp_path / "out", "causal", "new.txt", "self", on_log=fail)
    work = tmp_path / "out" / ".holdfast-training"
    assert [path.name for path in work.iterdir()] == ["dreams"]
    with monkeypatch.context() as patched:  # another learning rate may take the same dreams
        patched.setattr(dreamt, "dreams", None)
        other = replace(SETTINGS, lr=1e-3)
        learn(place, tmp_path / "out", "causal", "new.txt", "self", settings=other)
    with pytest.raises(Killed):
        learn(place, tmp_path / "again", "causal", "new.txt", "self", on_log=fail)
    damaged = tmp_path / "again" / ".holdfast-training" / "dreams" / "dreams.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:100])
    learn(place, tmp_path / "again", "causal", "new.txt", "self")  # dreams once more
    assert revision_of(tmp_path / "again") != revision_of(tmp_path / "out")


def test_dreaming_that_was_interrupted_goes_on(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupt(*given: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("holdfast.language.dreaming._answered", interrupt)
        with pytest.raises(KeyboardInterrupt):
            learn(place, tmp_path / "out", "causal", "new.txt", "self")
    written = tmp_path / "out" / ".holdfast-training" / "dreams"
    assert [path.name for path in written.iterdir()] == [dreamt.WRITING]
    with monkeypatch.context() as patched:
        patched.setattr("holdfast.language.dreaming.blocks", None)  # all is written
        learn(place, tmp_path / "out", "causal", "new.txt", "self")
    learn(place, tmp_path / "whole", "causal", "new.txt", "self")
    assert revision_of(tmp_path / "out") == revision_of(tmp_path / "whole")


def test_dreams_that_do_not_fit_are_refused_or_warned_of_before_anything_is_trained(place: Path, tmp_path: Path):
    model = load_model(str(place / "causal"))
    own = {"count": 32, "length": LENGTH, "batch_size": 8, "seed": 0}
    dream_into(tmp_path / "dreams", model, **own)
    dream_into(tmp_path / "others", load_model(str(place / "bare")), **own)
    before = listing(tmp_path)
    foreign = tiny.causal(place / "foreign", seed=1)
    tiny.tokenizer(extra=-1).save_pretrained(foreign)
    words = json.loads((foreign / "tokenizer.json").read_text())
    words["model"]["vocab"] = {f"{name}x" if name == "dog" else name: n for name, n in words["model"]["vocab"].items()}
    (foreign / "tokenizer.json").write_text(json.dumps(words))
    own_dreams = RehearsalOptions(f"{tmp_path}/dreams")
    with pytest.raises(ModelMismatchError, match="with another vocabulary[.] Dream with this model"):
        learn(place, tmp_path / "out", "foreign", "new.txt", None, rehearsing=own_dreams)
    with pytest.raises(OptionError, match="which are dreams, is for a causal language model, and .* classification"):
        learn(place, tmp_path / "out", "classifier", "new.jsonl", None, rehearsing=own_dreams)
    (tmp_path / "dreams" / "dreams.safetensors").write_bytes(b"")
    with pytest.raises(FileFormatError):
        learn(place, tmp_path / "out", "causal", "new.txt", None, rehearsing=own_dreams)
    assert listing(tmp_path).keys() == before.keys()
    with pytest.warns(UserWarning, match="They teach the other's[.] Dream again"):
        kept = learn(
            place, tmp_path / "out", "causal", "new.txt", None, rehearsing=RehearsalOptions(f"{tmp_path}/others", 0.5)
        )
    assert kept.rehearsed.startswith("32 dreams of")


def test_what_a_model_has_no_past_for_is_refused(place: Path, tmp_path: Path):
    out = tmp_path / "out"
    with pytest.raises(OptionError, match="--rehearse self is for a causal .* Give --rehearse new, its old answers"):
        learn(place, out, "encoder", "new.jsonl", "self")
    with pytest.raises(OptionError, match="now learns classification; its old head is not kept, .* give --keep DIR"):
        learn(place, out, "causal", "new.jsonl", "self", task="classification")
    with pytest.raises(DataFileError, match="no such file or folder"):
        learn(place, out, "causal", "new.txt", "nothing.txt")
    (place / "empty.txt").write_text("")
    with pytest.raises(EmptyDataError, match="no row in it"):
        learn(place, out, "causal", "new.txt", "empty.txt")
    (place / "three.jsonl").write_text('{"text": "the card", "label": "card"}\n' * 3)
    with pytest.raises(EmptyDataError, match="holds 3 examples, which is too few to rehearse and to measure a budget"):
        learn(place, out, "classifier", "new.jsonl", "three.jsonl", automatic=True)
    loops = load_model(str(place / "causal"))
    with torch.no_grad():
        loops.base.get_input_embeddings().weight.zero_()
        loops.base.get_input_embeddings().weight[7] = 100.0
        for parameter in loops.base.transformer.ln_f.parameters():
            parameter.fill_(1.0)
    loops.save(place / "loops")
    with pytest.raises(CollapseError, match="It has collapsed"):
        learn(place, out, "loops", "new.txt", "self")
    assert list(tmp_path.iterdir()) == []


def test_steps_that_are_too_few_to_rehearse_are_told_of(place: Path, tmp_path: Path):
    with pytest.warns(UserWarning, match="of 5 steps none rehearses, with a share of 0.1 one of every 10[.] Give a"):
        learn(place, tmp_path / "o", "encoder", "new.jsonl", "new", share=0.1, settings=replace(SETTINGS, steps=5))


def test_no_more_is_taken_than_is_rehearsed(place: Path):
    model = load_model(str(place / "classifier"))
    found = list(examples(model, Source(str(place / "old.jsonl")).rows(), length=LENGTH, labelled=True))

    def taken(**options: Any) -> Past:
        answers = OldAnswers(model, RehearsalOptions("new"), asked="classification")
        return answers.past(model, found, batch_size=4, length=LENGTH, seed=0, watch=False, place=Path(), **options)

    for count in (1, 3):
        rehearsed = taken(num_batches=count).rehearsed
        assert isinstance(rehearsed, hf.Probes)
        assert rehearsed.num_examples == 4 * count
    assert len(taken(num_batches=10**6).shown) == 30
