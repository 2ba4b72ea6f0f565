"""The code in the docs does what the pages say."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (DOCS / page).read_text(), flags=re.MULTILINE | re.DOTALL)


def run(page: str) -> dict:
    """The names that the page's blocks leave, run one after the other; a fault has the line of the page."""
    text = (DOCS / page).read_text()
    names: dict = {"__name__": page}
    for block in blocks(page):
        line = text[: text.index(block)].count("\n")
        exec(compile("\n" * line + block, DOCS / page, "exec"), names)
    return names
