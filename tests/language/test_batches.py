from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from tests.language import tiny

from holdfast.errors import BatchError, EmptyDataError
from holdfast.language import batches as module
from holdfast.language.batches import Example, classes_of, drawn, examples, sampled
from holdfast.language.rows import DECLINED, Row, read_rows


class Tokens(list[int]):
    """The tokens of one text, which count how often one is looked at."""

    looks = 0

    def __iter__(self) -> Iterator[int]:
        for token in super().__iter__():
            Tokens.looks += 1
            yield token

    def __getitem__(self, place: Any) -> Any:
        found = super().__getitem__(place)
        Tokens.looks += len(found) if isinstance(place, slice) else 1
        return found


class Letters:
    """A tokenizer that takes each character for a token, and counts its calls."""

    eos_token_id: int | None = 0

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, texts: list[str], *, max_length: int | None = None, **_: Any) -> dict[str, list[Tokens]]:
        self.calls.append(len(texts))
        return {"input_ids": [Tokens([ord(character) for character in text][:max_length]) for text in texts]}


def causal() -> Any:
    return SimpleNamespace(task="causal-lm", tokenizer=Letters())


def classifier(*labels: str) -> Any:
    given = {"labels": labels, "head_labels": {"own": labels}, "name": "letters", "head": "own"}
    return SimpleNamespace(task="classification", tokenizer=Letters(), **given)


def text_of(example: Example) -> str:
    return "".join("|" if token == 0 else chr(token) for token in example.tokens[0])


def sorted_rows(count: int = 640, classes: int = 64) -> list[Row]:
    """As an intent corpus is sorted: class after class."""
    return [Row((f"text {n}",), f"class {n * classes // count}") for n in range(count)]


LABELS = tuple(f"class {n}" for n in range(64))


@pytest.mark.parametrize("is_one_row", [True, False])
def test_a_long_document_takes_no_more_looks_than_it_has_tokens(is_one_row: bool):
    text = ("abcdefg" * 15 + "\n") * 2000
    rows = [Row((text,))] if is_one_row else [Row((line,), ends=False) for line in text.splitlines(keepends=True)]
    Tokens.looks = 0
    stream = iter(examples(causal(), rows, length=128, labelled=False))
    first = next(stream)
    assert Tokens.looks <= 129  # not all of them for the first block
    assert text_of(first) + "".join(map(text_of, stream)) == text + ("|" if is_one_row else "")
    assert Tokens.looks <= len(text) + 2


def test_blocks_are_those_of_the_slow_way():
    rows = [Row((tiny.sentence(n) * (n % 9),), ends=n % 3 == 0) for n in range(200)]
    whole = "".join(row.texts[0] + ("|" if row.ends else "") for row in rows)
    for length in (7, 64, 1000):
        found = list(examples(causal(), rows, length=length, labelled=False))
        expected = [whole[start : start + length] for start in range(0, len(whole), length)]
        assert [text_of(example) for example in found] == [block for block in expected if len(block) > 1]


