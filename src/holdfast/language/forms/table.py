"""What every reader gives: a table whose entries can be read from the beginning, again and again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Entries = Iterator[tuple[str, Mapping[str, Any]]]
"""Where an entry stands, for an error's text, and its values by column."""


@dataclass(frozen=True)
class Table:
    """One file, or one split of a stored data set.

    Attributes:
        form: in words, for the user.
        entries: reads it from the beginning; nothing is held but the entry at hand.
        names: of the columns; empty where only the entries tell.
        num_rows: how many entries; None where that takes a reading.
        classes: names of the classes of a column that is stored as their numbers.
        numbers: of a form without types, the columns whose every value is a number, and of which type; None where the
            form has types of its own.
        is_text: the entries are the lines of one document, each under "text".
    """

    form: str
    entries: Callable[[], Entries]
    names: tuple[str, ...] = ()
    num_rows: int | None = None
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    numbers: Mapping[str, type] | None = None
    is_text: bool = False
