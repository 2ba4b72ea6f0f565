from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from tests.language import tiny

from holdfast.errors import FileFormatError, ModelMismatchError, OptionError
from holdfast.language.batches import classes_of, examples
from holdfast.language.models import find_model, load_model, revision_of
from holdfast.language.rows import Row


def test_the_task_is_told_from_the_architecture(tmp_path: Path):
    encoder = load_model(str(tiny.encoder(tmp_path / "encoder")))
    assert (encoder.task, encoder.prefix) == ("similarity", "encoder.")
    assert not any("pooler" in name for name, _ in encoder.base.named_parameters())
    assert load_model(str(tiny.causal(tmp_path / "causal"))).task == "causal-lm"
    classifier = load_model(str(tiny.classifier(tmp_path / "classifier")))
    assert (classifier.task, classifier.labels, classifier.new_head) == ("classification", ("card", "money"), False)
    assert classifier.base is classifier.module


def test_a_classifier_over_an_encoder_is_saved_with_its_head(tmp_path: Path):
    folder = tiny.encoder(tmp_path / "encoder")
    with pytest.raises(OptionError, match="it has no head for classes. Fine-tune it on labelled data first"):
        load_model(str(folder), task="classification")
    model = load_model(str(folder), task="classification", labels=("x", "y", "z"))
    assert model.new_head
    model.save(tmp_path / "saved")
    again = load_model(str(tmp_path / "saved"))
    assert (again.task, again.labels, again.new_head) == ("classification", ("x", "y", "z"), False)
    ids = torch.tensor([[[2, 5, 3]]])
    with torch.no_grad():
        outputs = [m.module.eval()(ids, torch.ones_like(ids)) for m in (model, again)]
    assert torch.equal(*outputs)
    assert load_model(str(tmp_path / "saved"), task="similarity").base is not None
    other = load_model(str(tmp_path / "saved"), labels=("x", "y"))
    assert other.new_head
    assert other.labels == ("x", "y")


def test_a_transformers_classifier_gets_a_new_head(tmp_path: Path):
    folder = tiny.classifier(tmp_path / "classifier")
    model = load_model(str(folder), task="classification", labels=("a", "b", "c"))
    assert model.new_head
    assert dict(model.module.named_parameters())["classifier.weight"].shape == (3, 16)


def test_the_revision_is_that_of_the_weights(tmp_path: Path):
    one, two, other = (tiny.causal(tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert revision_of(one) == revision_of(two) != revision_of(other)
    for file in one.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(OptionError, match="no weights in it; expected"):
        revision_of(one)


def test_an_installed_package_may_carry_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / "some_encoder"
    tiny.encoder(package / "model")
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert find_model("some-encoder") == package / "model"
    sys.modules.pop("some_encoder")


def test_what_is_no_model_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(OptionError, match="no config.json in it; expected the folder of a transformers model"):
        find_model(str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OptionError, match="'no-such-model' is no model: neither a folder with config.json, nor"):
        find_model("no-such-model")
    with pytest.raises(OptionError, match="no causal language model"):
        load_model(str(tiny.encoder(tmp_path / "encoder")), task="causal-lm")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text('{"model_type": "no-such-kind"}')
    with pytest.raises(OptionError, match="odd cannot be loaded: "):
        load_model(str(tmp_path / "odd"))


def test_truncated_weights_and_a_foreign_tokenizer_are_said(tmp_path: Path):
    folder = tiny.encoder(tmp_path / "a")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(FileFormatError, match="its weights are truncated or damaged .* Copy it again"):
        load_model(str(folder))
    with pytest.raises(ModelMismatchError, match="gives numbers up to 30, and the model has embeddings for 0..27"):
        load_model(str(tiny.encoder(tmp_path / "b", extra=3)))
    tiny.tokenizer().save_pretrained(tmp_path / "b")
    load_model(str(tmp_path / "b"))


def test_classes_are_those_of_the_data():
    assert classes_of([Row(("one",), "b"), Row(("two",), "a"), Row(("three",), "b")]) == ("a", "b")


def test_a_language_model_reads_on_over_lines(tmp_path: Path):
    model = load_model(str(tiny.causal(tmp_path / "causal")))
    rows = [Row(("the card\n",), ends=False), Row(("is lost",), ends=True), Row(("send money",), ends=True)]
    found = list(examples(model, rows, length=4, labelled=False))
    names = [model.tokenizer.convert_ids_to_tokens(example.tokens[0]) for example in found]
    assert names == [["the", "card", "is", "lost"], ["[SEP]", "send", "money", "[SEP]"]]
