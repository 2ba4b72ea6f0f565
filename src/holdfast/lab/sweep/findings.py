"""What a sweep found: the best setting of each method, chosen on validation data."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from holdfast.files import check_files, holds, opened, write_json, write_text
from holdfast.lab.groups import method_label, method_order
from holdfast.lab.sweep.space import Space, SweepChoice
from holdfast.lab.tables import Estimate


@dataclass(frozen=True)
class Finding:
    """How one setting of one method did.

    Attributes:
        method: its name.
        choice: the setting.
        state: "complete", or "pruned" where it was given up.
        why: it was given up.
        validation: average validation accuracy after the last task, one a seed.
        test: the same on test data, by which nothing is chosen.
        runs: names of the run folders, one a seed.
    """

    method: str
    choice: SweepChoice
    state: str = "complete"
    why: str = ""
    validation: tuple[float, ...] = ()
    test: tuple[float, ...] = ()
    runs: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """As tables call the method."""
        return method_label(self.method)


@dataclass(frozen=True)
class SweepFindings:
    """What a sweep found.

    Attributes:
        space: what was compared.
        all: every setting that was tried, by method, optimizer, learning rate and strength.
        json: where it is written.
        csv: likewise, a line a setting.
    """

    space: Space
    all: tuple[Finding, ...]
    json: Path
    csv: Path

    @property
    def best(self) -> list[Finding]:
        """The setting of highest mean validation accuracy of each method, in the order of tables."""
        whole = [finding for finding in self.all if finding.state == "complete"]
        own = groupby(sorted(whole, key=lambda each: method_order(each.method)), key=lambda each: each.method)
        return [max(found, key=lambda each: Estimate.of(each.validation).mean) for _, found in own]

    @property
    def given_up(self) -> list[Finding]:
        """Of each method that has no best setting, the last one that was given up."""
        done = {finding.method for finding in self.best}
        return list({finding.method: finding for finding in self.all if finding.method not in done}.values())


def check_findings(space: Space, output: Path) -> None:
    """Raise `OutputError` where somebody else's files have the names of those that `write_findings` writes."""
    check_files(_paths(space, output), is_ours=_is_findings)


def _is_findings(path: Path) -> bool:
    if path.suffix == ".json":
        return holds(path, ("stream", "seeds", "settings", "best", "all"))
    with opened(path) as file:
        return file.readline().decode(errors="replace").rstrip("\n") == ",".join(_COLUMNS)


def _paths(space: Space, output: Path) -> tuple[Path, Path]:
    return output / f"sweep-{space.stream}.json", output / f"sweep-{space.stream}.csv"


def write_findings(found: Sequence[Finding], *, space: Space, output: Path) -> SweepFindings:
    """Write sweep-STREAM.json and .csv, each whole or not at all; test accuracies stand at the best alone.

    Raises:
        OutputError: files that holdfast did not write have these names, or they cannot be written.
    """
    findings = SweepFindings(space, tuple(sorted(found, key=_order)), *_paths(space, output))
    check_findings(space, output)
    best = findings.best
    content = {
        "stream": space.stream,
        "seeds": list(space.seeds),
        "settings": dict(space.settings),
        "best": [_content(finding, chosen=True) for finding in best],
        "all": [_content(finding, chosen=finding in best) for finding in findings.all],
    }
    write_json(findings.json, content)
    write_text(findings.csv, _csv(findings.all, best))
    return findings


def _order(finding: Finding) -> tuple[Any, ...]:
    choice = finding.choice
    return (method_order(finding.method), choice.optimizer, choice.lr, choice.strength or 0.0)


def _content(finding: Finding, *, chosen: bool) -> dict[str, Any]:
    content: dict[str, Any] = {"method": finding.method, **asdict(finding.choice), "state": finding.state}
    if finding.why:
        content["why"] = finding.why
    if finding.validation:
        content["validation"] = _estimated(finding.validation)
    if chosen:
        content |= {"test": _estimated(finding.test), "runs": list(finding.runs)}
    return content


def _estimated(values: Sequence[float]) -> dict[str, Any]:
    return {**asdict(Estimate.of(values)), "values": list(values)}


def _csv(found: Sequence[Finding], best: Sequence[Finding]) -> str:
    text = io.StringIO()
    rows = csv.DictWriter(text, fieldnames=_COLUMNS, lineterminator="\n")
    rows.writeheader()
    for finding in found:
        row: dict[str, Any] = {"method": finding.method, **asdict(finding.choice)}
        row |= {"state": finding.state, "why": finding.why, "seeds": len(finding.validation), "best": finding in best}
        row |= _columns("validation", finding.validation) | _columns("test", finding.test if finding in best else ())
        rows.writerow(row)
    return text.getvalue()


def _columns(name: str, values: Sequence[float]) -> dict[str, Any]:
    if not values:
        return {}
    estimate = Estimate.of(values)
    return {name: estimate.mean, f"{name}_half_width": estimate.half_width}


_COLUMNS = (
    *("method", "optimizer", "lr", "strength", "state", "why", "seeds", "best"),
    *("validation", "validation_half_width", "test", "test_half_width"),
)
