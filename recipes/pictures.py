"""Pictures of published experiments: our figures beside theirs, and accuracy against what was varied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from holdfast.lab.canvas import FONT, GRID, INK, MUTED, axes_at, new_figure, write_picture
from holdfast.lab.tables import Estimate
from recipes.findings import Answer, final

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# the hues of Okabe and Ito, darkened until text in them reads well on white, and black
COLOURS = ("#0068a8", "#c94f00", "#008361", "#b0438f", "#a67600", "#5b3fb0", "#222222")
MARKERS = "os^Dv<P"


@dataclass(frozen=True)
class Series:
    """A line of a picture.

    Attributes:
        label: at its end.
        places: where on the horizontal axis.
        values: there; None where training diverged.
        dashed: whether the line is.
    """

    label: str
    places: Sequence[float]
    values: Sequence[Estimate | None]
    dashed: bool = False


def beside(answers: Sequence[Answer], path: Path, *, title: str, remark: str = "") -> Path:
    """Draw our accuracies with their intervals beside those of others: a line of the page a row.

    Args:
        answers: the rows; those of one section stand together.
        path: of the PNG.
        title: in bold above it.
        remark: under the title.
    """
    shown = [answer for answer in answers if answer.outcomes]
    rows: list[Answer | str] = []
    for answer in shown:
        if answer.line.section and answer.line.section not in rows:
            rows.append(answer.line.section)
        rows.append(answer)
    figure, axes, left, height = _in_rows(len(rows), [answer.line.label for answer in shown])
    for place, row in enumerate(rows):
        if isinstance(row, str):
            axes.text(-0.02, place, row, transform=_across(axes), ha="right", va="center", fontsize=FONT, color=MUTED)
        else:
            _draw_row(axes, row, place)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    theirs = {answer.line.reference.title: None for answer in shown if answer.line.reference is not None}
    told = remark or "   ".join(["● mean and 95% interval over seeds", *(f"◇ {title}" for title in theirs)])
    head(figure, left, height + 0.55, title, told)
    return write_picture(figure, path)


def dots(rows: Mapping[str, Estimate], path: Path, *, title: str) -> Path:
    """Draw accuracies with their intervals, a label a row.

    Args:
        rows: by label.
        path: of the PNG.
        title: in bold above it.
    """
    figure, axes, left, height = _in_rows(len(rows), list(rows))
    for place, (label, value) in enumerate(rows.items()):
        axes.text(-0.02, place, label, transform=_across(axes), ha="right", va="center", fontsize=FONT)
        _draw_value(axes, value, place)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    head(figure, left, height + 0.55, title, "● mean and 95% interval over seeds")
    return write_picture(figure, path)


def _in_rows(count: int, labels: Sequence[str]) -> tuple[Figure, Axes, float, float]:
    """A figure with room for so many rows and their labels; its axes, the left end of these, and their height."""
    left = 0.35 + 0.072 * max([len(label) for label in labels] + [8])
    height, width = 0.24 * count + 0.15, 4.6
    figure = new_figure(left + width + 1.35, height + 1.25)
    axes = axes_at(figure, left, 0.55, width, height)
    axes.set_yticks([])
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    bare(axes, ("bottom",))
    axes.set_xlabel("average test accuracy after the last task", fontsize=FONT, color=INK)
    return figure, axes, left, height


def curves(
    series: Sequence[Series],
    path: Path,
    *,
    title: str,
    remark: str,
    across: str,
    up: str = "average test accuracy",
    logarithmic: bool = False,
    colours: Mapping[str, int] | None = None,
    shares: bool = True,
) -> Path:
    """Draw lines with the band of their 95% intervals; a cross at the bottom where training diverged.

    Args:
        series: the lines.
        path: of the PNG.
        title: in bold above it.
        remark: under the title.
        across: name of the horizontal axis.
        up: name of the vertical one.
        logarithmic: whether the horizontal axis is.
        colours: label -> number of the colour and marker; left out: one after the other.
        shares: whether the values are shares, which are shown in per cent.
    """
    width, height = 4.8, 3.2
    figure = new_figure(0.8 + width + 0.75 + 0.075 * max(len(line.label) for line in series), height + 1.25)
    axes = axes_at(figure, 0.8, 0.6, width, height)
    known = [value for line in series for value in line.values if value is not None]
    ends = [value.mean + sign * (value.half_width or 0.0) for value in known for sign in (-1, 1)]
    low = max(0.0, np.floor(20 * min(ends) - 0.4) / 20) if ends else 0.0
    high = np.ceil(20 * max(ends)) / 20 if ends else 1.0
    top = 1.0 if shares else np.inf
    high = min(top, high)
    for number, line in enumerate(series):
        _draw_series(axes, line, (colours or {}).get(line.label, number), floor=low, top=top)
    axes.set_ylim(low - 0.015 * (high - low), max(high, low + 0.05))
    if logarithmic:
        axes.set_xscale("log")
        _few_ticks(axes.xaxis)
    if shares:
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    bare(axes, ("left", "bottom"))
    axes.set_xlabel(across, fontsize=FONT, color=INK)
    axes.set_ylabel(up, fontsize=FONT, color=INK)
    axes.legend(
        loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=FONT, labelcolor=INK, handlelength=2.2
    )
    head(figure, 0.8, height + 0.6, title, remark)
    return write_picture(figure, path)


def correlations(
    matrices: Mapping[str, np.ndarray], names: Sequence[str], path: Path, *, title: str, remark: str
) -> Path:
    """Draw matrices of rank correlations side by side, on the scale from 0 to 1.

    Args:
        matrices: layer -> [N, N].
        names: of rows and columns.
        path: of the PNG.
        title: in bold above it.
        remark: under the title.
    """
    side, gap, left = 0.42 * len(names), 0.25, 1.15
    figure = new_figure(left + len(matrices) * (side + gap) + 0.1, side + 1.9)
    for number, (layer, matrix) in enumerate(matrices.items()):
        axes = axes_at(figure, left + number * (side + gap), 0.85, side, side)
        axes.imshow(matrix, cmap="YlGnBu", vmin=0, vmax=1)
        for (row, column), value in np.ndenumerate(matrix):
            ink = "white" if value > 0.55 else INK
            told = f"{value:.2f}".replace("0.", ".").removesuffix(".00")
            axes.text(column, row, told, ha="center", va="center", fontsize=FONT - 2, color=ink)
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names if number == 0 else [""] * len(names))
        axes.set_title(layer, fontsize=FONT, color=INK, loc="left", pad=4)
        bare(axes, ())
    head(figure, left, side + 1.1, title, remark)
    return write_picture(figure, path)


def strip(
    rows: Mapping[str, Sequence[float]],
    path: Path,
    *,
    title: str,
    remark: str,
    across: str,
    limits: Sequence[float],
) -> Path:
    """Draw every value as a dot in its row, on an axis from 0, with a line at each limit, the first of them solid.

    Args:
        rows: label -> the values, spread a little upward and downward in their order.
        path: of the PNG.
        title: in bold above it.
        remark: under the title.
        across: name of the axis.
        limits: where the lines are.
    """
    left, width, height = 0.35 + 0.072 * max(map(len, rows)), 4.6, 0.26 * len(rows) + 0.15
    figure = new_figure(left + width + 0.3, height + 1.25)
    axes = axes_at(figure, left, 0.55, width, height)
    for place, (label, values) in enumerate(rows.items()):
        axes.text(-0.02, place, label, transform=_across(axes), ha="right", va="center", fontsize=FONT, color=INK)
        heights = place + np.linspace(-0.25, 0.25, len(values))
        axes.plot(values, heights, "o", markersize=3.6, color=COLOURS[0], alpha=0.7, markeredgewidth=0, clip_on=False)
    for number, limit in enumerate(limits):
        colour, style = (COLOURS[1], "--") if number else (INK, "-")
        axes.axvline(limit, color=colour, linewidth=1.0, linestyle=style, zorder=1)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(min(0.0, *map(min, rows.values())), 1.05 * max(*limits, *map(max, rows.values())))
    axes.set_yticks([])
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    bare(axes, ("bottom",))
    axes.set_xlabel(across, fontsize=FONT, color=INK)
    head(figure, left, height + 0.55, title, remark)
    return write_picture(figure, path)


def head(figure: Figure, left: float, top: float, title: str, remark: str) -> None:
    """A bold title and a muted remark above a place in inches."""
    across, up = figure.get_size_inches()
    figure.text(left / across, (top + 0.31) / up, title, fontsize=FONT + 2, color=INK, fontweight="bold")
    figure.text(left / across, (top + 0.12) / up, remark, fontsize=FONT, color=MUTED)


def bare(axes: Axes, spines: Sequence[str]) -> None:
    """Nothing around the axes but these spines."""
    for name, spine in axes.spines.items():
        spine.set_visible(name in spines)
        spine.set_color("#9a9a9a")
    axes.tick_params(labelsize=FONT - 1, colors=INK, length=3 if spines else 0, width=0.6, color="#9a9a9a")
    axes.set_axisbelow(True)


def _draw_row(axes: Axes, answer: Answer, place: int) -> None:
    reference = answer.line.reference
    axes.text(-0.02, place, answer.line.label, transform=_across(axes), ha="right", va="center", fontsize=FONT)
    if reference is not None:
        axes.plot(reference.figure, place, "D", markersize=6, markerfacecolor="none", markeredgecolor=COLOURS[1])
    _draw_value(axes, answer.of(final) if answer.results else None, place)


def _draw_value(axes: Axes, value: Estimate | None, place: int) -> None:
    told = "diverged"
    if value is not None:
        half = value.half_width or 0.0
        axes.plot([value.mean - half, min(1.0, value.mean + half)], [place, place], color=COLOURS[0], linewidth=1.6)
        axes.plot(value.mean, place, "o", markersize=4.5, color=COLOURS[0])
        told = value.text(scale=100)
    axes.text(1.02, place, told, transform=_across(axes), va="center", fontsize=FONT, color=INK)


def _few_ticks(axis: Any) -> None:
    """Numbers at powers of ten, and between them where there are few: matplotlib's own lie over each other."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    if high < 100 * low:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _draw_series(axes: Axes, line: Series, number: int, *, floor: float, top: float) -> None:
    alive = [(place, value) for place, value in zip(line.places, line.values) if value is not None]
    diverged = [place for place, value in zip(line.places, line.values) if value is None]
    colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
    look: dict[str, Any] = {
        "linestyle": "--" if line.dashed else "-",
        "color": colour,
        "marker": marker,
        "markeredgecolor": "white",
        "markeredgewidth": 0.6,
    }
    look["linestyle"] = "--" if line.dashed else "-"
    places, means = [place for place, _ in alive], np.array([value.mean for _, value in alive])
    axes.plot(places, means, linewidth=1.8, markersize=5, label=line.label, zorder=3, clip_on=False, **look)
    halves = np.array([value.half_width or 0.0 for _, value in alive])
    low, high = np.clip(means - halves, 0, top), np.clip(means + halves, 0, top)
    axes.fill_between(places, low, high, color=colour, alpha=0.13, linewidth=0)
    axes.plot(diverged, [floor] * len(diverged), "x", color=colour, markersize=6, clip_on=False)


def _across(axes: Axes) -> Any:
    """Shares of the width, rows in height."""
    return axes.get_yaxis_transform()
