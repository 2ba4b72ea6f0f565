"""The geometry of the page's pictures, in per cent of their areas: they stretch to any width, their text does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from holdfast.lab.groups import RunGroup, method_label
from holdfast.lab.plots import by_task, limits, spread, task_ticks
from holdfast.lab.report.content import Section
from holdfast.lab.report.families import strength_of
from holdfast.lab.report.looks import NUM_LEVELS
from holdfast.lab.report.scales import Scale, StrengthScale, Tick, accuracy_ticks
from holdfast.lab.tables import Estimate

NAME_PIXELS = 20
"""The height of a line of text beside a picture."""

LONGEST_BESIDE = 30
"""Names of more letters than this stand below the picture in place of beside it."""


@dataclass(frozen=True)
class Mark:
    """A point of a curve.

    Attributes:
        x: from the left.
        y: from the top.
        title: what is said when it is pointed at.
        is_best: whether validation data chooses it.
        top: where its 95% interval ends, if it is to be drawn by itself.
        bottom: likewise.
    """

    x: float
    y: float
    title: str
    is_best: bool = False
    top: float | None = None
    bottom: float | None = None


@dataclass(frozen=True)
class Curve:
    """A line of a picture.

    Attributes:
        series: which of the section's configurations it is.
        label: its name.
        value: what stands behind the name.
        line: SVG path.
        band: SVG path of the 95% intervals; empty without any.
        marks: its points.
        last: where it ends, from the left.
        end: where it ends, from the top.
        name_at: where its name stands, from the top.
    """

    series: int
    label: str
    value: str
    line: str
    band: str
    marks: tuple[Mark, ...]
    last: float
    end: float
    name_at: float


@dataclass(frozen=True)
class Plot:
    """Curves on their axes.

    Attributes:
        curves: from the first to the last.
        x_label: what runs to the right.
        y_label: what runs up.
        x_ticks: along the bottom.
        y_ticks: along the left.
        height: of the area, in pixels.
        beside: whether the names stand beside the ends of the curves.
    """

    curves: tuple[Curve, ...]
    x_label: str
    y_label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    height: int
    beside: bool


@dataclass(frozen=True)
class CurvePoint:
    """A value of a curve, as it is measured."""

    x: float
    estimate: Estimate
    title: str
    is_best: bool = False


def accuracy_plot(section: Section) -> Plot:
    """Average accuracy on the tasks so far against their number."""
    most = max(group.num_tasks for group in section.shown)
    across = Scale(1, most)
    lines = []
    for group in section.shown:
        estimates = [Estimate.of(values) for values in by_task(group)]
        points = [
            CurvePoint(across.at(t), estimate, f"{group.label}, {t} task{'s' * (t > 1)}: {percent(estimate)}")
            for t, estimate in enumerate(estimates, 1)
        ]
        lines.append((group.label, points))
    ticks = [Tick(across.at(task), str(task)) for task in task_ticks(most)]
    return _plot(lines, "tasks learned", ticks)


def strength_plot(section: Section) -> Plot | None:
    """Average accuracy after the last task against the strength; None where no family has several.

    What has no strength, the ceiling and the floor, is a level line.
    """
    searched = list(map(id, section.searched))
    if not searched:
        return None
    strengths = [strength_of(group) for family in section.searched for group in family.by_strength]
    scale = StrengthScale([strength for strength in strengths if strength is not None])
    lines = []
    for family in section.families:
        if id(family) in searched:
            members = [(group, scale.at(strength_of(group) or 0.0)) for group in family.by_strength]
            chosen = family.best.settings
            lines.append((family.label, [_at_strength(g, x, g.settings == chosen) for g, x in members]))
        elif family.has_no_hold:
            estimate = final(family.best)
            title = f"{family.label}: {percent(estimate)}"
            lines.append((family.label, [CurvePoint(x, Estimate(estimate.mean), title) for x in (0.0, 100.0)]))
        else:
            lines.append((family.label, []))
    return _plot(lines, "strength (logarithmic)", scale.ticks(), of_last_task=True)


def final(group: RunGroup) -> Estimate:
    """Average accuracy after the last task."""
    return Estimate.of([result.final_accuracy for result in group.results])


def percent(estimate: Estimate) -> str:
    """A fraction as people read it, on one line."""
    return estimate.text(scale=100).replace("-", "−").replace(" ", "\u00a0") + "%"


def level_of(value: float) -> int:
    """The number of a heat map's colour for a fraction."""
    return round(min(max(value, 0.0), 1.0) * (NUM_LEVELS - 1))


