"""From runs to the figures of their configurations, and from those to texts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from holdfast.lab.escaping import markdown_text, one_line
from holdfast.lab.frame import FIGURES, DataFrame, is_missing
from holdfast.lab.groups import group_results
from holdfast.lab.metrics import check_scipy, confidence_interval
from holdfast.lab.result import RunResult


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: of the values.
        half_width: of the 95% confidence interval; None for a single seed, which says nothing of the spread.
    """

    mean: float
    half_width: float | None = None

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """The estimate from one value a seed."""
        mean, half_width = confidence_interval(values)
        return cls(mean, half_width if math.isfinite(half_width) else None)

    def text(self, *, scale: float = 1.0, digits: int = 1) -> str:
        """As people read it, such as "88.3 ± 0.4"."""
        shown = f"{scale * self.mean:.{digits}f}"
        shown = shown.removeprefix("-") if float(shown) == 0 else shown
        return shown if self.half_width is None else f"{shown} ± {scale * self.half_width:.{digits}f}"


@dataclass(frozen=True)
class Column:
    """A column of a table of configurations.

    Attributes:
        title: with its unit.
        short: where room is scarce; empty for what is then left out.
        field: of the table that `configurations` returns.
        scale: 100 turns a fraction into per cent.
        digits: behind the point.
        is_cost: whether it is a cost, of which the mean suffices.
    """

    title: str
    short: str
    field: str
    scale: float = 100.0
    digits: int = 1
    is_cost: bool = False

    def text(self, row: Mapping[str, Any]) -> str:
        """The cell of a row; a cost without the half width of its interval."""
        mean, half = row[self.field], row[f"{self.field}_half_width"]
        if is_missing(mean):
            return "–"
        told = Estimate(mean, None if self.is_cost or is_missing(half) else half)
        return told.text(scale=self.scale, digits=self.digits)


COLUMNS = (
    Column("accuracy %", "accuracy", "accuracy"),
    Column("validation %", "valid.", "validation"),
    Column("forgetting %", "forget.", "forgetting"),
    Column("backward transfer %", "", "backward_transfer"),
    Column("forward transfer %", "", "forward_transfer"),
    Column("learning accuracy %", "learning", "learning_accuracy"),
    Column("training s", "train s", "seconds_training", 1.0, is_cost=True),
    Column("importance s", "imp. s", "seconds_importance", 1.0, is_cost=True),
    Column("held MB", "", "held_bytes", 1e-6, is_cost=True),
)
"""What is shown of a configuration, in order, behind its label."""


def configurations(runs: DataFrame) -> DataFrame:
    """What the runs of each configuration found, over their seeds.

    Args:
        runs: as `holdfast.lab.groups.labelled` has them.

    Returns:
        A row for each configuration, in the order of the runs: `stream`, `scenario`, `method`, `configuration`,
        `family`, `chosen`, `seeds`, which is how many, and of each of `FIGURES` the mean, and under its name with
        `_half_width` half the width of the 95% confidence interval by Student's t, which is missing for a single
        seed. A figure that not every run recorded is missing.

    Raises:
        OptionError: scipy is not installed, which several seeds need.
    """
    grouped = runs.groupby(["method", "variant"], sort=False)
    named = grouped[["stream", "scenario", "configuration", "family", "chosen"]].first()
    figures, seeds = grouped[list(FIGURES)], grouped.size()
    is_whole = figures.count().eq(seeds, axis=0)
    halves = figures.sem().astype(float)
    if seeds.max() > 1:
        check_scipy()
        from scipy import stats

        halves = halves.mul(stats.t.ppf(0.975, seeds - 1), axis=0)
    means = figures.mean().astype(float).where(is_whole)
    table = named.assign(seeds=seeds).join(means).join(halves.where(is_whole).add_suffix("_half_width"))
    return table.reset_index().drop(columns="variant")


def result_rows(found: Iterable[RunResult]) -> DataFrame:
    """The configurations of results, from the ceiling, joint, to the floor, none."""
    return configurations(group_results(found))


def title_of(runs: DataFrame) -> str:
    """What runs or configurations of one stream and scenario are called."""
    return f"{one_line(runs.iloc[0]['stream'])}, {one_line(runs.iloc[0]['scenario'])}-incremental"


def best_label(table: DataFrame) -> str | None:
    """The configuration of highest mean test accuracy among those that learn one task after the other; None without.

    Joint training, which sees all data at once, is out of the contest. This is for emphasis, never for choosing
    settings: those are chosen on validation data.
    """
    contest = table[table["method"] != "joint"]
    return str(contest.loc[contest["accuracy"].idxmax(), "configuration"]) if len(contest) > 1 else None


def markdown(table: DataFrame) -> str:
    """A Markdown table of configurations that can be compared; the best accuracy stands in bold."""
    winner = best_label(table)
    lines = [
        "| method | " + " | ".join(column.title for column in COLUMNS) + " | seeds |",
        "|:--|" + "--:|" * (len(COLUMNS) + 1),
    ]
    for row in table.to_dict("records"):
        cells = [column.text(row) for column in COLUMNS]
        if row["configuration"] == winner:
            cells[0] = f"**{cells[0]}**"
        lines.append(f"| {markdown_text(row['configuration'])} | " + " | ".join(cells) + f" | {row['seeds']} |")
    return "\n".join(lines) + "\n"
