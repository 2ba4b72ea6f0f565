"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.table import Table
from rich.text import Text

from holdfast.lab.frame import DataFrame
from holdfast.lab.kinds import KINDS, named_by
from holdfast.lab.result import RunResult
from holdfast.lab.sweep.findings import SweepFindings
from holdfast.lab.tables import COLUMNS, Estimate, best_label, title_of

MOST_TASKS = 12
"""With more tasks than this a row of the accuracy matrix no longer fits a terminal."""


def matrix_table(result: RunResult, *, title: str) -> Table:
    """The accuracy on every task learned so far, after every task, and their average."""
    count = len(result.accuracy_matrix)
    shown = range(count) if count <= MOST_TASKS else ()
    table = new_table(title)
    table.add_column("after task", justify="right")
    for j in shown:
        table.add_column(f"{j + 1}", justify="right")
    table.add_column("average", justify="right", style="bold")
    for t, row in enumerate(result.accuracy_matrix):
        learned = [f"{100 * row[j]:.1f}" if j <= t else "" for j in shown]
        table.add_row(f"{t + 1}", *learned, f"{100 * result.average_accuracy[t]:.1f}")
    return table


def summary_table(result: RunResult) -> Table:
    """The figures of one run."""
    told = {
        "average accuracy": f"{result.final_accuracy:.1%} on test data, {result.validation_accuracy[-1]:.1%} on "
        "validation data",
        "forgetting": f"{result.forgetting:.1%}",
        "backward transfer": f"{result.backward_transfer:.1%}",
        "learning accuracy": f"{result.learning_accuracy:.1%}",
        "time": f"{result.seconds:.1f} s: {result.seconds_training:.1f} s training, "
        f"{result.seconds_importance:.1f} s measuring importances",
        "keeper": result.keeper,
    }
    return _told_in_rows({name: text for name, text in told.items() if text})


def generation_table(result: RunResult) -> Table:
    """The figures of one run that learned to draw."""
    accuracies, found = result.average_accuracy, result.generation
    shown = [t for t in (4, len(accuracies) - 1) if t < len(accuracies)]
    told = {f"A{t + 1}": f"{accuracies[t]:.2%} of the images asked for are what was asked for" for t in shown}
    told |= {
        "reverse accuracy": f"{found['reverse_accuracy']:.2%} on real images, by a classifier of drawn ones",
        "Fréchet distance": f"{found['frechet_distance'][-1]:.2f} over the judge's features",
        "the judge": f"{found['judge_accuracy']:.2%} on real test images",
        "time": f"{result.seconds:.1f} s: {result.seconds_training:.1f} s training",
    }
    return _told_in_rows(told)


def _told_in_rows(told: Mapping[str, str]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column()
    for name, text in told.items():
        table.add_row(name, Text(text))
    return table


def rows_table(rows: DataFrame, *, title: str = "", seeds: bool = True) -> Table:
    """The figures of many runs that fit a terminal, a line a configuration; the best accuracy is bold."""
    winner = best_label(rows)
    table = new_table(f"{title or title_of(rows)} (accuracies in %)")
    table.add_column("method", min_width=20)
    shown = [column for column in COLUMNS if column.short]
    for column in shown:
        table.add_column(column.short, justify="right", no_wrap=True)
    if seeds:
        table.add_column("seeds", justify="right")
    for row in rows.to_dict("records"):
        cells = [*(column.text(row) for column in shown), *([str(row["seeds"])] * seeds)]
        table.add_row(row["configuration"], *cells, style="bold" if row["configuration"] == winner else None)
    return table


def findings_table(findings: SweepFindings) -> Table:
    """The best setting of each method, chosen on validation data, and its test accuracy beside it."""
    seeds = len(findings.space.seeds)
    table = new_table(f"{findings.space.stream}, best on validation data over {seeds} seed{'s' * (seeds != 1)} (%)")
    for title in ("method", "setting", "validation", "test", "settings tried"):
        table.add_column(title, justify="left" if title in ("method", "setting") else "right")
    for found in findings.best:
        figures = (Estimate.of(values).text(scale=100) for values in (found.validation, found.test))
        table.add_row(found.label, found.choice.text, *figures, _tried(findings, found.method))
    for found in findings.given_up:
        table.add_row(found.label, f"none, all given up: {found.why}", "", "", _tried(findings, found.method))
    return table


def _tried(findings: SweepFindings, method: str) -> str:
    """How many settings of a method, and how many were given up."""
    states = [finding.state for finding in findings.all if finding.method == method]
    given_up = states.count("pruned")
    return f"{len(states)}" + (f", {given_up} given up" if given_up else "")


def names_tables() -> list[Table]:
    """Every stream and every method, with what it is."""
    streams = new_table("streams")
    for title in ("STREAM", "tasks", "scenario", ""):
        streams.add_column(title, justify="right" if title == "tasks" else "left")
    found = [streams]
    for kind in KINDS:
        for name, spec in named_by(kind, "stream").items():
            streams.add_row(name, str(spec.num_tasks or "all"), spec.scenario, spec.summary)
        methods = named_by(kind, "method")
        found.append(new_table(methods.kind.replace("method", "methods")))
        found[-1].add_column("METHOD")
        found[-1].add_column("")
        for name, method in methods.items():
            found[-1].add_row(name, method.summary)
    return found


def new_table(title: str) -> Table:
    """An empty table in the style of all."""
    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
