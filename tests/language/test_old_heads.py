"""A classifier learns other labels: its old skill is kept, measured by its old head, and saved with it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.language import tiny

from holdfast.errors import BatchError, EmptyDataError, ModelMismatchError, OptionError
from holdfast.language.batches import batches, examples
from holdfast.language.finetuning import FineTuneSettings, HoldOptions
from holdfast.language.heads import head_tensors
from holdfast.language.importance_folder import read_importance, write_importance_folder
from holdfast.language.keeping import keep_and_learn
from holdfast.language.kept import SkillChange
from holdfast.language.measuring import measure_importance
from holdfast.language.models import load_model
from holdfast.language.rows import Source
from holdfast.language.skills import MeasuredSkill, evaluate

SETTINGS = FineTuneSettings(steps=30, lr=5e-3, batch_size=8)
OLD = ("card", "money", "dog")
NEW = ("lost", "late", "new", "old")


def keep(folder: Path, model: Path, data: Path, *, head: str | None = None, length: int | None = None) -> Path:
    found = load_model(str(model), head=head)
    source = Source(str(data))
    importance, progress = measure_importance(found, lambda: examples(found, source.rows(), length=16, labelled=False))
    write_importance_folder(folder, importance, found, data=data.name, progress=progress, length=length)
    return folder


def learn(model: Path, data: Path, output: Path, *, keep: Path, strength: float = 1.0, **options: Any) -> SkillChange:
    given: dict[str, Any] = {"settings": SETTINGS, "length": 16, **options}
    return keep_and_learn(
        str(model), Source(str(data)), keep=keep, output=output, holding=HoldOptions(strength=strength), **given
    )


def accuracy(model: Path, data: Path, *, head: str | None = None) -> MeasuredSkill:
    found = load_model(str(model), head=head)
    rows = sorted(examples(found, Source(str(data)).rows(), length=16, labelled=True), key=lambda e: len(e.tokens[0]))
    return evaluate(found, batches(found, rows, 8))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Classifiers that have learned the old labels, of transformers' own kind and over a sentence encoder."""
    folder = tmp_path_factory.mktemp("place")
    tiny.intents(folder / "old.jsonl", names=OLD)
    tiny.intents(folder / "animals.jsonl", names=NEW)
    tiny.intents(folder / "third.jsonl", names=("red", "blue"))
    for kind in ("distilbert", "encoder"):
        untrained = folder / f"untrained-{kind}"
        if kind == "encoder":
            tiny.encoder(untrained)
        else:
            tiny.classifier(untrained, kind=kind, labels=OLD)
        free = keep(folder / f"free-{kind}", untrained, tiny.prose(folder / "prose.txt"))
        trained = replace(SETTINGS, steps=150, lr=3e-3) if kind == "distilbert" else replace(SETTINGS, steps=50)
        learn(untrained, folder / "old.jsonl", folder / kind, keep=free, strength=0.0, settings=trained)
        keep(folder / f"keep-{kind}", folder / kind, folder / "old.jsonl")
    return folder


@pytest.mark.parametrize("kind", ["distilbert", "encoder"])
def test_the_old_skill_is_kept_measured_and_saved(place: Path, tmp_path: Path, kind: str):
    out, old, new = tmp_path / "out", place / "old.jsonl", place / "animals.jsonl"
    name = "original" if kind == "distilbert" else "old"
    start = accuracy(place / kind, old)
    assert start.value > 0.6
    given: dict[str, Any] = {"keep": place / f"keep-{kind}", "old_data": Source(str(old)), "compare": True}
    lines: list[str] = []
    kept = learn(place / kind, new, out, strength=1e6, on_plan=lines.extend, **given)
    assert (kept.old_head, kept.new_head, kept.kept_heads) == (name, "animals", (name,))
    assert any(
        f"head: 'animals', new, 4 classes ('late', 'lost', 'new', 'old'); kept beside it: '{name}'" in line
        for line in lines
    )
    assert any(f"old skill: classification, head '{name}', on 60 examples" in line for line in lines)
    assert kept.old["before"].loss == pytest.approx(start.loss)
    assert kept.old["before"].measure == kept.new["held"].measure == "accuracy"
    moved = {way: float((kept.old[way].losses - kept.old["before"].losses).abs().mean()) for way in ("held", "plain")}
    assert moved["held"] < moved["plain"] / 2
    assert kept.new["held"].loss < kept.new["before"].loss

    for folder, way in ((out, "held"), (out / "plain", "plain")):
        again = accuracy(folder, old, head=name)
        assert again.loss == pytest.approx(kept.old[way].loss, rel=1e-5)
        assert load_model(str(folder)).labels == tuple(sorted(NEW))
    weights = [head_tensors(load_model(str(f), head=name).module) for f in (place / kind, out)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])  # frozen

    third = learn(
        out,
        place / "third.jsonl",
        tmp_path / "third",
        keep=keep(tmp_path / "keep-old", out, old, head=name),
        old_data=Source(str(new)),
        strength=100.0,
    )
    assert third.old_head == "animals"
    assert set(third.kept_heads) == {name, "animals"}
    assert set(load_model(str(tmp_path / "third")).head_labels) == {name, "animals", "third"}


