from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.language import tiny

from holdfast.errors import BatchError, EmptyDataError
from holdfast.language.batches import batches, collate, examples
from holdfast.language.models import load_model
from holdfast.language.rows import Row, read_rows
from holdfast.language.skills import SIMILARITY_VARIANCE, evaluate


def test_perplexity_is_that_of_transformers_own_loss(tmp_path: Path):
    model = load_model(str(tiny.causal(tmp_path / "causal")))
    found = list(examples(model, read_rows(str(tiny.prose(tmp_path / "a.txt"))), length=14, labelled=False))
    assert len({len(example.tokens[0]) for example in found}) == 2  # the last block is shorter
    total = count = 0.0
    for example in found:
        ids = torch.tensor([example.tokens[0]])
        with torch.no_grad():
            total += float(model.module.eval()(input_ids=ids, labels=ids).loss) * (ids.numel() - 1)
        count += ids.numel() - 1
    skill = evaluate(model, batches(model, found, 4))
    assert skill.value == pytest.approx(math.exp(total / count), rel=1e-5)
    assert skill.num_targets == sum(len(example.tokens[0]) - 1 for example in found)
    assert skill.loss == pytest.approx(total / skill.num_targets, rel=1e-5)
    assert (skill.measure, skill.num_examples, skill.text) == ("perplexity", len(found), f"{skill.value:.2f}")


def test_accuracy_does_not_depend_on_padding(tmp_path: Path):
    model = load_model(str(tiny.classifier(tmp_path / "classifier")))
    rows = [
        Row((f"{word} {tiny.sentence(n)} {'card ' * (n % 7)}",), word) for n, word in enumerate(["card", "money"] * 20)
    ]
    found = list(examples(model, rows, length=32, labelled=True))
    together, alone = (evaluate(model, batches(model, found, size)) for size in (40, 1))
    assert together.value == alone.value
    assert together.loss == pytest.approx(alone.loss, rel=1e-5)
    right = 0
    for example in found:
        ids = torch.tensor([example.tokens[0]])
        with torch.no_grad():
            right += int(model.module(input_ids=ids).logits.argmax() == example.target)
    assert together.value == right / 40


def test_similarity_is_the_rank_correlation_of_cosines(tmp_path: Path):
    model = load_model(str(tiny.encoder(tmp_path / "encoder")))
    found = list(examples(model, read_rows(str(tiny.pairs(tmp_path / "a.csv"))), length=16, labelled=True))
    inputs, targets = collate(model, found)
    assert inputs["input_ids"].shape == (40, 2, 8)
    assert float(targets.max()) == 1.0
    with torch.no_grad():
        cosines = model.module.eval()(**inputs)
        one, two = (
            model.module(ids.unsqueeze(1), mask.unsqueeze(1))
            for ids, mask in zip(inputs["input_ids"].unbind(1), inputs["attention_mask"].unbind(1))
        )
    assert torch.allclose(cosines.squeeze(1), F.cosine_similarity(one, two), atol=1e-6)
    skill = evaluate(model, batches(model, found, 7))
    expected = float((cosines - targets).square().mean()) / (2 * SIMILARITY_VARIANCE)
    assert skill.loss == pytest.approx(expected, rel=1e-5)
    perfect = [replace(example, target=float(cosine)) for example, cosine in zip(found, cosines)]
    assert evaluate(model, batches(model, perfect, 7)).value == pytest.approx(1.0)
    assert not model.module.training


def test_the_model_is_left_as_it_was(tmp_path: Path):
    model = load_model(str(tiny.encoder(tmp_path / "encoder")))
    model.module.train()
    with pytest.raises(EmptyDataError, match="evaluate: the data held no example"):
        evaluate(model, [])
    assert model.module.training


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([Row(("a", "b"))], "no label for 'a'"),
        ([Row(("a",), 3.0)], "similarity is that of two texts; found one: 'a'"),
        ([Row(("a", "b"), 9.0)], "the similarity of 'a' is 9.0; expected 0..5"),
        ([Row(("a", "b"), "much")], "the similarity of 'a' is 'much'; expected 0..1"),
    ],
)
def test_pairs_that_cannot_be_used_are_said(tmp_path: Path, rows: list[Row], told: str):
    model = load_model(str(tiny.encoder(tmp_path / "encoder")))
    with pytest.raises(BatchError, match=told):
        list(examples(model, rows, length=16, labelled=True))


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([Row(("a", "b"), "card")], "classes are of single texts; found 2"),
        ([Row(("a",), "dog")], "label 'dog' is none of the 2 classes of .*, head 'original' .'card', 'money'"),
        ([Row(("a",), 2)], "label 2 is none of"),
    ],
)
def test_classes_that_the_model_does_not_know_are_said(tmp_path: Path, rows: list[Row], told: str):
    model = load_model(str(tiny.classifier(tmp_path / "classifier")))
    with pytest.raises(BatchError, match=told):
        list(examples(model, rows, length=16, labelled=True))
    assert [
        example.target for example in examples(model, [Row(("a",), 1), Row(("a",), "card")], length=8, labelled=True)
    ] == [1, 0]


def test_a_causal_model_reads_single_texts(tmp_path: Path):
    model = load_model(str(tiny.causal(tmp_path / "causal")))
    with pytest.raises(BatchError, match="a causal language model reads single texts; found 2 in a row"):
        list(examples(model, [Row(("a", "b"))], length=16, labelled=False))
