"""Kept and learned: fine-tuning that holds, beside plain fine-tuning, on tiny models."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.files.folders import listing
from tests.language import tiny

from holdfast import Importance, measure
from holdfast.calibration import Factor
from holdfast.curvature import load_importance
from holdfast.errors import (
    EmptyDataError,
    FileFormatError,
    HoldfastError,
    ModelMismatchError,
    OptionError,
    OutputError,
    ParameterMismatchError,
    RunMismatchError,
)
from holdfast.files.exclusive import locked
from holdfast.language import keeping
from holdfast.language.batches import batches, examples
from holdfast.language.finetuning import FineTuneSettings, HoldOptions, fine_tune, keeper_of
from holdfast.language.importance_folder import read_importance, write_importance_folder
from holdfast.language.keeping import Source, keep_and_learn
from holdfast.language.measuring import measure_importance
from holdfast.language.models import LanguageModel, load_model, revision_of

SETTINGS = FineTuneSettings(steps=12, lr=5e-3, batch_size=8)


def keep(folder: Path, model: LanguageModel, data: Path, **options: Any) -> Path:
    """The folder of an importance of the model on these data."""
    source = Source(str(data))
    found, progress = measure_importance(
        model, lambda: examples(model, source.rows(), length=16, labelled=False), **options
    )
    found = Factor(0.05, 1.0, predicted=0.0, measured=0.0, scatter=1.0, largest=0.0, rounds=1).applied_to(found)
    write_importance_folder(folder, found, model, data=data.name, progress=progress)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder, pairs, intents, and what the encoder needs for the pairs."""
    folder = tmp_path_factory.mktemp("place")
    model = load_model(str(tiny.encoder(folder / "encoder")))
    tiny.intents(folder / "intents.jsonl")
    keep(folder / "keep", model, tiny.pairs(folder / "pairs.csv"), kind="exact")
    return folder


def learn(place: Path, output: Path, **options: Any) -> Any:
    holding = HoldOptions(
        **{name: options.pop(name) for name in list(options) if name in HoldOptions.__dataclass_fields__}
    )
    given: dict[str, Any] = {"keep": place / "keep", "settings": SETTINGS, "length": 16, "output": output}
    given |= {"holding": holding, **options}
    return keep_and_learn(str(place / "encoder"), Source(str(place / "intents.jsonl")), **given)


def test_what_is_held_is_kept_where_plain_fine_tuning_loses_it(place: Path, tmp_path: Path):
    told: list[tuple[str, Mapping[str, Any]]] = []
    kept = learn(
        place,
        tmp_path / "out",
        budget=1e-4,
        old_data=Source(str(place / "pairs.csv")),
        compare=True,
        on_log=lambda way, logs: told.append((way, logs)),
        settings=replace(SETTINGS, steps=40),
    )
    assert list(kept.old) == list(kept.new) == ["before", "held", "plain"]
    moved = {way: abs(kept.old[way].loss - kept.old["before"].loss) for way in ("held", "plain")}
    assert moved["held"] < moved["plain"] / 3
    assert kept.new["held"].value > kept.new["before"].value
    assert kept.new["held"].measure == "accuracy"
    assert kept.predicted_rise <= 1e-4
    assert {way for way, _ in told} == {"held", "plain"}
    assert all(("predicted_rise" in logs) == (way == "held") for way, logs in told)
    written = json.loads((tmp_path / "out" / "kept_and_learned.json").read_text())
    assert written["old"]["held"]["value"] == kept.old["held"].value
    assert written["measured_rise"] == pytest.approx(kept.measured_rise)
    again = load_model(str(tmp_path / "out"))
    assert again.labels == ("card", "dog", "money")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # no checkpoints are left


def test_wva_holds_too(place: Path, tmp_path: Path):
    kept = learn(place, tmp_path / "out", method="wva", strength=1e9)
    start = load_model(str(place / "encoder"))
    end = load_model(str(tmp_path / "out"))
    importance = Importance.load(place / "keep")
    now = dict(end.base.named_parameters())
    pinned = [
        torch.allclose(p[importance[name] > 1e-4], now[name][importance[name] > 1e-4], atol=1e-4)
        for name, p in start.base.named_parameters()
    ]
    assert all(pinned)
    assert kept.old == {}
    assert kept.measured_rise is None


