"""What a benchmark found, as JSON for programs and markdown for people, with the machine it was found on."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from holdfast.version import __version__


@dataclass(frozen=True)
class Table:
    """One benchmark's findings.

    Attributes:
        title: of the table.
        notes: what was measured and how, a sentence or two each.
        rows: column -> value, the same columns in every row.
        quick: whether it was only a trial.
    """

    title: str
    notes: Sequence[str]
    rows: Sequence[dict[str, Any]]
    quick: bool = False


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


def markdown(table: Table) -> str:
    """The table as a page."""
    columns = list(table.rows[0])
    lines = [f"| {' | '.join(columns)} |", f"| {' | '.join('---' for _ in columns)} |"]
    lines += [f"| {' | '.join(_cell(row[column]) for column in columns)} |" for row in table.rows]
    facts = "; ".join(f"{name} {value}" for name, value in machine().items())
    trial = ["A trial with few rounds: no figures to rely on."] if table.quick else []
    return "\n".join([f"# {table.title}", "", *trial, *table.notes, "", *lines, "", f"Measured on: {facts}.", ""])


def write(folder: Path, name: str, table: Table) -> None:
    """Keep it as NAME.json and NAME.md."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"title": table.title, "quick": table.quick, "machine": machine(), "rows": list(table.rows)}
    (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (folder / f"{name}.md").write_text(markdown(table), encoding="utf-8")


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else "" if value is None else str(value)


def _cpu() -> str:
    try:
        facts = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.partition(":")[2].strip() for line in facts.splitlines() if line.startswith("model name")]
    return models[0] if models else platform.machine()
