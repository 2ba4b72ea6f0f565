"""Heads of classifiers: kept beside the new one, saved, and had again, over bases of several kinds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.language import tiny
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from holdfast.errors import FileFormatError, ModelMismatchError, OptionError, UnknownNameError
from holdfast.language.heads import ClassifierHead, base_prefix, head_tensors, module_with, new_head
from holdfast.language.models import LanguageModel, free_name, load_model

KINDS = ("bert", "distilbert", "roberta", "gpt2")
IDS = torch.tensor([[2, 5, 9, 3], [2, 7, 4, 3]])


@torch.no_grad()
def answers(module: nn.Module) -> Tensor:
    outputs: Any = module.eval()(input_ids=IDS, attention_mask=torch.ones_like(IDS))
    return outputs.logits


@torch.no_grad()
def move(model: LanguageModel, amount: float) -> None:
    """A step of the base, none of the head."""
    prefix = base_prefix(model.module)
    for name, parameter in model.module.named_parameters():
        if name.startswith(prefix):
            parameter.add_(amount * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("labels", [("a", "b", "c"), ("a", "b")])  # as many as before, too
def test_a_classifier_with_a_new_head_keeps_its_old_one(tmp_path: Path, kind: str, labels: tuple[str, ...]):
    folder = tiny.classifier(tmp_path / "old", kind=kind)
    before = answers(load_model(str(folder)).module)
    model = load_model(str(folder), task="classification", labels=labels, head="letters")
    assert (model.head, model.labels, model.new_head) == ("letters", labels, True)
    assert model.head_labels == {"letters": labels, "original": ("card", "money")}
    assert answers(model.module).shape == (2, len(labels))
    assert not torch.equal(answers(model.module)[:, :2], before)  # untrained, also where it is as large
    old = model.with_head("original")
    assert torch.equal(answers(old.module), before)
    names = {name for name, _ in load_model(str(folder)).base.named_parameters()}
    assert {name for name, _ in model.base.named_parameters()} == names  # importances fit
    model.save(tmp_path / "new")
    again = load_model(str(tmp_path / "new"))
    assert (again.head, again.labels, again.new_head) == ("letters", labels, False)
    assert torch.equal(answers(again.module), answers(model.module))
    assert torch.equal(answers(load_model(str(tmp_path / "new"), head="original").module), before)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "new")
    assert tuple(theirs.config.id2label.values()) == labels
    assert torch.equal(answers(theirs), answers(model.module))


@pytest.mark.parametrize("kind", KINDS)
def test_both_heads_stand_on_the_same_base(tmp_path: Path, kind: str):
    """What the base learns the old head sees, and it is that of an old classifier whose base moved as far."""
    folder = tiny.classifier(tmp_path / "old", kind=kind)
    oracle = load_model(str(folder))
    model = load_model(str(folder), task="classification", labels=("a", "b", "c"))
    move(oracle, 0.1)
    move(model, 0.1)
    assert torch.equal(answers(model.with_head("original").module), answers(oracle.module))


def test_a_third_set_of_labels_keeps_three_heads(tmp_path: Path):
    for kind in ("encoder", "classifier"):
        place = tmp_path / kind
        names = ["first", "second", "third"]
        folder = getattr(tiny, kind)(place / "0")
        for number, name in enumerate(names):
            model = load_model(str(folder), task="classification", labels=[f"{name}{n}" for n in range(3)], head=name)
            folder = place / str(number + 1)
            model.save(folder)
        last = load_model(str(folder))
        assert last.head == "third"
        assert set(last.head_labels) == {*names, *(["original"] if kind == "classifier" else [])}
        second = load_model(str(folder), head="second")
        assert second.labels == ("second0", "second1", "second2")
        assert set(second.heads) == set(last.head_labels) - {"second"}
        saved = load_model(str(place / "2"))
        first, again = (head_tensors(model.module) for model in (saved, second))
        assert all(torch.equal(first[name], again[name]) for name in first)
        second.save(place / "again")
        assert load_model(str(place / "again")).head == "second"


def test_an_encoder_keeps_its_heads_while_it_learns_similarity(tmp_path: Path):
    model = load_model(str(tiny.encoder(tmp_path / "0")), task="classification", labels=("a", "b"), head="letters")
    model.save(tmp_path / "1")
    similar = load_model(str(tmp_path / "1"), task="similarity")
    assert (similar.task, similar.labels, list(similar.heads)) == ("similarity", (), ["letters"])
    similar.save(tmp_path / "2")
    assert load_model(str(tmp_path / "2")).task == "similarity"
    again = load_model(str(tmp_path / "2"), head="letters")
    assert (again.task, again.labels) == ("classification", ("a", "b"))
    assert torch.equal(again.module.head.weight, model.module.head.weight)


def test_names_of_heads(tmp_path: Path):
    model = load_model(str(tiny.classifier(tmp_path / "a")))
    with pytest.raises(UnknownNameError, match="unknown head 'orignal'. Did you mean 'original'"):
        model.with_head("orignal")
    assert model.with_head("original") is model
    with pytest.raises(OptionError, match="has a head 'original' already. Give the new one another name: --head NAME"):
        model.with_new_head("original", ("x", "y"))
    with pytest.raises(OptionError, match="--head x is of a classifier, and the task of .* is causal-lm. Leave it out"):
        load_model(str(tiny.causal(tmp_path / "b")), head="x")
    assert [free_name("x", taken) for taken in ((), ("x",), ("x", "x-2"))] == ["x", "x-2", "x-3"]


def test_a_head_of_another_model_is_refused(tmp_path: Path):
    bert = load_model(str(tiny.classifier(tmp_path / "a"))).module
    distilbert = load_model(str(tiny.classifier(tmp_path / "b", kind="distilbert"))).module
    with pytest.raises(ModelMismatchError, match="'pre_classifier.bias'.* are in one of them alone. Use the head with"):
        module_with(bert, ClassifierHead(("a", "b"), head_tensors(distilbert)))
    with pytest.raises(ModelMismatchError, match="the head is of another model: .*size mismatch for classifier.weight"):
        module_with(bert, ClassifierHead(("a", "b", "c"), head_tensors(bert)))
    with pytest.raises(ModelMismatchError, match="Linear has no part of its own without the head; expected a transf"):
        base_prefix(nn.Linear(2, 2))


def test_a_new_head_is_drawn_where_the_labels_count(tmp_path: Path):
    module = load_model(str(tiny.classifier(tmp_path / "a", kind="distilbert"))).module
    torch.manual_seed(0)
    head = new_head(module, [str(n) for n in range(500)])
    own = head_tensors(module)
    assert torch.equal(head.tensors["pre_classifier.weight"], own["pre_classifier.weight"])
    assert float(head.tensors["classifier.weight"].std()) == pytest.approx(0.02, rel=0.05)
    assert head.tensors["classifier.bias"].eq(0).all()


def test_damaged_heads_are_said(tmp_path: Path):
    model = load_model(str(tiny.classifier(tmp_path / "0")), task="classification", labels=("a", "b", "c"))
    model.save(tmp_path / "1")
    file, register = tmp_path / "1" / "holdfast_head-original.safetensors", tmp_path / "1" / "holdfast_heads.json"
    good = file.read_bytes()
    file.write_bytes(good[:-4])
    with pytest.raises(FileFormatError, match="original.safetensors is damaged, truncated or edited: its sha256"):
        load_model(str(tmp_path / "1"))
    (tmp_path / "1" / "holdfast.json").unlink()  # a folder that was copied without the list of its files
    with pytest.raises(FileFormatError, match="original.safetensors is damaged: no head can be read from it. Copy it"):
        load_model(str(tmp_path / "1"))
    save_file(load_file(tmp_path / "0" / "model.safetensors"), file, metadata={"notes": json.dumps({"labels": [1]})})
    with pytest.raises(FileFormatError, match="is damaged: no head can be read"):
        load_model(str(tmp_path / "1"))
    file.unlink()
    with pytest.raises(FileFormatError, match="is missing, though holdfast_heads.json names it. Copy the folder whole"):
        load_model(str(tmp_path / "1"))
    for content in ({"current": 1, "kept": []}, {"current": "new", "kept": ["../x"]}, {"current": "new"}):
        register.write_text(json.dumps(content))
        with pytest.raises(FileFormatError, match="'current' .a name. or 'kept' .names. is damaged. Copy it again"):
            load_model(str(tmp_path / "1"))
