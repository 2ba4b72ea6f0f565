"""The promise: what is said in nats is kept in nats, with nothing tuned."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import geometric_mean, mean
from typing import Any

import numpy as np

from holdfast.lab.tables import Estimate
from recipes.findings import Recipe, RecipeFindings, percent
from recipes.lessons import LessonSetting, Way, learn
from recipes.lines import Size
from recipes.networks import settings_of, texts_of
from recipes.pictures import Series, curves, strip

_TITLES = {"sgd": "SGD", "momentum": "momentum", "adam": "Adam"}

SHARE, USUAL, MOST, FORECAST = 0.95, 1.5, 3.0, 4.0
"""Asked for: this share of lessons below the usual ratio of increment to budget, and none above the most; without
probes none above the last."""
CLOSE = {"accuracy": 0.01, "perplexity": 0.02}
"""Asked for: the new task is learned at most so much worse than under the best fixed strength at the same rise; of a
perplexity this share."""


def promise(size: Size) -> Recipe:
    """The recipe for networks that see images."""
    return _recipe(
        size,
        settings_of(size),
        name="promise",
        title="What is said in nats is kept in nats",
        seconds=1500.0 if size.name == "full" else 25.0,
    )


def promise_texts(size: Size) -> Recipe:
    """The recipe for networks that read texts."""
    return _recipe(
        size,
        texts_of(size),
        name="promise-texts",
        title="What is said in nats, of texts",
        seconds=3000.0 if size.name == "full" else 300.0,
    )


def _recipe(size: Size, settings: Sequence[LessonSetting], *, name: str, title: str, seconds: float) -> Recipe:
    return Recipe(
        name=name,
        title=title,
        question="A keeper is given a budget, in nats by which a lesson may raise the loss of any earlier skill, and "
        "nothing is tuned. How much does a lesson cost earlier skills on examples that no probe saw, and what does "
        "that cost the new task?",
        source="this library; that Kronecker factors hold such tasks, under a strength that is tuned, is from Ritter "
        "et al. 2018, arXiv 1805.07810",
        claim="",
        size=size,
        parts={_name(s, way): partial(learn, s, way) for s in settings for way in s.ways},
        measure_seeds=size.num_seeds(3),
        measure_seconds=seconds,
        table=partial(_table, settings),
        conclude=partial(_conclude, settings),
        draw=partial(_draw, settings),
        notes=_notes(settings),
    )


def _notes(settings: Sequence[LessonSetting]) -> str:
    foreseen = (
        "Under a forecast there are no probes, and every step is bounded; a calibrated one was multiplied by the "
        "factor that `hf.calibrated` found under the same optimizer and budget, on the task's training and validation "
        "examples. "
    )
    if all(way.holding != "calibrated" for setting in settings for way in setting.ways):
        foreseen = ""
    return (
        f"{' '.join(map(_told, settings))} One optimizer learns all tasks of a network. Importances: "
        "`hf.measure` on the task's training examples, the same under budgets and fixed strengths, and pulls as rare "
        'as `every="auto"` has them; both hold statistics (batch norm\'s). Under a budget every other choice is the '
        "library's: rises are measured on up to 512 of the task's validation examples, and `close()` ends each lesson. "
        f"{foreseen}All figures are of test examples. Increment: the rise of the skill that lost most in a lesson, "
        "after `close()`, as KL of old to new answers; the mean is over lessons. New task: accuracy, or perplexity, "
        "at the end of its lesson, mean over all tasks but the first. Grid at the same rise: what fixed strengths "
        "reach of the new task where their mean increment is the same, interpolated between them in its logarithm; a "
        "dash where each of them loses more. 95% intervals are over seeds."
    )


def _told(setting: LessonSetting) -> str:
    rates = ", ".join(f"{_TITLES[name]} {rate:g}" for name, rate in setting.rates.items())
    return (
        f"{setting.name}: {setting.tasks}; {setting.epochs} epochs a task in batches of {setting.batch_size}; {rates}."
    )


# --- what the runs say


def _name(setting: LessonSetting, way: Way) -> str:
    return f"{setting.name}, {way}"


def _label(way: Way) -> str:
    return f"{_TITLES[way.optimizer]}, {way.held}"


def _runs(findings: RecipeFindings, setting: LessonSetting, way: Way) -> list[Mapping[str, Any]]:
    """Those that are done, one a seed."""
    name = _name(setting, way)
    return [entry[name] for entry in findings.measured.values() if name in entry]


def worst(run: Mapping[str, Any]) -> list[float]:
    """The increment of the skill that lost most, in each lesson after the first."""
    return [max(lesson["increments"]) for lesson in run["lessons"][1:]]


def _new(setting: LessonSetting, runs: Sequence[Mapping[str, Any]]) -> Estimate:
    return Estimate.of([_mean(setting, [lesson["new"] for lesson in run["lessons"][1:]]) for run in runs])


def _average(setting: LessonSetting, runs: Sequence[Mapping[str, Any]]) -> Estimate:
    return Estimate.of([_mean(setting, run[setting.judged]) for run in runs])


def _mean(setting: LessonSetting, values: Sequence[float]) -> float:
    return geometric_mean(values) if setting.judged == "perplexity" else mean(values)


def _merit(setting: LessonSetting, value: float) -> float:
    """What is the better the larger it is: an accuracy, or less the logarithm of a perplexity."""
    return -math.log(value) if setting.judged == "perplexity" else value


def _ratios(findings: RecipeFindings, setting: LessonSetting, way: Way) -> list[float]:
    """Of every lesson, increment over budget."""
    return [rise / way.value for run in _runs(findings, setting, way) for rise in worst(run)]


def _rise(runs: Sequence[Mapping[str, Any]]) -> float:
    return mean(rise for run in runs for rise in worst(run))


def at_rise(points: Sequence[tuple[float, float]], rise: float) -> float | None:
    """What a grid of (rise, merit) reaches at a rise: interpolated, or better at a smaller rise; None below all."""
    within = [merit for other, merit in points if other <= rise]
    if not within:
        return None
    rises, merits = zip(*sorted(points))
    return max(*within, float(np.interp(np.log(rise), np.log(rises), merits)))


def _grid(findings: RecipeFindings, setting: LessonSetting, way: Way) -> float | None:
    """The new task's merit under fixed strengths, or none, at the rise of a budget."""
    grid = [other for other in setting.ways if other.optimizer == way.optimizer]
    done = [_runs(findings, setting, other) for other in grid if other.holding in ("strength", "plain")]
    points = [(_rise(runs), _merit(setting, _new(setting, runs).mean)) for runs in done if runs]
    rise = _rise(_runs(findings, setting, way))
    return at_rise([point for point in points if point[0] > 0], rise) if rise > 0 else None


