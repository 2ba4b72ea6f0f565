"""Data as they are asked for: where they are, and what of them is read."""

from __future__ import annotations

from dataclasses import dataclass, field

from holdfast.language.rows import Columns, Row, RowStream, read_rows


@dataclass(frozen=True)
class Source:
    """Data as they are asked for.

    Attributes:
        path: see `read_rows`.
        columns: of a table.
        split: which one of data that have several.
    """

    path: str
    columns: Columns = field(default_factory=Columns)
    split: str = "train"

    def rows(self) -> RowStream:
        """The stream of rows, which can be read again and again."""
        return read_rows(self.path, columns=self.columns, split=self.split)

    def first(self) -> Row | None:
        """The first row."""
        return next(iter(self.rows()), None)
