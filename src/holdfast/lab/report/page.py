"""The report as one page of HTML that needs nothing but itself."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from holdfast.lab.groups import RunGroup, setting_text
from holdfast.lab.plots import seeds_told, task_ticks
from holdfast.lab.report.charts import (
    Plot,
    accuracy_plot,
    heat_paths,
    lane_scale,
    level_of,
    percent,
    strength_plot,
)
from holdfast.lab.report.comparisons import LEVEL, Comparison
from holdfast.lab.report.content import INTERVALS, LEGEND, Section, p_text
from holdfast.lab.report.looks import LINE_WIDTH, Look, heat_colours, look, marker_shapes
from holdfast.lab.report.markdown import own_settings, shared_settings
from holdfast.lab.report.pictures import TRANSFER, held_megabytes
from holdfast.lab.report.samples import SamplePicture, samples
from holdfast.lab.report.scales import Scale
from holdfast.lab.tables import COLUMNS, Estimate, ResultRow, best_row, result_row
from holdfast.version import __version__

MOST_NUMBERED = 12
"""With more tasks than this the cells of a heat map are too small for their numbers."""


@dataclass(frozen=True)
class SectionSeries:
    """A configuration as the pictures of a section show it."""

    key: str
    group: RunGroup
    look: Look

    @property
    def label(self) -> str:
        """Its name."""
        return self.group.label


@dataclass(frozen=True)
class Heat:
    """The accuracy matrix of a series: mean over seeds, the levels of its cells, or paths where it has many."""

    series: SectionSeries
    final: str
    matrix: list[list[float]]
    levels: list[list[int]]
    paths: dict[int, str]


@dataclass(frozen=True)
class Lane:
    """An estimate on a line of its own; places in per cent from the left."""

    series: SectionSeries
    mean: float
    low: float
    high: float
    text: str


@dataclass(frozen=True)
class Panel:
    """Lanes on one scale; `zero` is where its zero stands, None where it has none."""

    name: str
    zero: float | None
    lanes: list[Lane]


@dataclass(frozen=True)
class View:
    """Everything that the page shows of a section."""

    section: Section
    key: str
    series: list[SectionSeries]
    lead: str
    seeds: str
    seeds_of_mean: str
    is_chosen: bool
    accuracy: Plot
    strength: Plot | None
    heats: list[Heat]
    heat_ticks: list[int]
    transfer: list[Panel]
    costs: list[Panel]
    pairs: dict[tuple[str, str], Comparison]
    shared: list[tuple[str, str]]
    own: list[str]
    winner: ResultRow | None
    samples: list[SamplePicture]
    samples_left_out: int


def html_page(sections: Sequence[Section], *, places: Mapping[int, Path], pictures: Sequence[str]) -> str:
    """The whole page.

    Args:
        sections: what it is about.
        places: `id` of a result -> the file it was read from, beside which a run's own pictures stand.
        pictures: names of the files beside the page.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["minus"] = lambda text: str(text).replace("-", "−")
    environment.globals.update(contents_of=contents_of, percent=percent, p_text=p_text, setting_text=setting_text)
    views = [_view(number, section, places) for number, section in enumerate(sections)]
    markers = marker_shapes(each.look.marker for view in views for each in view.series)
    results = [result for section in sections for group in section.groups for result in group.results]
    environment.globals.update(markers=markers, heat_colours=heat_colours())
    script = environment.get_template("page.js").render()
    styles = environment.get_template("styles.css").render(views=views)
    return environment.get_template("page.html").render(
        views=views,
        script=script,
        styles=styles,
        script_hash=content_hash(script),
        styles_hash=content_hash(styles),
        columns=COLUMNS,
        intervals=INTERVALS,
        legend=LEGEND,
        line_width=LINE_WIDTH,
        level=LEVEL,
        num_runs=len(results),
        pictures=pictures,
        version=__version__,
    )


def content_hash(content: str) -> str:
    """What a Content-Security-Policy names an element by that stands in the page, the text between its tags."""
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"