# --- as it is told


def _table(settings: Sequence[LessonSetting], findings: RecipeFindings) -> str:
    """A table a network."""
    return "\n\n".join(
        _table_of(findings, setting) for setting in settings if any(_runs(findings, setting, w) for w in setting.ways)
    )


def _table_of(findings: RecipeFindings, setting: LessonSetting) -> str:
    judged = "%" if setting.judged == "accuracy" else "perplexity"
    average = "average accuracy %" if setting.judged == "accuracy" else "perplexity of both"
    titles = ["network", "optimizer", "training", "increment, nats", f"lessons ≤ {USUAL:g} budgets", "largest / budget"]
    titles += [f"new task {judged}", f"grid at the same rise {judged}", average, "seeds"]
    rows = [titles, [":--"] * 3 + ["--:"] * 7]
    for way in sorted(setting.ways, key=lambda way: list(_TITLES).index(way.optimizer)):
        if runs := _runs(findings, setting, way):
            rows.append(_row(findings, setting, way, runs))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(findings: RecipeFindings, setting: LessonSetting, way: Way, runs: Sequence[Mapping[str, Any]]) -> list[str]:
    rise, new, shares = "", "", ["", "", ""]
    if way.holding != "joint":
        rise, new = f"{_rise(runs):.3g}", _figure(setting, _new(setting, runs))
    if way.holding in ("budget", "forecast", "calibrated"):
        ratios, grid = _ratios(findings, setting, way), _grid(findings, setting, way)
        shares = [f"{sum(ratio <= USUAL for ratio in ratios)} of {len(ratios)}", f"{max(ratios):.2f}", "–"]
        if grid is not None:
            shares[2] = _figure(setting, Estimate(math.exp(-grid) if setting.judged == "perplexity" else grid))
    return [
        *(setting.name, _TITLES[way.optimizer], way.held, rise, *shares[:2], new, shares[2]),
        *(_figure(setting, _average(setting, runs)), str(len(runs))),
    ]


def _figure(setting: LessonSetting, estimate: Estimate) -> str:
    return percent(estimate) if setting.judged == "accuracy" else estimate.text()


def _conclude(settings: Sequence[LessonSetting], findings: RecipeFindings) -> str:
    return "\n\n".join(_conclusion(findings, setting) for setting in settings)