def heat_paths(matrix: Sequence[Sequence[float]]) -> dict[int, str]:
    """The learned half of an accuracy matrix as one SVG path a colour, in units of a cell."""
    found: dict[int, list[str]] = {}
    for t, row in enumerate(matrix):
        for j, value in enumerate(row[: t + 1]):
            found.setdefault(level_of(value), []).append(f"M{j} {t}h1v1h-1z")
    return {level: "".join(parts) for level, parts in sorted(found.items())}


def _at_strength(group: RunGroup, x: float, is_best: bool) -> CurvePoint:
    estimate, validation = final(group), Estimate.of([result.validation_accuracy[-1] for result in group.results])
    told = f"{method_label(group.method)}, strength {strength_of(group):g}: {percent(estimate)}"
    told += f"; {percent(validation)} on validation data" + ", the best" * is_best
    return CurvePoint(x, estimate, told, is_best)


def _plot(
    lines: Sequence[tuple[str, list[CurvePoint]]], x_label: str, x_ticks: Sequence[Tick], *, of_last_task: bool = False
) -> Plot:
    reach = [value for _, points in lines for point in points for value in _reach(point.estimate)]
    up = Scale(*limits(reach))
    drawn = [(series, label, points) for series, (label, points) in enumerate(lines) if points]
    height = max(320, NAME_PIXELS * len(drawn))
    values = [max(points, key=lambda p: p.is_best) if of_last_task else points[-1] for _, _, points in drawn]
    ends = [100 - up.at(points[-1].estimate.mean) for _, _, points in drawn]
    curves = []
    for (series, label, points), value, end, name_at in zip(drawn, values, ends, _names_at(ends, height)):
        places = [(point.x, 100 - up.at(point.estimate.mean)) for point in points]
        curves.append(
            Curve(
                series=series,
                label=label,
                value=percent(Estimate(value.estimate.mean)),
                line="M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in places),
                band="" if of_last_task else _band(points, up),
                marks=tuple(_mark(point, up, interval=of_last_task) for point in points),
                last=points[-1].x,
                end=end,
                name_at=name_at,
            )
        )
    return Plot(
        curves=tuple(curves),
        x_label=x_label,
        y_label="average accuracy after the last task" if of_last_task else "average accuracy on the tasks so far",
        x_ticks=tuple(x_ticks),
        y_ticks=tuple(accuracy_ticks(up)),
        height=height,
        beside=max(len(curve.label) for curve in curves) <= LONGEST_BESIDE,
    )


def _mark(point: CurvePoint, up: Scale, *, interval: bool) -> Mark:
    mean, half = point.estimate.mean, point.estimate.half_width
    if half is None or not interval:
        return Mark(point.x, 100 - up.at(mean), point.title, point.is_best)
    top, bottom = (100 - up.at(min(max(value, up.low), up.high)) for value in (mean + half, mean - half))
    return Mark(point.x, 100 - up.at(mean), point.title, point.is_best, top, bottom)


def _names_at(ends: Sequence[float], height: int) -> list[float]:
    """Where names stand so that none covers another, moved into the area as far as may be."""
    gap = 100 * NAME_PIXELS / height
    places = spread(ends, gap)
    shift = min(0.0, 100 - max(places)) or max(0.0, -min(places))
    return [place + shift for place in places]


def _band(points: Sequence[CurvePoint], up: Scale) -> str:
    known = [(point.x, point.estimate.mean, point.estimate.half_width) for point in points]
    ranges = [(x, mean - half, mean + half) for x, mean, half in known if half is not None]
    if len(ranges) < 2:
        return ""
    top = [f"{x:.2f} {100 - up.at(min(high, up.high)):.2f}" for x, _, high in ranges]
    bottom = [f"{x:.2f} {100 - up.at(max(low, up.low)):.2f}" for x, low, _ in reversed(ranges)]
    return "M" + "L".join([*top, *bottom]) + "Z"


def _reach(estimate: Estimate) -> tuple[float, ...]:
    """What an axis has to hold of it: an interval as wide as two or three seeds make it is cut off."""
    half = min(estimate.half_width or 0.0, 0.03)
    return max(0.0, estimate.mean - half), min(1.0, estimate.mean + half)


def lane_scale(estimates: Sequence[Estimate], *, from_zero: bool = True) -> Scale:
    """An axis that holds every estimate with its interval, and zero where it has to."""
    zero = [0.0] * from_zero
    low = min([*zero, *(estimate.mean - (estimate.half_width or 0.0) for estimate in estimates)])
    high = max([*zero, *(estimate.mean + (estimate.half_width or 0.0) for estimate in estimates)])
    return Scale(low, high)
