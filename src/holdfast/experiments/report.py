"""What all runs below some folders found: one Markdown page with its pictures."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.errors import OutputError
from holdfast.experiments.canvas import check_matplotlib
from holdfast.experiments.groups import Group, differing, group_results, method_label, sections, setting_text
from holdfast.experiments.plots import accuracy_curves, accuracy_matrices
from holdfast.experiments.results import RunResult, find_results
from holdfast.experiments.tables import Row, markdown, row_of
from holdfast.files import write_text
from holdfast.version import __version__


@dataclass(frozen=True)
class Report:
    """What a report is made of.

    Attributes:
        path: of the Markdown page.
        pictures: of the PNGs beside it.
        rows: the figures, one row a configuration.
        num_runs: how many runs they are of.
    """

    path: Path
    pictures: tuple[Path, ...]
    rows: list[Row]
    num_runs: int


def report(folders: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str]) -> Report:
    """Read every finished run at or below `folders`, and write `report.md` and its pictures into the folder `output`.

    Runs are averaged over seeds only where every setting is the same; where runs of one method differ in settings, each
    configuration has its own row and line, labelled with the settings that differ.

    Raises:
        FileFormatError: a folder is missing, holds no finished run, or a damaged one.
        OptionError: matplotlib is not installed.
        OutputError: `output` cannot be written.
    """
    check_matplotlib()
    return write_report(find_results(folders), output)


def write_report(results: Iterable[RunResult], output: str | os.PathLike[str]) -> Report:
    """The report of these runs; see `report`."""
    target = Path(output)
    groups = group_results(results)
    pictures, parts = [], []
    for (stream, scenario), members in sections(groups).items():
        name = f"{stream}-{scenario}"
        pictures.append(accuracy_curves(members, target / f"{name}-accuracy.png"))
        pictures.append(accuracy_matrices(members, target / f"{name}-matrix.png"))
        parts.append(_section(name, members))
    num_runs = sum(len(group.results) for group in groups)
    head = f"# holdfast: {num_runs} run{'s' * (num_runs != 1)}\n\n{_LEGEND}\n"
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error}. Choose a folder that can be written.") from error
    write_text(target / "report.md", "\n".join([head, *parts, f"Written by holdfast {__version__}.\n"]))
    return Report(target / "report.md", tuple(pictures), [row_of(group) for group in groups], num_runs)


_LEGEND = """Accuracies in %: mean ± half the width of the 95% confidence interval over seeds, or a single seed's.

- **accuracy**: mean test accuracy over all tasks after the last one; **validation**: the same on validation data, on
  which settings may be chosen.
- **forgetting**: mean over earlier tasks of the best accuracy ever minus the last.
- **backward transfer**: mean over earlier tasks of the last accuracy minus that just after learning the task.
- **learning accuracy**: mean accuracy on each task just after learning it.
- **training**, **importance**: seconds in training steps, and in measuring importances."""


def _section(name: str, groups: Sequence[Group]) -> str:
    first = groups[0]
    return f"""## {first.stream}, {first.scenario}-incremental

{markdown([row_of(group) for group in groups])}
![Average accuracy against the number of tasks learned]({name}-accuracy.png)

![Accuracy on every task after every task]({name}-matrix.png)

### Settings

{_settings(groups)}"""


def _settings(groups: Sequence[Group]) -> str:
    """The settings that all share, and for each configuration those that are its own."""
    own = differing([group.settings for group in groups])
    shared = [setting_text(name, value) for name, value in _told(groups[0].settings, without=own)]
    lines = [f"All: {', '.join(shared) or 'nothing in common'}."]
    lines += ["", "| method | settings of its own | seeds |", "|:--|:--|:--|"]
    for group in groups:
        told = [setting_text(name, group.settings.get(name)) for name in own if group.settings.get(name) is not None]
        seeds = ", ".join(map(str, group.seeds))
        lines.append(f"| {method_label(group.method)} | {', '.join(told) or 'none'} | {seeds} |")
    kept = [(group.label, group.results[-1].keeper) for group in groups if group.results[-1].keeper]
    if kept:
        lines += ["", "What the keepers said at the end (of the last seed):", ""]
        lines += [f"- {label}: {line}" for label, line in kept]
    versions = {
        ", ".join(f"{name} {version}" for name, version in sorted(result.versions.items()))
        for group in groups
        for result in group.results
        if result.versions
    }
    if versions:
        lines += ["", f"Run with {'; '.join(sorted(versions))}."]
    return "\n".join(lines) + "\n"


def _told(settings: dict[str, Any], *, without: Sequence[str]) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in settings.items() if name not in without and value is not None]
