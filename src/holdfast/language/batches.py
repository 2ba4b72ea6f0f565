"""Rows as batches that a language model takes: (inputs, targets), the examples on the first axis."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from random import Random
from typing import Any, TypeVar

import torch
from torch import Tensor

from holdfast.errors import BatchError, EmptyDataError
from holdfast.language.heads import listed_labels
from holdfast.language.models import LanguageModel
from holdfast.language.rows import DECLINED, Label, Row, as_number
from holdfast.likelihoods.categorical import IGNORED

T = TypeVar("T")
LanguageBatch = tuple[dict[str, Tensor], Tensor]

_PIECE = 2**14
"""Characters of lines that are tokenised as one text."""
_ITEMS = 256
_GROUP = 2**18
"""Pieces, or rows, that are tokenised in one call, and their characters."""
_CHARACTERS = 8
"""Of a token at most, but for rare ones: so many for each token of a drawn block."""
_LOOKED_AT = 100
"""Rows that show the scale of the similarities."""
_FULL_SCALE = 5.0
"""Of similarities that are not in 0..1, as the STS benchmark has them."""


@dataclass(frozen=True)
class Example:
    """What a batch is made of.

    Attributes:
        tokens: of each text, special tokens included.
        target: the number of a class, a similarity in 0..1, or None where it is not needed.
    """

    tokens: tuple[Sequence[int], ...]
    target: float | int | None = None


@dataclass(frozen=True)
class TokenisedExamples:
    """Tokenised examples, a stream; of a causal language model blocks of `length` tokens, read on over rows.

    Attributes:
        model: for what task, and with which tokenizer.
        rows: see `read_rows`.
        length: tokens of a text at most.
        labelled: whether labels are needed.
    """

    model: LanguageModel
    rows: Iterable[Row]
    length: int
    labelled: bool

    def __iter__(self) -> Iterator[Example]:
        """In the order of the rows."""
        if self.model.task == "causal-lm":
            return _blocks(self.model.tokenizer, self.rows, self.length)
        scale, rows = self._usable()
        return self._tokenised(rows, scale)

    def drawn(self, count: int, *, seed: int) -> Iterator[Example]:
        """So many of them, drawn without replacement and in random order; all where there are no more.

        Of a causal language model each is the first block in a stretch of about eight characters a token, and the
        stretches are drawn.

        Cost: one reading of the rows; only what was drawn is tokenised, and held.
        """
        random = Random(seed)
        if self.model.task != "causal-lm":
            scale, rows = self._usable()
            kept, _ = sampled(rows, count, random)
            random.shuffle(kept)
            return self._tokenised(kept, scale)
        tokenizer, length = self.model.tokenizer, self.length
        stretches, total = sampled(_stretches(self.rows, _CHARACTERS * length), count, random)
        if total <= count:
            found, _ = sampled(_blocks(tokenizer, chain.from_iterable(stretches), length), count, random)
            random.shuffle(found)
            return iter(found)
        random.shuffle(stretches)
        return (block for each in stretches for block in islice(_blocks(tokenizer, each, length), 1))

    def _usable(self) -> tuple[float, Iterator[Row]]:
        """The scale of the similarities, and the rows that make an example."""
        rows = _with_labels(self.rows) if self.labelled else iter(self.rows)
        shown = list(islice(rows, _LOOKED_AT))
        scale = _scale(shown) if self.model.task == "similarity" else 1.0
        return scale, _with_texts(chain(shown, rows))

    def _tokenised(self, rows: Iterable[Row], scale: float) -> Iterator[Example]:
        for some in _groups(rows, lambda row: sum(map(len, row.texts))):
            targets = [_target(self.model, row, scale) if self.labelled else None for row in some]
            texts = [text for row in some for text in row.texts]
            tokens = iter(self.model.tokenizer(texts, truncation=True, max_length=self.length)["input_ids"])
            for row, target in zip(some, targets):
                yield Example(tuple(islice(tokens, len(row.texts))), target)


def examples(model: LanguageModel, rows: Iterable[Row], *, length: int, labelled: bool) -> TokenisedExamples:
    """Tokenised examples; of a causal language model blocks of `length` tokens, read on over rows.

    Args:
        model: for what task, and with which tokenizer.
        rows: see `read_rows`.
        length: tokens of a text at most.
        labelled: whether labels are needed.

    Raises:
        BatchError: when they are read: labels are needed and there are none, or they do not fit the task; texts do not
            fit the task.
    """
    return TokenisedExamples(model, rows, length, labelled)


def drawn(found: Iterable[Example], count: int, *, seed: int) -> Iterator[Example]:
    """So many examples, drawn without replacement and in random order; all where there are no more.

    Args:
        found: a stream; of `TokenisedExamples` only what was drawn is tokenised.
        count: how many are held.
        seed: the same seed draws the same examples.
    """
    if isinstance(found, TokenisedExamples):
        return found.drawn(count, seed=seed)
    random = Random(seed)
    kept, _ = sampled(found, count, random)
    random.shuffle(kept)
    return iter(kept)


def sampled(stream: Iterable[T], count: int, random: Random) -> tuple[list[T], int]:
    """So many items of a stream of any length, each subset with equal chance, and how many items there were.

    Source: Waterman's algorithm R, in Knuth, The Art of Computer Programming, volume 2, 3.4.2.
    """
    kept: list[T] = []
    total = 0
    for total, item in enumerate(stream, start=1):
        if total <= count:
            kept.append(item)
        elif (place := random.randrange(total)) < count:
            kept[place] = item
    return kept, total


def batches(model: LanguageModel, found: Iterable[Example], size: int) -> Iterator[LanguageBatch]:
    """As many examples together as asked for, of a causal language model only of equal length."""
    held: list[Example] = []
    for example in found:
        if held and (len(held) == size or len(example.tokens) != len(held[0].tokens)):
            yield collate(model, held)
            held = []
        if held and model.task == "causal-lm" and len(example.tokens[0]) != len(held[0].tokens[0]):
            yield collate(model, held)
            held = []
        held.append(example)
    if held:
        yield collate(model, held)


def batches_by_length(model: LanguageModel, found: Iterable[Example], size: int) -> list[LanguageBatch]:
    """Batches of examples of like length, of a causal language model of equal length."""
    return list(batches(model, sorted(found, key=lambda example: max(map(len, example.tokens))), size))


def collate(model: LanguageModel, found: Sequence[Example]) -> LanguageBatch:
    """One batch: tokens [B, T] of a language model or a classifier of its own, else [B, texts, T], padded."""
    tokens = [text for example in found for text in example.tokens]
    longest = max(map(len, tokens))
    if model.task != "causal-lm":
        longest = 8 * -(-longest // 8)  # fewer different shapes
    ids = torch.full((len(tokens), longest), model.tokenizer.pad_token_id or 0, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(tokens):
        ids[row, : len(text)] = torch.tensor(text)
        mask[row, : len(text)] = 1
    if model.base is not model.module:
        ids, mask = (tensor.unflatten(0, (len(found), -1)) for tensor in (ids, mask))
    inputs = {"input_ids": ids, "attention_mask": mask}
    if model.task == "causal-lm":
        return inputs, ids.masked_fill(mask == 0, IGNORED)
    targets = [0 if example.target is None else example.target for example in found]
    if model.task == "classification":
        return inputs, torch.tensor(targets)
    return inputs, torch.tensor(targets, dtype=torch.float32).unsqueeze(1)


def digest_of(*found: Iterable[Example]) -> str:
    """The sha256 of the tokens and targets of examples, by which processes see that they read the same."""
    digest = hashlib.sha256()
    for some in found:
        for example in some:
            digest.update(repr((list(map(list, example.tokens)), example.target)).encode())
        digest.update(b"|")
    return digest.hexdigest()


def classes_of(rows: Iterable[Row]) -> tuple[str, ...]:
    """The labels in the data, sorted.

    Raises:
        BatchError: a row has none.
    """
    return tuple(sorted({str(_labelled(row)) for row in _with_labels(rows)}))


def _blocks(tokenizer: Any, rows: Iterable[Row], length: int) -> Iterator[Example]:
    """Blocks of tokens, documents parted by the end-of-text token where the tokenizer has one; the last is shorter."""
    tokens = chain.from_iterable(_token_lists(tokenizer, rows))
    while len(block := list(islice(tokens, length))) == length:
        yield Example((block,))
    if len(block) > 1:
        yield Example((block,))


def _token_lists(tokenizer: Any, rows: Iterable[Row]) -> Iterator[Sequence[int]]:
    """The tokens of one piece of text after the other, and what ends a document."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    for some in _groups(_pieces(rows), lambda piece: len(piece[0])):
        texts = [text for text, _ in some if text]
        tokens = iter(tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else ())
        for text, ends in some:
            if text:
                yield next(tokens)
            if ends:
                yield end