def _view(number: int, section: Section, places: Mapping[int, Path]) -> View:
    shown = section.shown
    series = [SectionSeries(f"{number}-{k}", group, look(group)) for k, group in enumerate(shown)]
    rows = [result_row(group) for group in shown]
    key_of = {id(group): each.key for group, each in zip(shown, series)}
    pairs = {(key_of[id(each.first)], key_of[id(each.second)]): each for each in section.comparisons}
    found, left_out = samples(shown, places)
    most = max(group.num_tasks for group in shown)
    return View(
        section=section,
        key=f"section-{number}",
        series=series,
        lead=_lead(rows, most),
        seeds=seeds_told(shown),
        seeds_of_mean=seeds_told(shown, interval=False),
        is_chosen=len(shown) < len(section.groups),
        accuracy=accuracy_plot(section),
        strength=strength_plot(section),
        heats=[_heat(each) for each in series],
        heat_ticks=task_ticks(most),
        transfer=[
            _panel(name, series, [getattr(row, field) for row in rows], from_zero=field != "learning_accuracy")
            for field, name in TRANSFER
        ],
        costs=_costs(series, rows),
        pairs=pairs,
        shared=[
            (name.replace("_", " "), setting_text(name, value).removeprefix(name.replace("_", " ")).strip())
            for name, value in shared_settings(section.groups)
        ],
        own=own_settings(section.groups),
        winner=best_row(section.rows),
        samples=found,
        samples_left_out=left_out,
    )


def _lead(rows: Sequence[ResultRow], num_tasks: int) -> str:
    """The outcome in a sentence."""
    told = {row.method: percent(row.accuracy) for row in rows}
    after = f"After {num_tasks} task{'s' * (num_tasks != 1)}"
    winner = best_row([row for row in rows if row.method not in ("joint", "cumulative")])
    if winner is None:
        return f"{after}: " + "; ".join(f"{row.label} {percent(row.accuracy)}" for row in rows) + "."
    parts = [
        f"{after} {winner.label} keeps {percent(winner.accuracy)} on average, the most of those that learn in turn"
    ]
    if "none" in told and winner.method != "none":
        parts.append(f"plain training keeps {told['none']}")
    if "joint" in told:
        parts.append(f"joint training, which sees all data at once, reaches {told['joint']}")
    return "; ".join(parts) + "."


def _heat(series: SectionSeries) -> Heat:
    matrix = np.mean([result.accuracy_matrix for result in series.group.results], axis=0)
    numbered = len(matrix) <= MOST_NUMBERED
    return Heat(
        series=series,
        final=percent(Estimate(float(matrix[-1].mean()))),
        matrix=matrix.tolist(),
        levels=[[level_of(value) for value in row] for row in matrix] if numbered else [],
        paths={} if numbered else heat_paths(matrix.tolist()),
    )


def _panel(name: str, series: Sequence[SectionSeries], estimates: Sequence[Estimate], *, from_zero: bool) -> Panel:
    """Accuracies in points, with their intervals."""
    axis = lane_scale(estimates, from_zero=from_zero)
    lanes = []
    for each, estimate in zip(series, estimates):
        mean, half = estimate.mean, estimate.half_width or 0.0
        places = (axis.at(mean), axis.at(mean - half), axis.at(mean + half))
        lanes.append(Lane(each, *places, estimate.text(scale=100).replace("-", "−")))
    return Panel(name, axis.at(0.0) if from_zero else None, lanes)


def _costs(series: Sequence[SectionSeries], rows: Sequence[ResultRow]) -> list[Panel]:
    """Seconds of training and of importances, and megabytes where the runs recorded them."""
    training = [(each, row.seconds_training.mean, row.seconds_training.text()) for each, row in zip(series, rows)]
    importance = [(each, row.seconds_importance.mean, row.seconds_importance.text()) for each, row in zip(series, rows)]
    held = [(each, held_megabytes(row), _held_text(row)) for each, row in zip(series, rows) if row.held_bytes]
    named = {"training, seconds": training, "measuring importances, seconds": importance, "held, MB": held}
    return [_bars(name, bars) for name, bars in named.items() if bars]


def _bars(name: str, bars: Sequence[tuple[SectionSeries, float, str]]) -> Panel:
    axis = Scale(0.0, max(value for _, value, _ in bars) or 1.0)
    return Panel(name, 0.0, [Lane(each, axis.at(value), 0.0, axis.at(value), text) for each, value, text in bars])


def _held_text(row: ResultRow) -> str:
    """Megabytes, and how many copies of the weights that is."""
    megabytes = held_megabytes(row)
    told = f"{megabytes:.2f}" if megabytes < 10 else f"{megabytes:.0f}"
    return f"{told} ({megabytes * 1e6 / (4 * row.num_parameters):.1f}×)" if row.num_parameters else told


def contents_of(view: View) -> dict[str, str]:
    """What the table of contents lists of a section: the id of each part, and its title."""
    parts = {
        "accuracy": "Average accuracy",
        "figures": "Figures",
        "matrix": "Task by task",
        "transfer": "Forgetting and transfer",
        "strength": "Strength" if view.strength else "",
        "cost": "Time and memory",
        "pairs": "Paired comparisons",
        "samples": "Samples" if view.samples else "",
        "settings": "Configurations and versions",
    }
    return {f"{view.key}-{name}": title for name, title in parts.items() if title}
