"""Text that somebody else wrote, such as the names in a `result.json`, made harmless where it is shown."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from typing import Any

MOST_LETTERS = 80
"""Of one name or value, as shown."""

_MARKDOWN = str.maketrans(
    {
        **{sign: f"\\{sign}" for sign in "\\`*_[]~$"},
        "|": "&#124;",
        "&": "&amp;",
        "<": "&lt;",
        ">": "&gt;",
        "@": "@&#8203;",
    }
)


def one_line(text: str, *, most: int = MOST_LETTERS) -> str:
    """A text on one line: control and formatting characters are spaces, and one that is too long is cut."""
    shown = "".join(" " if unicodedata.category(sign) in ("Cc", "Cf", "Zl", "Zp") else sign for sign in text)
    shown = " ".join(shown.split())
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"


def markdown_text(text: str) -> str:
    """A text that Markdown shows letter by letter, within a line, a list or a table: no tags, links, pictures or code.

    What would become a link by itself, an address or a name after @, is parted by a space of no width.
    """
    line = one_line(text, most=max(len(text), 1)).translate(_MARKDOWN)
    line = re.sub(r"(?i)://|\bwww\.", lambda found: f"{found[0][:-1]}&#8203;{found[0][-1]}", line)
    return re.sub(r"^([#+\-=]|\d+(?=[.)](?:\s|$)))", lambda found: _kept(found[0]), line)


def csv_cell(value: Any) -> Any:
    """A value for a table that spreadsheets read: a text that they would take for a formula is led by an apostrophe.

    Numbers stay numbers.
    """
    if isinstance(value, str) and re.match(r"\s*[=+\-@＝＋－＠]|[\t\r\n]", value):
        return f"'{value}"
    return value


def picture_text(text: str) -> str:
    """A text that matplotlib draws as it stands: no mathematics between dollar signs."""
    return text.replace("$", r"\$")


def file_name(text: str) -> str:
    """A part of a file's name: letters, digits, points, dashes and underscores; what was changed is told apart."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).lstrip(".-")[:MOST_LETTERS]
    return name if name and name == text else f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}".lstrip("-")


def _kept(start: str) -> str:
    """What would begin a heading, a list or a line, with a backslash before its sign."""
    return f"&#{ord(start[0])};{start[1:]}" if start[0].isdigit() else f"\\{start}"
