"""What a benchmark found, as JSON for programs and markdown for people, with the machine it was found on.

A table has parts, such as one for each network, which are measured one after the other and may be measured again alone:
each bears its own date and machine, and replaces the part of the same name.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import Spread
from holdfast.files import check_files, holds, write_text
from holdfast.version import __version__


@dataclass(frozen=True)
class Part:
    """Findings that were made together.

    Attributes:
        name: within the table.
        title: for people.
        notes: what was measured and how, a sentence or two each.
        rows: column -> value, the same columns in every row.
    """

    name: str
    title: str
    notes: Sequence[str]
    rows: Sequence[Mapping[str, Any]]


def machine() -> dict[str, Any]:
    """What the figures hang on."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "clock": "processor" if torch.get_num_threads() == 1 else "wall",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "holdfast": __version__,
    }


def content_of(part: Part, *, quick: bool) -> dict[str, Any]:
    """The part as JSON has it, with date and machine."""
    rows = [{column: _plain(value) for column, value in row.items()} for row in part.rows]
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {
        "title": part.title,
        "notes": list(part.notes),
        "quick": quick,
        "date": today,
        "machine": machine(),
        "rows": rows,
    }


def check_tables(folder: Path, names: Sequence[str]) -> None:
    """Raise `OutputError` where somebody else's files have the names of tables that are about to be measured."""
    paths = [folder / f"{name}{suffix}" for name in names for suffix in (".json", ".md")]
    check_files(paths, is_ours=lambda path: holds(path.with_suffix(".json"), ("title", "parts")))


def keep(folder: Path, name: str, *, about: str, part: str, content: Mapping[str, Any]) -> None:
    """Put the part into NAME.json, in place of the one of its name, and write NAME.md anew."""
    path = folder / f"{name}.json"
    check_tables(folder, [name])
    folder.mkdir(parents=True, exist_ok=True)
    parts = json.loads(path.read_text(encoding="utf-8"))["parts"] if path.exists() else {}
    parts[part] = dict(content)
    title = about.splitlines()[0].partition(":")[0]
    write_text(path, json.dumps({"title": title, "parts": parts}, indent=2) + "\n")
    pages = [f"# {title}\n\n{about.strip()}\n", *(markdown(found) for found in parts.values())]
    write_text(folder / f"{name}.md", "\n".join(pages))


def markdown(content: Mapping[str, Any]) -> str:
    """A part as a section of a page."""
    lines = [f"## {content['title']}", ""]
    if content["quick"]:
        lines.append("A trial with few examples and rounds: no figures to rely on.")
    lines += [*content["notes"], ""]
    if content["rows"]:
        columns = list(content["rows"][0])
        lines += [f"| {' | '.join(columns)} |", f"| {' | '.join('---' for _ in columns)} |"]
        lines += [f"| {' | '.join(_cell(row[column]) for column in columns)} |" for row in content["rows"]]
        lines.append("")
    facts = "; ".join(f"{name} {value}" for name, value in content["machine"].items())
    return "\n".join([*lines, f"Measured {content['date']} on: {facts}.", ""])


def _plain(value: Any) -> Any:
    return asdict(value) if isinstance(value, Spread) else value


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, Mapping):
        return str(Spread(**value))
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value).replace("|", "\\|")


def _cpu() -> str:
    try:
        facts = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.partition(":")[2].strip() for line in facts.splitlines() if line.startswith("model name")]
    return models[0] if models else platform.machine()