def test_kronecker_factors_hold_too(place: Path, tmp_path: Path):
    folder = keep(tmp_path / "keep", load_model(str(place / "encoder")), tiny.prose(tmp_path / "a.txt"), kind="kfac")
    card = (folder / "README.md").read_text()
    assert "| kfac-sampled |" in card
    assert "--method ewc --budget 0.05" in card
    assert 'hf.FactoredImportance.load("keep", model=model)' in card
    options: dict[str, Any] = {"old_data": Source(str(place / "pairs.csv")), "settings": replace(SETTINGS, steps=40)}
    for holding in ({"strength": 1e4}, {"budget": 1e-4}):
        kept = learn(place, tmp_path / "out", keep=folder, compare=True, **holding, **options)
        moved = {way: abs(kept.old[way].loss - kept.old["before"].loss) for way in ("held", "plain")}
        assert moved["held"] < moved["plain"] / 3
        assert kept.new["held"].value > kept.new["before"].value
    assert kept.predicted_rise is not None
    assert kept.predicted_rise <= 1e-4 * 1.001


def test_a_budget_over_factors_is_measured_on_the_probes_that_these_bring(tmp_path: Path):
    model = load_model(str(tiny.causal(tmp_path / "causal")))
    data = list(examples(model, Source(str(tiny.prose(tmp_path / "a.txt"))).rows(), length=16, labelled=True))
    found = measure(model.module, batches(model, data, 8), probes=list(batches(model, data, 8)))
    assert found.layers
    keeper = keeper_of(model, found, HoldOptions(budget=1e-3))
    fine_tune(model, data[::-1], replace(SETTINGS, steps=20, lr=1e-3), folder=tmp_path / "training", keeper=keeper)
    ((increment, _, budget),) = keeper.report().skills
    assert budget == 1e-3
    assert 0 < increment <= budget
    assert found.probes.rise(model.module) <= budget


def test_a_classifiers_own_head_is_left_free(tmp_path: Path):
    """A classifier that gets new classes: what is held of it is its base."""
    folder = tiny.classifier(tmp_path / "classifier")
    keep(tmp_path / "keep", load_model(str(folder)), tiny.prose(tmp_path / "prose.txt"), kind="kfac")
    data = Source(str(tiny.intents(tmp_path / "intents.jsonl")))
    before = dict(load_model(str(folder)).base.named_parameters())
    name = "bert.encoder.layer.0.output.dense.weight"
    layer = load_importance(tmp_path / "keep").layers[name]
    rises = []
    for strength in (1e-9, 1e12):
        output = tmp_path / f"{strength:g}"
        settings = replace(SETTINGS, head_factor=1.0)  # so that the base has to learn too
        given: dict[str, Any] = {"settings": settings, "holding": HoldOptions(strength=strength), "length": 16}
        keep_and_learn(str(folder), data, keep=tmp_path / "keep", output=output, **given)
        after = dict(load_model(str(output)).base.named_parameters())
        assert after["classifier.weight"].shape[0] == 3
        way = layer.join(*(after[n].detach() - before[n].detach() for n in layer.names(name)))
        rises.append(float((way * (layer.outputs @ way @ layer.inputs)).sum()))
    assert rises[1] < 1e-3 * rises[0]  # few directions matter: two classes, told by one position


def test_a_causal_model_learns_on(tmp_path: Path):
    model = load_model(str(tiny.causal(tmp_path / "causal")))
    prose = tiny.prose(tmp_path / "prose.txt")
    keep(tmp_path / "keep", model, prose)
    kept = keep_and_learn(
        str(tmp_path / "causal"),
        Source(str(prose)),
        keep=tmp_path / "keep",
        output=tmp_path / "out",
        settings=replace(SETTINGS, accumulate=2),
        holding=HoldOptions(strength=1.0),
        length=16,
        old_data=Source(str(prose)),
        test_data=Source(str(prose)),
    )
    assert kept.new["held"].measure == "perplexity"
    assert kept.new["held"].value < kept.new["before"].value
    assert kept.old == kept.new


