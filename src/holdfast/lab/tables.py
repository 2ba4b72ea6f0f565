"""From runs to rows of figures, and from rows to Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from holdfast.lab.escaping import markdown_text
from holdfast.lab.groups import RunGroup, group_results
from holdfast.lab.metrics import confidence_interval
from holdfast.lab.results import RunResult


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
class ResultRow:
    """What the runs of one configuration found, over their seeds.

    Attributes:
        stream: name of the stream.
        scenario: "task", "domain" or "class".
        method: name of the method.
        label: what tables call it; see `RunGroup`.
        num_seeds: how many runs the estimates are of.
        accuracy: average test accuracy after the last task, a fraction.
        validation: the same on validation data.
        forgetting: mean over earlier tasks of the best accuracy ever minus the last, a fraction.
        backward_transfer: mean over earlier tasks of the last accuracy minus that just after learning, a fraction.
        forward_transfer: mean over later tasks of the accuracy before learning minus the untrained one's, a fraction.
        learning_accuracy: mean accuracy on each task just after learning it, a fraction.
        seconds_training: in training steps.
        seconds_importance: measuring importances.
        held_bytes: of what the method keeps beside model and optimizer; None where a run did not record it.
        num_parameters: weights of the model; None likewise.
    """

    stream: str
    scenario: str
    method: str
    label: str
    num_seeds: int
    accuracy: Estimate
    validation: Estimate
    forgetting: Estimate
    backward_transfer: Estimate
    forward_transfer: Estimate
    learning_accuracy: Estimate
    seconds_training: Estimate
    seconds_importance: Estimate
    held_bytes: Estimate | None = None
    num_parameters: int | None = None


@dataclass(frozen=True)
class Column:
    """A column of a table of rows.

    Attributes:
        title: with its unit.
        short: where room is scarce; empty for what is then left out.
        field: of `ResultRow`.
        scale: 100 turns a fraction into per cent.
        digits: behind the point.
    """

    title: str
    short: str
    field: str
    scale: float = 100.0
    digits: int = 1

    def text(self, row: ResultRow, *, interval: bool = True) -> str:
        """The cell of a row, with or without the half width of its interval."""
        estimate: Estimate | None = getattr(row, self.field)
        if estimate is None:
            return "–"
        told = estimate if interval else Estimate(estimate.mean)
        return told.text(scale=self.scale, digits=self.digits)


COLUMNS = (
    Column("accuracy %", "accuracy", "accuracy"),
    Column("validation %", "valid.", "validation"),
    Column("forgetting %", "forget.", "forgetting"),
    Column("backward transfer %", "", "backward_transfer"),
    Column("forward transfer %", "", "forward_transfer"),
    Column("learning accuracy %", "learning", "learning_accuracy"),
    Column("training s", "train s", "seconds_training", 1.0),
    Column("importance s", "imp. s", "seconds_importance", 1.0),
    Column("held MB", "", "held_bytes", 1e-6),
)
"""What is shown of a row, in order, behind its label."""


def result_rows(results: Iterable[RunResult]) -> list[ResultRow]:
    """One row a configuration, in the order of `group_results`: from the ceiling, joint, to the floor, none."""
    return [result_row(group) for group in group_results(results)]


def result_row(group: RunGroup) -> ResultRow:
    """The figures of one group."""

    def over_seeds(field: str) -> Estimate:
        return Estimate.of([getattr(result, field) for result in group.results])

    held = [result.held_bytes for result in group.results if result.held_bytes is not None]
    return ResultRow(
        stream=group.stream,
        scenario=group.scenario,
        method=group.method,
        label=group.label,
        num_seeds=len(group.results),
        accuracy=over_seeds("final_accuracy"),
        validation=Estimate.of([result.validation_accuracy[-1] for result in group.results]),
        forgetting=over_seeds("forgetting"),
        backward_transfer=over_seeds("backward_transfer"),
        forward_transfer=over_seeds("forward_transfer"),
        learning_accuracy=over_seeds("learning_accuracy"),
        seconds_training=over_seeds("seconds_training"),
        seconds_importance=over_seeds("seconds_importance"),
        held_bytes=Estimate.of(held) if len(held) == len(group.results) else None,
        num_parameters=group.results[0].num_parameters,
    )


def best_row(found: Sequence[ResultRow]) -> ResultRow | None:
    """The row of highest mean test accuracy among those that learn one task after the other; None without any.

    Joint training, which sees all data at once, is out of the contest. This is for emphasis, never for choosing
    settings: those are chosen on validation data.
    """
    contest = [row for row in found if row.method != "joint"]
    return max(contest, key=lambda row: row.accuracy.mean, default=None) if len(contest) > 1 else None


def markdown(found: Sequence[ResultRow]) -> str:
    """A Markdown table of rows that can be compared; the best accuracy stands in bold."""
    winner = best_row(found)
    lines = [
        "| method | " + " | ".join(column.title for column in COLUMNS) + " | seeds |",
        "|:--|" + "--:|" * (len(COLUMNS) + 1),
    ]
    for row in found:
        cells = [column.text(row) for column in COLUMNS]
        if row is winner:
            cells[0] = f"**{cells[0]}**"
        lines.append(f"| {markdown_text(row.label)} | " + " | ".join(cells) + f" | {row.num_seeds} |")
    return "\n".join(lines) + "\n"