def _conclusion(findings: RecipeFindings, setting: LessonSetting) -> str:
    budgets = [way for way in setting.ways if way.holding == "budget"]
    ratios = [ratio for way in budgets for ratio in _ratios(findings, setting, way)]
    usual = sum(ratio <= USUAL for ratio in ratios)
    kept = "is kept" if usual >= SHARE * len(ratios) and max(ratios) <= MOST else "is not kept"
    told = (
        f"{setting.name}: in {usual} of {len(ratios)} lessons ({100 * usual / len(ratios):.0f}%) the increment on "
        f"examples that no probe saw was at most {USUAL:g} budgets, and the largest was {max(ratios):.2f} budgets. "
        f"Asked for were at least {100 * SHARE:.0f}%, and none above {MOST:g}: the promise {kept}. "
    )
    told += _told_of_new(findings, setting, budgets)
    foreseen, calibrated = (
        [ratio for way in setting.ways if way.holding == holding for ratio in _ratios(findings, setting, way)]
        for holding in ("forecast", "calibrated")
    )
    if calibrated:
        stands = "is kept too" if max(calibrated) <= FORECAST else "is not kept"
        told += (
            "Without probes, by the forecast of Kronecker factors whose worth in nats was calibrated along lessons, "
            f"the largest was {max(calibrated):.1f} budgets, where at most {FORECAST:g} were asked for: this {stands}. "
        )
    if foreseen:
        told += f"By a forecast that was not calibrated it was {max(foreseen):.1f}. "
    told += "Average accuracy in %: " if setting.judged == "accuracy" else "Perplexity, the mean of both languages: "
    return told + "; ".join(_averages(findings, setting, optimizer) for optimizer in setting.rates) + "."


def _told_of_new(findings: RecipeFindings, setting: LessonSetting, budgets: Sequence[Way]) -> str:
    """What budgets cost the new task, beside fixed strengths."""
    behind = {
        way: grid - _merit(setting, _new(setting, _runs(findings, setting, way)).mean)
        for way in budgets
        if (grid := _grid(findings, setting, way)) is not None
    }
    if not behind:
        return ""
    bound, far = CLOSE[setting.judged], max(behind, key=lambda way: behind[way])
    close = sum(value <= bound for value in behind.values())
    within, most = f"{100 * bound:g} point", f"{100 * behind[far]:.1f} points"
    if setting.judged == "perplexity":
        within, most = f"{100 * bound:g}% of perplexity", f"{100 * math.expm1(behind[far]):.1f}%"
    return (
        f"The new task is learned to within {within} of what fixed strengths reach at the same rise under {close} of "
        f"{len(behind)} budgets; the largest difference is {most}, under {_label(far)}. "
    )


def _averages(findings: RecipeFindings, setting: LessonSetting, optimizer: str) -> str:
    """What all tasks end at, under the ways of an optimizer."""
    ways = [way for way in setting.ways if way.optimizer == optimizer]
    found = {way: _average(setting, _runs(findings, setting, way)) for way in ways}
    figures = [f"{way.held} {_figure(setting, found[way])}" for way in ways if way.holding != "strength"]
    fixed = [found[way] for way in ways if way.holding == "strength"]
    top = _figure(setting, max(fixed, key=lambda estimate: _merit(setting, estimate.mean)))
    return f"{_TITLES[optimizer]}: {', '.join(figures)}, best fixed strength {top}"


# --- as it is drawn


def _draw(settings: Sequence[LessonSetting], findings: RecipeFindings, folder: Path) -> list[Path]:
    rows = {
        f"{setting.name}, {_label(way)}": ratios
        for setting in settings
        for way in setting.ways
        if way.holding == "budget" and (ratios := _ratios(findings, setting, way))
    }
    pictures = []
    if rows:
        pictures.append(
            strip(
                rows,
                folder / "increments.png",
                title=findings.recipe.title,
                remark=f"a dot is a lesson; asked for: {SHARE:.0%} below {USUAL:g}, none above {MOST:g}",
                across="increment on held-out examples, in budgets",
                limits=(1.0, USUAL, MOST),
            )
        )
    for setting in settings:
        if series := _lines(findings, setting):
            titles = list(_TITLES.values())
            pictures.append(
                curves(
                    series,
                    folder / f"{setting.name.lower()}.png",
                    title=f"{setting.name}: what the old may lose, and what the new gains",
                    remark="mean and 95% interval over seeds; strength 0, plain training, at the right",
                    across="increment of the skill that lost most in a lesson, nats",
                    up=f"test {setting.judged} on the new task",
                    logarithmic=True,
                    colours={line.label: titles.index(line.label.partition(",")[0]) for line in series},
                    shares=setting.judged == "accuracy",
                )
            )
    return pictures


def _lines(findings: RecipeFindings, setting: LessonSetting) -> list[Series]:
    series = []
    for label, holdings in (("budgets", ("budget",)), ("fixed strengths", ("strength", "plain"))):
        for optimizer in setting.rates:
            wanted = [way for way in setting.ways if way.optimizer == optimizer and way.holding in holdings]
            done = [runs for way in wanted if (runs := _runs(findings, setting, way)) and _rise(runs) > 0]
            done.sort(key=_rise)
            if done:
                places, values = [_rise(runs) for runs in done], [_new(setting, runs) for runs in done]
                series.append(Series(f"{_TITLES[optimizer]}, {label}", places, values, label != "budgets"))
    return series