def test_a_model_can_be_held_without_a_copy_of_it_in_memory(tmp_path: Path):
    model = load_model(str(tiny.causal(tmp_path / "causal")))
    prose = tiny.prose(tmp_path / "prose.txt")
    keep(tmp_path / "keep", model, prose)

    def learned(name: str, **forms: Any) -> float:
        kept = keep_and_learn(
            str(tmp_path / "causal"),
            Source(str(prose)),
            keep=tmp_path / "keep",
            output=tmp_path / name,
            settings=SETTINGS,
            holding=HoldOptions(strength=1.0, **forms),
            length=16,
        )
        return kept.new["held"].loss

    on_disk = learned("on-disk", anchors=str(tmp_path / "causal"))
    assert on_disk == pytest.approx(learned("in-memory"), rel=1e-6)
    coded = learned("coded", anchors=str(tmp_path / "causal"), importance_dtype="int8", pull_every=2)
    assert coded == pytest.approx(on_disk, rel=0.1)


def test_a_classifier_gets_new_classes_beside_what_it_keeps(tmp_path: Path):
    model = load_model(str(tiny.classifier(tmp_path / "classifier")))
    folder = keep(tmp_path / "keep", model, tiny.prose(tmp_path / "prose.txt"))
    data = tiny.intents(tmp_path / "intents.jsonl")
    kept = keep_and_learn(
        str(tmp_path / "classifier"),
        Source(str(data)),
        keep=folder,
        output=tmp_path / "out",
        settings=SETTINGS,
        holding=HoldOptions(strength=math.inf),
        length=16,
    )
    assert kept.new["held"].measure == "accuracy"
    start, end = (dict(load_model(str(tmp_path / name)).module.named_parameters()) for name in ("classifier", "out"))
    changed = [
        name for name in start if start[name].shape == end[name].shape and not torch.equal(start[name], end[name])
    ]
    used = Importance.load(folder)
    assert all((used[name] == 0).any() for name in changed)  # tokens that the data never showed
    assert end["classifier.weight"].shape == (3, 16)


def test_training_goes_on_from_its_checkpoint(place: Path, tmp_path: Path):
    """Killed after a checkpoint, the same command ends with the same weights."""

    class Killed(Exception):
        pass

    def kill(way: str, logs: Mapping[str, Any]) -> None:
        if logs["step"] == 20:
            raise Killed

    settings = replace(SETTINGS, steps=30, save_every=10)
    learn(place, tmp_path / "whole", strength=10.0, settings=settings)
    with pytest.raises(Killed):
        learn(place, tmp_path / "out", strength=10.0, settings=settings, on_log=kill)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".holdfast-training"]
    assert [path.name for path in (tmp_path / "out" / ".holdfast-training" / "held").iterdir()] == ["checkpoint-10"]
    before = listing(tmp_path / "out")
    with pytest.raises(
        RunMismatchError, match=r"training is of a training with another lr, strength. Give the same command to go on"
    ):
        learn(place, tmp_path / "out", strength=1.0, settings=replace(settings, lr=1e-3))
    assert listing(tmp_path / "out") == before
    of_before = tmp_path / "out" / ".holdfast-training" / "training.json"
    noted = json.loads(of_before.read_text())
    of_before.write_text(json.dumps({**noted, "every": 4}))  # as an earlier version called it
    with pytest.raises(
        RunMismatchError, match=r"by another version of holdfast, with every \(4\), which this one does not know. Go on"
    ):
        learn(place, tmp_path / "out", strength=10.0, settings=settings)
    of_before.write_text(json.dumps({**noted, "every": None}))  # as it noted an option that was not given
    learn(place, tmp_path / "out", strength=10.0, settings=settings)
    assert revision_of(tmp_path / "out") == revision_of(tmp_path / "whole")


