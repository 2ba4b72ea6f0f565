"""Rows as batches that a language model takes: (inputs, targets), the examples on the first axis."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor

from holdfast.errors import BatchError
from holdfast.experiments.language.models import LanguageModel
from holdfast.experiments.language.rows import Label, Row
from holdfast.heads.categorical import IGNORED

Batch = tuple[dict[str, Tensor], Tensor]

_PIECE = 2**14
"""Characters of a text that are tokenised at once."""
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


def examples(model: LanguageModel, rows: Iterable[Row], *, length: int, labelled: bool) -> Iterator[Example]:
    """Tokenised examples; of a causal language model blocks of `length` tokens, read on over rows.

    Args:
        model: for what task, and with which tokenizer.
        rows: see `read_rows`.
        length: tokens of a text at most.
        labelled: whether labels are needed.

    Raises:
        BatchError: labels are needed and there are none, or they do not fit the task; texts do not fit the task.
    """
    if model.task == "causal-lm":
        return _blocks(model.tokenizer, rows, length)
    rows = iter(rows)
    shown = list(islice(rows, _LOOKED_AT))
    scale = _scale(shown) if model.task == "similarity" else 1.0
    return (
        Example(
            tuple(model.tokenizer(list(row.texts), truncation=True, max_length=length)["input_ids"]),
            _target(model, row, scale) if labelled else None,
        )
        for row in chain(shown, rows)
        if row.texts[0].strip()
    )


def batches(model: LanguageModel, found: Iterable[Example], size: int) -> Iterator[Batch]:
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


def collate(model: LanguageModel, found: Sequence[Example]) -> Batch:
    """One batch: tokens [B, T] of a language model or a classifier of its own, else [B, texts, T], padded."""
    tokens = [text for example in found for text in example.tokens]
    longest = max(map(len, tokens))
    if model.task != "causal-lm":
        longest = 8 * -(-longest // 8)  # fewer different shapes
    ids = torch.full((len(tokens), longest), model.tokenizer.pad_token_id or 0)
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


def classes_of(rows: Iterable[Row]) -> tuple[str, ...]:
    """The labels in the data, sorted.

    Raises:
        BatchError: a row has none.
    """
    found: set[str] = set()
    for row in rows:
        found.add(str(_labelled(row)))
    return tuple(sorted(found))


def _blocks(tokenizer: Any, rows: Iterable[Row], length: int) -> Iterator[Example]:
    """Blocks of tokens, documents parted by the end-of-text token where the tokenizer has one; the last is shorter."""
    held: list[int] = []
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    for text, ends in _pieces(rows):
        held += tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        held += end if ends else []
        while len(held) >= length:
            yield Example((held[:length],))
            held = held[length:]
    if len(held) > 1:
        yield Example((held,))


def _pieces(rows: Iterable[Row]) -> Iterator[tuple[str, bool]]:
    """Texts of about `_PIECE` characters, and whether a document ends with them."""
    lines: list[str] = []
    size = 0
    for row in rows:
        if len(row.texts) != 1:
            raise BatchError(
                f"a causal language model reads single texts; found {len(row.texts)} in a row: {row.texts}"
            )
        lines.append(row.texts[0])
        size += len(row.texts[0])
        if row.ends or size >= _PIECE:
            yield "".join(lines), row.ends
            lines, size = [], 0
    if lines:
        yield "".join(lines), False


def _labelled(row: Row) -> Label:
    if row.label is None:
        raise BatchError(
            f"no label for {row.texts[0][:60]!r}. Labels are needed here: name their column with --label, or give "
            "data that have them."
        )
    return row.label


def _target(model: LanguageModel, row: Row, scale: float) -> float | int:
    label = _labelled(row)
    if model.task == "similarity":
        if len(row.texts) != 2:
            raise BatchError(f"similarity is that of two texts; found one: {row.texts[0][:60]!r}.")
        if isinstance(label, str) or not 0 <= label <= scale:
            raise BatchError(f"the similarity of {row.texts[0][:60]!r} is {label!r}; expected 0..{scale:g}.")
        return label / scale
    if len(row.texts) != 1:
        raise BatchError(f"classes are of single texts; found {len(row.texts)}: {row.texts[0][:60]!r}, ...")
    if str(label) in model.labels:
        return model.labels.index(str(label))
    if isinstance(label, int) and 0 <= label < len(model.labels):
        return label
    shown = ", ".join(map(repr, model.labels[:5]))
    raise BatchError(
        f"label {label!r} is none of the model's {len(model.labels)} classes ({shown}, ...). Give data that have these."
    )


def _scale(rows: Sequence[Row]) -> float:
    numbers = [row.label for row in rows if isinstance(row.label, int | float)]
    return _FULL_SCALE if max(numbers, default=0) > 1 else 1.0