def test_many_rows_are_tokenised_in_few_calls():
    model = classifier(*LABELS)
    found = list(examples(model, sorted_rows(), length=32, labelled=True))
    assert [text_of(example) for example in found] == [row.texts[0] for row in sorted_rows()]
    assert [example.target for example in found] == [n // 10 for n in range(640)]
    assert len(model.tokenizer.calls) == 3
    model = causal()
    list(examples(model, sorted_rows(), length=32, labelled=False))
    assert len(model.tokenizer.calls) == 3
    list(examples(model, [Row(("a" * 300_000,))] * 3, length=32, labelled=False))
    assert model.tokenizer.calls[3:] == [1, 1, 1]  # long ones alone: they are not held together


def test_pairs_are_put_together_again():
    model = SimpleNamespace(task="similarity", tokenizer=Letters())
    rows = [Row((f"a{n}", f"b{n}"), n / 600) for n in range(600)]
    found = list(examples(model, rows, length=8, labelled=True))  # type: ignore[arg-type]
    assert [len(example.tokens) for example in found] == [2] * 600
    assert ["".join(map(chr, example.tokens[1])) for example in found] == [f"b{n}" for n in range(600)]


def test_a_draw_of_sorted_rows_has_many_classes():
    model = classifier(*LABELS)
    found = list(drawn(examples(model, sorted_rows(), length=32, labelled=True), 128, seed=0))
    assert len(found) == len({text_of(example) for example in found}) == 128
    assert len({example.target for example in found}) > 50
    assert sum(model.tokenizer.calls) == 128  # the others were not tokenised
    targets = [example.target for example in found]
    assert targets != sorted(targets, key=str)
    again = drawn(examples(classifier(*LABELS), iter(sorted_rows()), length=32, labelled=True), 128, seed=0)
    assert list(again) == found
    other = drawn(examples(classifier(*LABELS), sorted_rows(), length=32, labelled=True), 128, seed=1)
    assert list(other) != found


def test_a_draw_of_more_than_there_are_is_all_of_them():
    stream = examples(classifier(*LABELS), sorted_rows(), length=32, labelled=True)
    assert Counter(map(text_of, drawn(stream, 1000, seed=0))) == Counter(map(text_of, stream))
    blocks = examples(causal(), [Row(("abcdefgh" * 50,))], length=16, labelled=False)
    assert Counter(map(text_of, drawn(blocks, 100, seed=0))) == Counter(map(text_of, blocks))
    some = [text_of(example) for example in drawn(blocks, 5, seed=0)]
    assert len(some) == 5
    assert not Counter(some) - Counter(map(text_of, blocks))
    numbers = [Example(([n, n],)) for n in range(20)]
    assert sorted(drawn(numbers, 50, seed=0), key=lambda example: example.tokens) == numbers
    assert len(set(map(str, drawn(iter(numbers), 5, seed=0)))) == 5


@pytest.mark.parametrize("is_one_row", [True, False])
def test_a_draw_of_a_long_text_is_from_all_over_it(is_one_row: bool):
    lines = [f"{n:05d} and what follows it, a line\n" for n in range(4000)]
    rows = [Row(("".join(lines),))] if is_one_row else [Row((line,), ends=False) for line in lines]
    found = list(drawn(examples(causal(), rows, length=32, labelled=False), 64, seed=0))
    assert len(found) == 64
    assert {len(example.tokens[0]) for example in found} == {32}
    starts = ["".join(lines).index(text_of(example)) / len("".join(lines)) for example in found]
    assert min(starts) < 0.1
    assert max(starts) > 0.9
    assert starts != sorted(starts)


def test_every_item_is_drawn_equally_often():
    counts = Counter(item for seed in range(4000) for item in sampled(range(10), 3, Random(seed))[0])
    assert all(abs(counts[n] - 1200) < 5 * (1200 * 0.7) ** 0.5 for n in range(10))
    assert sampled(range(10), 30, Random(0)) == (list(range(10)), 10)


def test_a_draw_holds_no_more_than_it_draws():
    alive: Counter[str] = Counter()

    class Counted(str):
        __slots__ = ()

        def __new__(cls, text: str) -> Any:
            alive["now"] += 1
            alive["most"] = max(alive["most"], alive["now"])
            return super().__new__(cls, text)

        def __del__(self) -> None:
            alive["now"] -= 1

    rows = (Row((Counted(f"text {n}"),)) for n in range(5000))
    found = list(drawn(examples(classifier(), rows, length=8, labelled=False), 10, seed=0))
    assert len(found) == 10
    assert alive["most"] <= module._LOOKED_AT + 20


def test_rows_without_a_text_are_left_out_with_a_word():
    rows = [Row(("a",), "x"), Row((" ",), "x", where="f, row 2"), Row(("c",), "y"), Row(("",), "y", where="f, row 4")]
    with pytest.warns(UserWarning, match="2 rows were left out: the text is empty .first: f, row 2"):
        found = list(examples(classifier("x", "y"), rows, length=8, labelled=True))
    assert list(map(text_of, found)) == ["a", "c"]
    with pytest.warns(UserWarning, match="1 row was left out: the text is empty"):
        list(examples(classifier("x", "y"), rows[:3], length=8, labelled=False))
    lines = [Row(("a\n",), ends=False, where="f, line 1"), Row(("\n",), ends=False, where="f, line 2"), Row(("",))]
    assert len(list(examples(classifier("x", "y"), lines, length=8, labelled=False))) == 1  # as texts have them


def test_examples_without_a_label_by_the_datas_own_word_are_left_out():
    rows = [Row(("a",), "x"), Row(("b",), where="f, row 2", unlabelled=DECLINED), Row(("c",), "y")]
    with pytest.warns(
        UserWarning, match="1 of 3 rows were left out: their label is -1, which is none .first: f, row 2"
    ):
        found = list(examples(classifier("x", "y"), rows, length=8, labelled=True))
    assert list(map(text_of, found)) == ["a", "c"]
    with pytest.warns(UserWarning, match="1 of 3 rows were left out"):
        assert classes_of(rows) == ("x", "y")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(examples(classifier("x", "y"), rows, length=8, labelled=False))) == 3
    with pytest.raises(
        EmptyDataError, match="f, row 2, as in every row, the label is -1, .* another split with --split"
    ):
        list(examples(classifier("x"), rows[1:2], length=8, labelled=True))


def test_where_a_label_is_missing_is_said(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_text("text,label\none,x\ntwo,\n")
    with pytest.raises(BatchError, match="a.csv, row 2: no label for 'two' .'label' is empty.. Labels are needed here"):
        list(examples(classifier("x"), read_rows(str(path)), length=8, labelled=True))
    path.write_text("text,label,category\none,x,y\n")
    with pytest.raises(BatchError, match="row 1: no label for 'one' .which column is it, 'label' or 'category'"):
        classes_of(read_rows(str(path)))


def test_a_class_goes_by_its_name_or_where_the_model_has_none_by_its_number():
    rows = [Row(("a",), "positive", number=1), Row(("b",), "negative", number=0)]

    def targets(*labels: str) -> list[Any]:
        return [example.target for example in examples(classifier(*labels), rows, length=8, labelled=True)]

    assert targets("positive", "negative") == [0, 1]
    assert targets("LABEL_0", "LABEL_1") == [1, 0]
    with pytest.raises(BatchError, match="label 'positive' is none of the 2 classes of letters, .* .'good', 'bad'"):
        targets("good", "bad")


def test_inference_is_no_similarity(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"premise": "one", "hypothesis": "two", "label": 2}\n')
    model: Any = SimpleNamespace(task="similarity", tokenizer=Letters())
    with pytest.raises(
        BatchError, match="line 1: the similarity of 'one' is '2'; .* Pairs with classes, such as entail"
    ):
        list(examples(model, read_rows(str(path)), length=8, labelled=True))
    with pytest.raises(
        BatchError, match="line 1: classes are of single texts; found 2: .* Name one column with --text"
    ):
        list(examples(classifier("0", "2"), read_rows(str(path)), length=8, labelled=True))
    with pytest.raises(BatchError, match="line 1: a causal language model reads single texts; .* one text with --text"):
        list(islice(examples(causal(), read_rows(str(path)), length=8, labelled=False), 1))