def test_folders_of_others_beside_the_output_survive(place: Path, tmp_path: Path):
    for name in (".out.training", ".out.training.plain", ".out.old", "out.training"):
        (tmp_path / name / "checkpoint-1").mkdir(parents=True)
        (tmp_path / name / "checkpoint-1" / "precious").write_text("x")
    before = listing(tmp_path)
    learn(place, tmp_path / "out", strength=1.0, settings=replace(SETTINGS, steps=2, save_every=1))
    assert before.items() <= listing(tmp_path).items()
    assert not [name for name in listing(tmp_path / "out") if name.startswith(".")]


def test_an_output_that_may_not_be_written_is_refused_before_any_work(place: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(keeping, "load_model", None)
    before = listing(place)
    given: dict[str, Any] = {"strength": 1.0}
    for name, options in (
        ("encoder", {}),
        ("keep", {}),
        ("", {}),
        ("encoder", {"anchors": str(place / "encoder" / "model.safetensors")}),
        ("more", {"old_data": Source(str(place / "more" / "pairs.csv"))}),
        ("more", {"test_data": Source(str(place / "more"))}),
    ):
        with pytest.raises(OutputError, match="is read from"):
            learn(place, place / name, **given, **options)
    assert listing(place) == before


def test_two_trainings_do_not_share_an_output(place: Path, tmp_path: Path):
    with locked(tmp_path / "out" / ".holdfast-training.lock"):
        before = listing(tmp_path)
        with pytest.raises(OutputError, match="out: another process trains for it now. Wait for that, or give another"):
            learn(place, tmp_path / "out", strength=1.0)
        assert listing(tmp_path) == before
    learn(place, tmp_path / "out", strength=1.0, settings=replace(SETTINGS, steps=2))


def test_a_training_that_fails_leaves_nothing(place: Path, tmp_path: Path):
    class Broken(Exception):
        pass

    def fail(way: str, logs: Mapping[str, Any]) -> None:
        raise Broken

    with pytest.raises(Broken):
        learn(place, tmp_path / "deep" / "out", strength=1.0, settings=replace(SETTINGS, steps=20), on_log=fail)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_finished_training_is_repeated_in_its_own_output(place: Path, tmp_path: Path):
    options: dict[str, Any] = {"strength": 1.0, "compare": True, "settings": replace(SETTINGS, save_every=5)}
    learn(place, tmp_path / "out", **options)
    first = listing(tmp_path / "out")
    (tmp_path / "out" / "notes.md").write_text("precious")
    learn(place, tmp_path / "out", **options)
    assert (tmp_path / "out" / "notes.md").read_text() == "precious"
    assert listing(tmp_path / "out").keys() == {*first, "notes.md"}
    assert listing(tmp_path / "out")["model.safetensors"] == first["model.safetensors"]


def test_activations_computed_again_change_nothing(place: Path, tmp_path: Path):
    for name, again in (("kept", False), ("again", True)):
        learn(place, tmp_path / name, strength=10.0, settings=replace(SETTINGS, checkpointing=again))
    one, two = (load_model(str(tmp_path / name)).base.state_dict() for name in ("kept", "again"))
    assert all(torch.allclose(one[name], two[name], atol=1e-6) for name in one)


def test_the_card_says_what_it_is(place: Path):
    card = (place / "keep" / "README.md").read_text()
    revision = revision_of(place / "encoder")
    for told in (
        "encoder (BertModel)",
        revision,
        "fisher-exact",
        "nats/weight^2; nats a target per unit: 1",
        "pairs.csv",
        "| 40 |",
    ):
        assert told in card
    assert "encoder.layer.*.attention.self.query.weight" in card


def test_the_importance_of_another_model_is_refused(place: Path, tmp_path: Path):
    def refused(name: Path, kind: type[HoldfastError], told: str) -> None:
        with pytest.raises(kind, match=told):
            keep_and_learn(
                str(name),
                Source(str(place / "intents.jsonl")),
                keep=place / "keep",
                output=tmp_path / "out",
                settings=SETTINGS,
                holding=HoldOptions(strength=1.0),
            )
        assert not (tmp_path / "out").exists()

    refused(
        tiny.encoder(tmp_path / "other", seed=1),
        ModelMismatchError,
        "was measured on other weights of encoder .* measure again",
    )
    refused(
        tiny.causal(tmp_path / "causal"), ParameterMismatchError, "21 names not among the trainable parameters of GPT2"
    )
    same = tiny.encoder(tmp_path / "same")
    tokenizer = tiny.tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": []})
    names = json.loads((same / "tokenizer.json").read_text())
    vocabulary = names["model"]["vocab"]
    vocabulary["red"], vocabulary["blue"] = vocabulary["blue"], vocabulary["red"]
    (same / "tokenizer.json").write_text(json.dumps(names))
    refused(same, ModelMismatchError, "was measured with another tokenizer .* Use the tokenizer of encoder")


def test_a_truncated_importance_is_refused(place: Path, tmp_path: Path):
    model = load_model(str(place / "encoder"))
    folder = keep(tmp_path / "keep", model, place / "pairs.csv", num_examples=8)
    shard = folder / "importance.safetensors"
    shard.write_bytes(shard.read_bytes()[:-8])
    with pytest.raises(FileFormatError, match="is damaged, truncated or edited"):
        read_importance(folder, model)


def test_options_that_have_no_meaning_are_refused(place: Path, tmp_path: Path):
    with pytest.raises(OptionError, match="--method wva needs --strength and takes no --budget: it keeps no anchors"):
        learn(place, tmp_path / "out", method="wva", budget=0.1)
    with pytest.raises(OptionError, match="--method wva needs --strength[.]"):
        learn(place, tmp_path / "out", method="wva")
    with pytest.raises(OptionError, match="--method wva needs --strength and takes no --pull-every, --anchor-dtype:"):
        learn(place, tmp_path / "out", method="wva", strength=1.0, pull_every=2, anchor_dtype="int16")
    with pytest.raises(OptionError, match="its skill is|holds no pairs of texts. Give --old-data two texts"):
        learn(place, tmp_path / "out", strength=1.0, old_data=Source(str(place / "intents.jsonl")))
    (tmp_path / "plain.jsonl").write_text('{"text": "a card"}\n')
    with pytest.raises(OptionError, match="needs a label in each row, and .*plain.jsonl has 1 text and no label[.]"):
        keep_and_learn(
            str(place / "encoder"),
            Source(str(tmp_path / "plain.jsonl")),
            keep=place / "keep",
            output=tmp_path / "out",
            settings=SETTINGS,
            holding=HoldOptions(strength=1.0),
            task="classification",
        )
    model = load_model(str(place / "encoder"))
    with pytest.raises(EmptyDataError, match="finetune: the data held no example"):
        fine_tune(model, [], SETTINGS, folder=tmp_path)
    found = read_importance(place / "keep", model)
    found = found.with_info(calibration="none")
    with pytest.warns(UserWarning, match="this importance was not calibrated[.] .* Measure it with"):
        keeper = keeper_of(model, found, HoldOptions(budget=0.1))
    assert keeper.held.num_tasks == 1


def test_the_old_skill_of_another_task_cannot_be_measured(tmp_path: Path):
    model = load_model(str(tiny.causal(tmp_path / "causal")))
    folder = keep(tmp_path / "keep", model, tiny.prose(tmp_path / "prose.txt"))
    with pytest.raises(OptionError, match="made for causal-lm and now learns classification; its old skill cannot"):
        keep_and_learn(
            str(tmp_path / "causal"),
            Source(str(tiny.intents(tmp_path / "intents.jsonl"))),
            keep=folder,
            output=tmp_path / "out",
            settings=SETTINGS,
            holding=HoldOptions(strength=1.0),
            task="classification",
            length=16,
            old_data=Source(str(tmp_path / "prose.txt")),
        )
