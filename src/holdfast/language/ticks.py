"""How far a long piece of work is, told to whoever shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

OnProgress = Callable[[str, int, int | None], None]
"""Called with (name of the work, steps done, steps in all or None where not known)."""


def counted(
    items: Iterable[T], on_progress: OnProgress | None, work: str, *, total: int | None = None, by: int = 1
) -> Iterator[T]:
    """The same items; tells after each that it is done with, `by` steps further."""
    done = 0
    for item in items:
        yield item
        done += by
        if on_progress is not None:
            on_progress(work, done if total is None else min(done, total), total)
