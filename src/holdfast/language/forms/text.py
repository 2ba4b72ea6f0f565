"""Documents of lines, and sentences with their intents in two files."""

from __future__ import annotations

from pathlib import Path

from holdfast.errors import DataFileError
from holdfast.language.forms.opened import opened_text
from holdfast.language.forms.table import Entries, Table

INTENTS = "seq.in"


def text_table(path: Path) -> Table:
    """A document, a line an entry."""

    def entries() -> Entries:
        with opened_text(path) as lines:
            for number, line in enumerate(lines, start=1):
                yield f"{path}, line {number}", {"text": line}

    return Table("text", entries, ("text",), is_text=True)


def intents_table(path: Path) -> Table:
    """The sentences of `seq.in`, and beside them the file `label`.

    Raises:
        DataFileError: one is missing, or has more lines than the other.
    """
    labels_path = path.with_name("label")
    if not labels_path.is_file():
        raise DataFileError(f"{labels_path} is missing beside {INTENTS}.")
    counts = []
    for each in (path, labels_path):
        with opened_text(each) as lines:
            counts.append(sum(1 for _ in lines))
    if counts[0] != counts[1]:
        raise DataFileError(f"{path.parent}: {INTENTS} has {counts[0]} lines and label {counts[1]}; expected as many.")

    def entries() -> Entries:
        with opened_text(path) as texts, opened_text(labels_path) as labels:
            for number, (text, label) in enumerate(zip(texts, labels), start=1):
                if text.strip() or label.strip():
                    yield f"{path}, line {number}", {"text": text.rstrip("\n"), "label": label.rstrip("\n")}

    return Table(f"intents ({INTENTS} and label)", entries, ("text", "label"), counts[0])