def test_nothing_of_the_old_skill_moves_under_an_infinite_strength(place: Path, tmp_path: Path):
    """What the importance is above zero for is pinned; the old head is no part of what trains."""
    given: dict[str, Any] = {"keep": place / "keep-distilbert", "old_data": Source(str(place / "old.jsonl"))}
    kept = learn(place / "distilbert", place / "animals.jsonl", tmp_path / "out", strength=math.inf, **given)
    assert kept.old["held"].losses.numpy() == pytest.approx(kept.old["before"].losses.numpy(), abs=1e-5)


def test_more_data_of_its_own_labels_go_to_the_head_it_has(place: Path, tmp_path: Path):
    some = tiny.intents(tmp_path / "some.jsonl", names=OLD[:2])
    kept = learn(place / "distilbert", some, tmp_path / "out", keep=place / "keep-distilbert")
    assert (kept.new_head, kept.kept_heads) == ("original", ())
    assert load_model(str(tmp_path / "out")).labels == OLD
    names = {name for name, _ in load_model(str(tmp_path / "out")).base.named_parameters()}
    assert "classifier.weight" in names
    kept = learn(place / "distilbert", some, tmp_path / "new", keep=place / "keep-distilbert", head="two")
    assert (kept.new_head, kept.kept_heads) == ("two", ("original",))


def test_an_encoder_that_learned_intents_learns_similarity_again(place: Path, tmp_path: Path):
    pairs = tiny.pairs(tmp_path / "pairs.csv")
    given: dict[str, Any] = {"keep": place / "keep-encoder", "old_data": Source(str(place / "old.jsonl"))}
    kept = learn(place / "encoder", pairs, tmp_path / "out", **given)
    assert (kept.old["held"].measure, kept.new["held"].measure) == ("accuracy", "Spearman")
    assert (kept.old_head, kept.new_head, kept.kept_heads) == ("old", "", ("old",))
    assert load_model(str(tmp_path / "out"), head="old").labels == tuple(sorted(OLD))


def test_old_data_of_no_head_are_refused(place: Path, tmp_path: Path):
    given: dict[str, Any] = {"keep": place / "keep-distilbert", "old_data": Source(str(place / "third.jsonl"))}
    with pytest.raises(
        OptionError, match="has the labels 'blue', 'red', and no head of .* has all of these .'original'"
    ):
        learn(place / "distilbert", place / "animals.jsonl", tmp_path / "out", **given)
    assert list(tmp_path.iterdir()) == []


def test_an_importance_of_a_head_that_is_not_there_is_refused(place: Path, tmp_path: Path):
    learn(place / "distilbert", place / "animals.jsonl", tmp_path / "out", keep=place / "keep-distilbert")
    importance = keep(tmp_path / "keep", tmp_path / "out", place / "animals.jsonl")
    assert read_importance(importance, load_model(str(tmp_path / "out"))).info.details["head"] == "animals"
    with pytest.raises(
        ModelMismatchError, match="measured with the head 'animals', which .* does not have; it has 'ori"
    ):
        read_importance(importance, load_model(str(place / "distilbert")))


def test_test_data_of_other_labels_and_too_few_data_are_refused(place: Path, tmp_path: Path):
    given: dict[str, Any] = {"keep": place / "keep-distilbert"}
    test = Source(str(place / "third.jsonl"))
    with pytest.raises(BatchError, match="third.jsonl, line 1: label 'red' is none of the 4 .* head 'animals'"):
        learn(place / "distilbert", place / "animals.jsonl", tmp_path / "out", test_data=test, **given)
    few = tiny.intents(tmp_path / "few.jsonl", count=9)
    with pytest.raises(EmptyDataError, match="holds 9 rows; expected at least 10, every tenth of which .* --test-data"):
        learn(place / "distilbert", few, tmp_path / "out", **given)
    learn(place / "distilbert", few, tmp_path / "out", test_data=Source(str(few)), **given)


def test_the_old_loss_is_that_of_blocks_as_long_as_the_importance_was_measured_on(tmp_path: Path):
    tiny.causal(tmp_path / "causal")
    prose = tiny.prose(tmp_path / "prose.txt")
    folder = keep(tmp_path / "keep", tmp_path / "causal", prose, length=8)
    told: list[tuple[str, int, int | None]] = []
    kept = learn(
        tmp_path / "causal",
        prose,
        tmp_path / "out",
        keep=folder,
        settings=replace(SETTINGS, steps=2),
        old_data=Source(str(prose)),
        on_progress=lambda work, done, total: told.append((work, done, total)),
    )
    assert kept.old["before"].num_examples == 60  # blocks of 8 tokens, not 30 of 16
    assert {work for work, _, _ in told} >= {"old skill, before", "training, held", "new skill, held"}
    assert [(done, total) for work, done, total in told if work == "training, held"] == [(1, 2), (2, 2)]
