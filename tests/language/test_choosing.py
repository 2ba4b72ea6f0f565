"""The task and the head that a command chooses, and what it says of them before any work."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.language import tiny

from holdfast.errors import BatchError, OptionError
from holdfast.language.batches import Example, examples
from holdfast.language.choosing import (
    choose_task,
    fits,
    head_for,
    number_of,
    number_read,
    plan,
    sample,
)
from holdfast.language.heads import listed_labels
from holdfast.language.models import LanguageModel, LanguageTask, load_model
from holdfast.language.rows import Columns, Row, Source


def written(path: Path, *rows: Mapping[str, Any]) -> Source:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Source(str(path))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    tiny.encoder(folder / "encoder")
    tiny.causal(folder / "causal")
    tiny.classifier(folder / "classifier", kind="distilbert", labels=("card", "money", "dog"))
    load_model(str(folder / "encoder"), task="classification", labels=("x", "y"), head="letters").save(
        folder / "headed"
    )
    written(folder / "plain.jsonl", {"text": "the card is lost"})
    for column in ("category", "score", "label"):
        written(folder / f"{column}.jsonl", {"text": "the card is lost", column: 1}, {"text": "send money", column: 0})
    written(folder / "pairs.jsonl", {"text1": "the card", "text2": "a card", "score": 0.5})
    written(folder / "unmarked.jsonl", {"text1": "the card", "text2": "a card"})
    return folder


@pytest.mark.parametrize(
    ("name", "data", "learns", "task", "why"),
    [
        ("causal", "category", True, "causal-lm", "causal was made for it"),
        ("causal", "score", True, "causal-lm", "was made for it"),
        ("causal", "label", False, "causal-lm", "was made for it"),
        ("classifier", "label", True, "classification", "was made for it"),
        ("encoder", "label", True, "classification", "one text and its label; an encoder gets a head for labels"),
        ("encoder", "label", False, "similarity", "was made for it"),
        ("encoder", "pairs", True, "similarity", "the rows hold two texts"),
        ("headed", "pairs", False, "similarity", "the rows hold two texts"),
        ("headed", "label", False, "classification", "was made for it"),
    ],
)
def test_a_model_stays_what_it_was_made_for(
    place: Path, name: str, data: str, learns: bool, task: LanguageTask, why: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(place)
    source = Source(f"{data}.jsonl")
    found, told = choose_task(load_model(name), source, asked=None, learns=learns, labelled=learns)
    assert found == task
    assert why in told


def test_the_user_has_the_last_word(place: Path):
    model = load_model(str(place / "causal"))
    source = Source(str(place / "category.jsonl"))
    assert choose_task(model, source, asked="classification", learns=True, labelled=True) == (
        "classification",
        "as --task says",
    )


@pytest.mark.parametrize(
    ("name", "data", "asked", "told"),
    [
        (
            "causal",
            "plain",
            "classification",
            "needs a label in each row, and .*plain.jsonl has 1 text and no label. "
            "Its columns are 'text': name its column with --label",
        ),
        ("encoder", "plain", "similarity", "needs two texts and a number in each row, and .* has 1 text and no label"),
        (
            "encoder",
            "unmarked",
            None,
            "needs two texts and a number in each row, and .* has 2 texts and no label. "
            "Its columns are .*: name the columns with --text and --label.$",
        ),
        (
            "classifier",
            "pairs",
            None,
            "classification needs one text in each row, and .* has 2 texts and a label. "
            "Its columns are 'text1', .*: name its column with --text",
        ),
        ("causal", "pairs", None, "causal-lm needs one text in each row, and .*pairs.jsonl has 2 texts"),
    ],
)
def test_data_that_cannot_serve_the_task_are_refused(
    place: Path, name: str, data: str, asked: LanguageTask | None, told: str
):
    source = Source(str(place / f"{data}.jsonl"))
    with pytest.raises(OptionError, match=told):
        choose_task(load_model(str(place / name)), source, asked=asked, learns=True, labelled=True)


def test_a_text_has_no_columns_to_name(place: Path, tmp_path: Path):
    path = tmp_path / "labels.txt"
    path.write_text("__label__x the card is lost\n")
    with pytest.raises(OptionError, match="A file of text has no columns: give CSV, JSON Lines or Parquet[.]"):
        choose_task(load_model(str(place / "classifier")), Source(str(path)), asked=None, learns=True, labelled=True)
    path = path.with_suffix(".jsonl")  # the remedy
    path.write_text('{"text": "the card is lost", "label": "x"}\n')
    choose_task(load_model(str(place / "classifier")), Source(str(path)), asked=None, learns=True, labelled=True)


def test_an_encoder_without_a_head_says_how_it_gets_one(place: Path, tmp_path: Path):
    source = Source(str(place / "label.jsonl"))
    with pytest.raises(OptionError, match="for classes fine-tune it on labelled data first"):
        choose_task(load_model(str(place / "encoder")), source, asked=None, learns=False, labelled=True)
    similar = load_model(str(place / "headed"), task="similarity")
    with pytest.raises(OptionError, match="for classes give --head letters"):
        choose_task(similar, source, asked=None, learns=False, labelled=True)
    both = Source(str(place / "category.jsonl"), Columns(("text",), "category"))
    assert choose_task(load_model(str(place / "headed")), both, asked=None, learns=False, labelled=True)[0] == (
        "classification"
    )


@pytest.mark.parametrize(
    ("own", "labels", "strict", "by_number"),
    [
        (("a", "b", "c"), ("a", "c"), True, True),
        (("a", "b"), ("a", "c"), False, False),
        (("LABEL_0", "LABEL_1"), ("0", "1"), True, True),
        (("LABEL_0", "LABEL_1"), ("0", "2"), False, True),
        (("LABEL_0", "LABEL_1"), ("ham", "spam"), False, True),
        (("LABEL_0", "LABEL_1"), ("a", "b", "c"), False, False),
        (("neg", "pos"), ("0", "1"), False, False),
    ],
)
def test_whether_a_head_is_one_for_the_labels(own: Sequence[str], labels: Sequence[str], strict: bool, by_number: bool):
    assert fits(own, labels) == strict
    assert fits(own, labels, by_number=True) == by_number


def test_the_head_that_has_the_labels_learns_and_else_a_new_one(place: Path):
    model = load_model(str(place / "classifier")).with_new_head("letters", ("x", "y"))

    def chosen(*labels: str, data: str = "somewhere.jsonl", asked: str | None = None) -> tuple[str, bool]:
        return head_for(model, labels, Source(data), asked=asked)

    assert chosen("x", "y") == ("letters", False)
    assert chosen("dog", "card") == ("original", False)
    assert chosen("dog", "cat", data="data/banking77/train") == ("banking77", True)
    assert chosen("dog", "cat", data="letters.csv") == ("letters-2", True)
    assert chosen("x", asked="animals") == ("animals", True)
    with pytest.raises(
        OptionError, match="head 'letters' of .* has the classes 'x', 'y', and .* has others: 'cat'. Give"
    ):
        chosen("x", "cat", asked="letters")
    with pytest.raises(OptionError, match="--head is '../x'; expected a name of letters, digits, '-', '_' and '.'"):
        chosen("x", asked="../x")


def test_a_label_of_another_head_is_refused_by_its_name(place: Path):
    model = load_model(str(place / "classifier")).with_new_head("letters", ("x", "y"))

    def targets(*rows: Row) -> list[Any]:
        return [example.target for example in examples(model, rows, length=8, labelled=True)]

    assert targets(Row(("a",), "x"), Row(("c",), 1)) == [0, 1]
    told = "data, row 3: label 'dog' is none of the 2 .* head 'letters' .'x', 'y'.*: --head orig"
    with pytest.raises(BatchError, match=told):
        targets(Row(("a",), "dog", where="data, row 3"))
    with pytest.raises(BatchError, match="label 'cat' is none of .* Give data that have these"):
        targets(Row(("a",), "cat"))


def test_a_classifier_without_names_takes_the_numbers_of_the_data(tmp_path: Path):
    model = load_model(str(tiny.classifier(tmp_path / "a", labels=("LABEL_0", "LABEL_1"))))
    rows = [Row(("the card",), "ham", number=0), Row(("send",), "spam", number=1)]
    found = examples(model, rows, length=8, labelled=True)
    assert [example.target for example in found] == [0, 1]


def test_the_plan_shows_what_the_model_will_see(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(place)

    def told(model: LanguageModel, data: str, *, labelled: bool = True) -> str:
        return "\n".join(plan(model, Source(data), why="so", length=8, labelled=labelled, examples_read="2 rows"))

    found = told(load_model("causal"), "category.jsonl")
    assert "task: causal-lm (so)" in found
    assert "text 'text', label 'category'; the labels are not read (--task classification makes a classifier)" in found
    assert "examples: 2 rows" in found
    assert "sample: 'the card is lost [SEP] send money [SEP]' (8 tokens)" in found
    found = told(load_model("classifier").with_new_head("letters", ("x", "y")), "label.jsonl")
    assert "head: 'letters', new, 2 classes ('x', 'y'); kept beside it: 'original'" in found
    assert "sample: '[CLS] the card is lost [SEP]' (6 tokens), label 'y'" in found
    found = told(load_model("encoder"), "pairs.jsonl")
    assert "sample: '[CLS] the card [SEP]' and '[CLS] a card [SEP]' (4 and 4 tokens), similarity 0.50 of 1" in found
    found = told(load_model("encoder"), "pairs.jsonl", labelled=False)
    assert "label 'score'; the labels are not read\n" in found
    assert "similarity" not in found.partition("sample: ")[2]


def test_numbers_come_with_their_nouns(place: Path):
    assert number_of(1, "row") == "1 row"
    assert number_of(1200, "example") == "1,200 examples"
    assert number_read(load_model(str(place / "causal")), 1) == "1 block of tokens"
    assert number_read(load_model(str(place / "encoder")), 2) == "2 rows"


def test_what_is_long_is_cut(place: Path):
    model = load_model(str(place / "causal"))
    shown = sample(model, Example((list(range(4, 20)) * 10,)))
    assert len(shown) < 200
    assert shown.endswith("...' (160 tokens)")
    assert listed_labels([str(n) for n in range(9)]) == "'0', '1', '2', '3', ..."