def _groups(items: Iterable[T], size_of: Callable[[T], int]) -> Iterator[list[T]]:
    """Items that are tokenised in one call: some hundred, or some hundred thousand characters."""
    held: list[T] = []
    size = 0
    for item in items:
        held.append(item)
        size += size_of(item)
        if len(held) >= _ITEMS or size >= _GROUP:
            yield held
            held, size = [], 0
    if held:
        yield held


def _pieces(rows: Iterable[Row]) -> Iterator[tuple[str, bool]]:
    """Texts of about `_PIECE` characters, and whether a document ends with them."""
    lines: list[str] = []
    size = 0
    for row in rows:
        lines.append(_single(row))
        size += len(lines[-1])
        if row.ends or size >= _PIECE:
            yield "".join(lines), row.ends
            lines, size = [], 0
    if lines:
        yield "".join(lines), False


def _stretches(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """Rows in stretches of about so many characters; what is longer is cut."""
    held: list[Row] = []
    characters = 0
    for row in rows:
        text = _single(row)
        for start in range(0, max(1, len(text)), size):
            part = text[start : start + size]
            held.append(Row((part,), ends=row.ends and start + size >= len(text)))
            characters += len(part)
            if characters >= size:
                yield held
                held, characters = [], 0
    if held:
        yield held


def _single(row: Row) -> str:
    if len(row.texts) != 1:
        raise BatchError(
            f"{_at(row)}a causal language model reads single texts; found {len(row.texts)} in a row: {row.texts}. Name "
            "the column of one text with --text."
        )
    return row.texts[0]


def _at(row: Row) -> str:
    return f"{row.where}: " if row.where else ""


def _with_labels(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows but for those that the data themselves give no label; how many these were is told at the end.

    Raises:
        EmptyDataError: no other row is there.
    """
    kept = declined = 0
    place = ""
    for row in rows:
        if row.unlabelled == DECLINED:
            declined, place = declined + 1, place or row.where
        else:
            kept += 1
            yield row
    if declined and not kept:
        raise EmptyDataError(
            f"{place}, as in every row, the label is -1, which is none. Choose another split with --split."
        )
    if declined:
        warnings.warn(
            f"{declined} of {declined + kept} rows were left out: their label is -1, which is none (first: {place}).",
            stacklevel=2,
        )


def _with_texts(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows but for those whose text is empty; how many these were is told at the end, but of a document's lines."""
    empty, place = 0, ""
    for row in rows:
        if row.texts[0].strip():
            yield row
        elif row.where and row.ends:
            empty, place = empty + 1, place or row.where
    if empty:
        rows_were = "1 row was" if empty == 1 else f"{empty} rows were"
        warnings.warn(f"{rows_were} left out: the text is empty (first: {place}).", stacklevel=2)


def _labelled(row: Row) -> Label:
    if row.label is None:
        why = f" ({row.unlabelled})" if row.unlabelled else ""
        raise BatchError(
            f"{_at(row)}no label for {row.texts[0][:60]!r}{why}. Labels are needed here: name their column with "
            "--label, or give data that have them."
        )
    return row.label


def _target(model: LanguageModel, row: Row, scale: float) -> float | int:
    label, at, text = _labelled(row), _at(row), row.texts[0][:60]
    if model.task == "similarity":
        if len(row.texts) != 2:
            raise BatchError(f"{at}similarity is that of two texts; found one: {text!r}.")
        number = None if row.number is not None else as_number(label)
        if number is None:
            raise BatchError(
                f"{at}the similarity of {text!r} is {label!r}; expected 0..{scale:g}. Pairs with classes, such as "
                "entailment, are not learned: give a number, or single texts with classes."
            )
        if not 0 <= number <= scale:
            raise BatchError(f"{at}the similarity of {text!r} is {label!r}; expected 0..{scale:g}.")
        return number / scale
    if len(row.texts) != 1:
        raise BatchError(
            f"{at}classes are of single texts; found {len(row.texts)}: {text!r}, ... Name one column with --text, or "
            "join both texts in one."
        )
    found = row.class_in(model.labels)
    if found is not None:
        return found
    others = [name for name, labels in model.head_labels.items() if str(label) in labels]
    remedy = f"Its head {others[0]!r} has it: --head {others[0]}." if others else "Give data that have these."
    raise BatchError(
        f"{at}label {label!r} is none of the {len(model.labels)} classes of {model.name}"
        f"{f', head {model.head!r}' if model.head else ''} ({listed_labels(model.labels)}). {remedy}"
    )


def _scale(rows: Sequence[Row]) -> float:
    return _FULL_SCALE if any((as_number(row.label) or 0) > 1 for row in rows) else 1.0
