"""Which columns of a table are the text and the label, and what a row makes of their values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from holdfast.errors import BatchError, OptionError

Label = str | int | float
DECLINED = "declined"
"""Why there is no label: the data say themselves that the example has none, as -1 does."""

PAIRS = (("sentence1", "sentence2"), ("text1", "text2"), ("question1", "question2"), ("premise", "hypothesis"))
TEXTS = ("text", "sentence", "content", "query", "utterance")
LABELS = ("label", "labels", "score", "similarity", "intent", "category")
KNOWN = frozenset({*chain.from_iterable(PAIRS), *TEXTS, *LABELS})
_INFERENCE = PAIRS[-1]
"""Pairs whose labels are classes, also where these are stored as numbers; -1 is none, on which nobody agreed."""
_NONE_AGREED = {"-1", "-"}
_CHATS = {"messages", "conversations", "conversation", "instruction", "prompt", "chosen", "rejected"}


@dataclass(frozen=True)
class Columns:
    """The columns of a table that are read; left out, they are told from the usual names.

    Attributes:
        text: of the text, or of the two texts of a pair.
        label: of the label.
    """

    text: tuple[str, ...] = ()
    label: str | None = None

    @property
    def named(self) -> tuple[str, ...]:
        """All that were asked for."""
        return (*self.text, *([self.label] if self.label else []))


@dataclass(frozen=True)
class Chosen:
    """The columns of one table that are read.

    Attributes:
        text: of the text, or of the two texts of a pair.
        label: of the label; None where there is none, or more than one could be.
        candidates: the columns that could be the label.
        names: of all columns.
    """

    text: tuple[str, ...]
    label: str | None = None
    candidates: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One example, or one line of a text.

    Attributes:
        texts: one, or the two of a pair.
        label: as the data have it; None where there is none.
        ends: whether a document ends here; a language model reads on over rows that do not.
        where: the file and the place in it, for an error's text.
        unlabelled: why there is no label: `DECLINED`, or in words; empty where there is one, or no column of labels.
        number: of the class in the data's own list of classes, where they have one.
    """

    texts: tuple[str, ...]
    label: Label | None = None
    ends: bool = True
    where: str = field(default="", compare=False)
    unlabelled: str = field(default="", compare=False)
    number: int | None = field(default=None, compare=False)

    def class_in(self, names: Sequence[str]) -> int | None:
        """The number of its class among those of a model, or None.

        A class goes by its name, and by its number where the data have no names for them, or the model has none.
        """
        text = str(self.label)
        if text in names:
            return names.index(text)
        number = self.number if is_unnamed(names) else None
        if self.number is None and text.isdecimal() and str(int(text)) == text:
            number = int(text)
        return number if number is not None and number < len(names) else None


def is_unnamed(classes: Sequence[str]) -> bool:
    """Whether classes have no names but those that transformers makes up: LABEL_0, LABEL_1, ..."""
    return all(name == f"LABEL_{number}" for number, name in enumerate(classes))


def as_number(label: Label | None) -> float | None:
    """The number that a label is, or that is written in it; None where it is none."""
    try:
        return None if label is None else float(label)
    except ValueError:
        return None


def choose_columns(names: Sequence[str], asked: Columns, *, where: str) -> Chosen:
    """The columns to read, those asked for or those with a usual name; upper and lower case are the same.

    Raises:
        OptionError: a column that was asked for is not there; none, or more than one, could be the text; chat data.
    """
    shown = ", ".join(map(repr, names))
    by_name = {name.strip().lower(): name for name in reversed(names)} | {name: name for name in names}
    by_asked = {name: by_name.get(name, by_name.get(name.strip().lower())) for name in asked.named}
    missing = [name for name, found in by_asked.items() if found is None]
    if missing:
        raise OptionError(f"{where}: no column {', '.join(map(repr, missing))}; found {shown}.")
    text = tuple(str(by_asked[name]) for name in asked.text)
    if not text:
        pairs = [pair for pair in PAIRS if all(name in by_name for name in pair)]
        candidates = pairs + [(name,) for name in TEXTS if name in by_name]
        if len(candidates) != 1:
            raise OptionError(_no_text(names, candidates, where=where))
        text = tuple(by_name[name] for name in candidates[0])
    if asked.label:
        return Chosen(text, by_asked[asked.label], names=tuple(names))
    labels = tuple(by_name[name] for name in LABELS if name in by_name and by_name[name] not in text)
    return Chosen(text, labels[0] if len(labels) == 1 else None, labels, tuple(names))


def _no_text(names: Sequence[str], candidates: Sequence[tuple[str, ...]], *, where: str) -> str:
    shown = ", ".join(map(repr, names)) or "no columns"
    if candidates:
        several = " or ".join(map(repr, chain.from_iterable(candidates)))
        return f"{where}: which column is the text, {several}? Found {shown}. Name it with --text."
    chat = [name for name in names if name.strip().lower() in _CHATS]
    if not chat:
        return f"{where}: which column is the text? Found {shown}. Name it with --text."
    return (
        f"{where}: chat data ({' and '.join(map(repr, chat))}) are not read yet. Write each conversation as one text, "
        'a row {"text": "..."} each, or name a column of text with --text.'
    )


def row_of(entry: Mapping[str, Any], chosen: Chosen, *, where: str, classes: Sequence[str] = ()) -> Row:
    """The row in a table's entry.

    Args:
        entry: values by column.
        chosen: the columns that are read.
        where: the file and the place in it.
        classes: the names of the label's classes, where the table stores their numbers.

    Raises:
        BatchError: a text is no text, or a label no label.
    """
    texts = tuple(_text(entry.get(name), name, where) for name in chosen.text)
    if chosen.label is None:
        several = " or ".join(map(repr, chosen.candidates))
        return Row(texts, where=where, unlabelled=f"which column is it, {several}?" if several else "")
    value = entry.get(chosen.label)
    is_inference = tuple(name.strip().lower() for name in chosen.text) == _INFERENCE
    if (classes and value == -1) or (is_inference and str(value).strip() in _NONE_AGREED):
        return Row(texts, where=where, unlabelled=DECLINED)
    if _is_empty(value):
        return Row(texts, where=where, unlabelled=f"{chosen.label!r} is empty")
    if classes:
        if not isinstance(value, int) or not 0 <= value < len(classes):
            raise BatchError(
                f"{where}: {chosen.label!r} is {in_brief(value)}; expected a class, 0..{len(classes) - 1}."
            )
        return Row(texts, classes[value], where=where, number=value)
    label = _label(value, chosen.label, where)
    number = int(label) if is_inference and str(label).isdecimal() else None
    return Row(texts, label if number is None else str(label), where=where, number=number)


def _text(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str):
        raise BatchError(
            f"{where}: {name!r} is {in_brief(value)}; expected a text. Delete the row, or name another column with "
            "--text."
        )
    return value


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value)) or not str(value).strip()


def _label(value: Any, name: str, where: str) -> Label:
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, int | float):
        return value
    if isinstance(value, str):
        return value.strip()
    raise BatchError(
        f"{where}: {name!r} is {in_brief(value)}; expected one label, a text or a number. Several labels an example "
        "are not read: give one row a label, or name another column with --label."
    )


def in_brief(value: Any) -> str:
    """A value in at most 60 characters."""
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
