"""The promise: what is said in nats is kept in nats, with nothing tuned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from torch import nn

from holdfast.experiments.reproduce.findings import Recipe, RecipeFindings, percent
from holdfast.experiments.reproduce.lessons import DAMPING, EVERY, NUM_PROBES, Holding, Setting, Way, learn
from holdfast.experiments.reproduce.lines import Size
from holdfast.experiments.reproduce.pictures import Series, curves, strip
from holdfast.experiments.tables import Estimate
from holdfast.streams.catalog import build_stream
from holdfast.streams.stream import Task
from holdfast.training import OptimizerName, build_net

BUDGETS = (0.02, 0.05, 0.2)
STRENGTHS = (1.0, 10.0, 100.0, 1000.0)
RATES: dict[OptimizerName, float] = {"sgd": 0.1, "momentum": 0.03, "adam": 1e-3}
_TITLES = {"sgd": "SGD", "momentum": "momentum", "adam": "Adam"}

SHARE, USUAL, MOST, FORECAST = 0.95, 1.5, 3.0, 4.0
"""Asked for: this share of lessons below the usual ratio of increment to budget, and none above the most; without
probes none above the last."""
CLOSE = 0.01
"""Asked for: the new task is learned at most so much worse than under the best fixed strength at the same rise."""


def promise(size: Size) -> Recipe:
    """The recipe."""
    settings, ways = settings_of(size), ways_of(size)
    return Recipe(
        name="promise",
        title="What is said in nats is kept in nats",
        question="A keeper is given a budget, in nats by which a lesson may raise the loss of any earlier skill, and "
        "nothing is tuned. How much does a lesson cost earlier skills on examples that no probe saw, and what does "
        "that cost the new task?",
        source="this library; that Kronecker factors hold such tasks, under a strength that is tuned, is from Ritter "
        "et al. 2018, arXiv 1805.07810",
        claim="",
        size=size,
        parts={_name(s, way): partial(learn, s, way) for s in settings for way in ways},
        measure_seeds=size.num_seeds(3),
        measure_seconds=300.0 if size.name == "full" else 15.0,
        table=partial(_table, settings, ways),
        conclude=partial(_conclude, settings, ways),
        draw=partial(_draw, settings, ways),
        notes=f"{settings[0].epochs} epochs a task in batches of {settings[0].batch_size}, one optimizer for all "
        f"tasks: {', '.join(f'{_TITLES[name]} {rate:g}' for name, rate in RATES.items())}. Importances: "
        f"`hf.kfac(damping={DAMPING:g})` on the task's training examples, the same under budgets and fixed strengths, "
        f"which pull every {EVERY} steps. Under a budget rises are measured every {EVERY} steps on {NUM_PROBES} of the "
        "task's validation examples, and `close()` ends each lesson. Under a forecast there are no probes, and every "
        "step is bounded; a rehearsed one was multiplied by the factor that `hf.rehearse` found under the same "
        "optimizer and budget, on the task's training and validation examples. All figures are of test examples. "
        "Increment: the rise of the skill that lost most in a lesson, after `close()`, as KL of old to new "
        "answers; the mean is over lessons. New task: accuracy at the end of its lesson, mean over all tasks but the "
        "first. Grid at the same rise: what fixed strengths reach of the new task where their mean increment is the "
        "same, interpolated between them in its logarithm; a dash where each of them loses more. "
        "95% intervals are over seeds.",
    )


def settings_of(size: Size) -> tuple[Setting, ...]:
    """The networks, each with its tasks."""
    epochs = size.settings.get("epochs", 12)
    return (Setting(name="MLP", build=partial(_permuted_digits, size), rates=RATES, epochs=epochs),)


def ways_of(size: Size) -> tuple[Way, ...]:
    """How each network learns, those under a budget first."""
    full = size.name == "full"
    optimizers: Sequence[OptimizerName] = tuple(RATES) if full else ("adam",)
    held = [Way(name, "budget", value) for value in (BUDGETS if full else (0.05,)) for name in optimizers]
    free = [Way(name, holding) for holding in ("plain", "joint") for name in optimizers]
    fixed = [Way(name, "strength", value) for value in STRENGTHS for name in optimizers]
    holdings: Sequence[Holding] = ("forecast", "rehearsed") if full else ("rehearsed",)
    foreseen = [Way(name, holding, 0.05) for holding in holdings for name in optimizers]
    return (*held, *free, *fixed, *foreseen)


def _permuted_digits(size: Size, seed: int, data_dir: str | None) -> tuple[nn.Module, list[Task]]:
    stream = build_stream("permuted-digits", num_tasks=size.settings.get("num_tasks", 5), seed=seed, data_dir=data_dir)
    hidden = size.settings.get("hidden", (300, 150))
    return build_net("mlp", stream.input_shape, stream.num_classes, hidden=hidden, seed=seed), list(stream)


# --- what the runs say


def _name(setting: Setting, way: Way) -> str:
    return f"{setting.name}, {way}"


def _label(way: Way) -> str:
    return f"{_TITLES[way.optimizer]}, {way.held}"


def _runs(findings: RecipeFindings, setting: Setting, way: Way) -> list[Mapping[str, Any]]:
    """Those that are done, one a seed."""
    name = _name(setting, way)
    return [entry[name] for entry in findings.measured.values() if name in entry]


def worst(run: Mapping[str, Any]) -> list[float]:
    """The increment of the skill that lost most, in each lesson after the first."""
    return [max(lesson["increments"]) for lesson in run["lessons"][1:]]


def _new(runs: Sequence[Mapping[str, Any]]) -> Estimate:
    return Estimate.of([mean(lesson["new"] for lesson in run["lessons"][1:]) for run in runs])


def _average(runs: Sequence[Mapping[str, Any]]) -> Estimate:
    return Estimate.of([mean(run["accuracy"]) for run in runs])


def _ratios(findings: RecipeFindings, setting: Setting, way: Way) -> list[float]:
    """Of every lesson, increment over budget."""
    return [rise / way.value for run in _runs(findings, setting, way) for rise in worst(run)]


def _rise(runs: Sequence[Mapping[str, Any]]) -> float:
    return mean(rise for run in runs for rise in worst(run))


def at_rise(points: Sequence[tuple[float, float]], rise: float) -> float | None:
    """What a grid of (rise, accuracy) reaches at a rise: interpolated, or better at a smaller rise; None below all."""
    within = [accuracy for other, accuracy in points if other <= rise]
    if not within:
        return None
    rises, accuracies = zip(*sorted(points))
    return max(*within, float(np.interp(np.log(rise), np.log(rises), accuracies)))


def _grid(findings: RecipeFindings, setting: Setting, ways: Sequence[Way], way: Way) -> float | None:
    """The new task's accuracy under fixed strengths, or none, at the rise of a budget."""
    grid = [other for other in ways if other.optimizer == way.optimizer and other.holding in ("strength", "plain")]
    done = [runs for other in grid if (runs := _runs(findings, setting, other))]
    points = [(_rise(runs), _new(runs).mean) for runs in done]
    rise = _rise(_runs(findings, setting, way))
    return at_rise([point for point in points if point[0] > 0], rise) if rise > 0 else None


# --- as it is told


def _table(settings: Sequence[Setting], ways: Sequence[Way], findings: RecipeFindings) -> str:
    titles = ["network", "optimizer", "training", "increment, nats", f"lessons ≤ {USUAL:g} budgets", "largest / budget"]
    titles += ["new task %", "grid at the same rise %", "average accuracy %", "seeds"]
    rows = [titles, [":--"] * 3 + ["--:"] * 7]
    for setting in settings:
        for way in sorted(ways, key=lambda way: list(RATES).index(way.optimizer)):
            if runs := _runs(findings, setting, way):
                rows.append(_row(findings, setting, ways, way, runs))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(
    findings: RecipeFindings, setting: Setting, ways: Sequence[Way], way: Way, runs: Sequence[Mapping[str, Any]]
) -> list[str]:
    rise, new, shares = "", "", ["", "", ""]
    if way.holding != "joint":
        rise, new = f"{_rise(runs):.3g}", percent(_new(runs))
    if way.holding in ("budget", "forecast", "rehearsed"):
        ratios, grid = _ratios(findings, setting, way), _grid(findings, setting, ways, way)
        shares = [f"{sum(ratio <= USUAL for ratio in ratios)} of {len(ratios)}", f"{max(ratios):.2f}"]
        shares.append("–" if grid is None else f"{100 * grid:.1f}")
    return [
        *(setting.name, _TITLES[way.optimizer], way.held, rise, *shares[:2], new, shares[2]),
        *(percent(_average(runs)), str(len(runs))),
    ]


def _conclude(settings: Sequence[Setting], ways: Sequence[Way], findings: RecipeFindings) -> str:
    return " ".join(_conclusion(findings, setting, ways) for setting in settings)


def _conclusion(findings: RecipeFindings, setting: Setting, ways: Sequence[Way]) -> str:
    budgets = [way for way in ways if way.holding == "budget"]
    ratios = [ratio for way in budgets for ratio in _ratios(findings, setting, way)]
    usual = sum(ratio <= USUAL for ratio in ratios)
    kept = "is kept" if usual >= SHARE * len(ratios) and max(ratios) <= MOST else "is not kept"
    behind = {
        way: grid - _new(_runs(findings, setting, way)).mean
        for way in budgets
        if (grid := _grid(findings, setting, ways, way)) is not None
    }
    told = (
        f"{setting.name}: in {usual} of {len(ratios)} lessons ({100 * usual / len(ratios):.0f}%) the increment on "
        f"examples that no probe saw was at most {USUAL:g} budgets, and the largest was {max(ratios):.2f} budgets. "
        f"Asked for were at least {100 * SHARE:.0f}%, and none above {MOST:g}: the promise {kept}. "
    )
    if behind:
        far = max(behind, key=lambda way: behind[way])
        close = sum(value <= CLOSE for value in behind.values())
        told += (
            f"The new task is learned to within {100 * CLOSE:g} point of what fixed strengths reach at the same rise "
            f"under {close} of {len(behind)} budgets; the largest difference is {100 * behind[far]:.1f} points, under "
            f"{_label(far)}. "
        )
    foreseen, rehearsed = (
        [ratio for way in ways if way.holding == holding for ratio in _ratios(findings, setting, way)]
        for holding in ("forecast", "rehearsed")
    )
    if rehearsed:
        stands = "is kept too" if max(rehearsed) <= FORECAST else "is not kept"
        told += (
            "Without probes, by the forecast of Kronecker factors whose worth in nats was rehearsed, the largest was "
            f"{max(rehearsed):.1f} budgets, where at most {FORECAST:g} were asked for: this {stands}. "
        )
    if foreseen:
        told += f"By a forecast that was not rehearsed it was {max(foreseen):.1f}. "
    told += "Average accuracy in %: "
    parts = []
    for optimizer in dict.fromkeys(way.optimizer for way in ways):
        figures = [
            f"{way.held} {percent(_average(_runs(findings, setting, way)))}"
            for way in ways
            if way.optimizer == optimizer and way.holding != "strength"
        ]
        fixed = [_runs(findings, setting, w) for w in ways if (w.optimizer, w.holding) == (optimizer, "strength")]
        top = max(fixed, key=lambda runs: _average(runs).mean)
        parts.append(f"{_TITLES[optimizer]}: {', '.join(figures)}, best fixed strength {percent(_average(top))}")
    return told + "; ".join(parts) + "."


# --- as it is drawn


def _draw(settings: Sequence[Setting], ways: Sequence[Way], findings: RecipeFindings, folder: Path) -> list[Path]:
    budgets = [way for way in ways if way.holding == "budget"]
    rows = {
        f"{s.name}, {_label(way)}": ratios for s in settings for way in budgets if (ratios := _ratios(findings, s, way))
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
        if series := _lines(findings, setting, ways):
            titles = list(_TITLES.values())
            pictures.append(
                curves(
                    series,
                    folder / f"{setting.name.lower()}.png",
                    title=f"{setting.name}: what the old may lose, and what the new gains",
                    remark="mean and 95% interval over seeds; strength 0, plain training, at the right",
                    across="increment of the skill that lost most in a lesson, nats",
                    up="test accuracy on the new task",
                    logarithmic=True,
                    colours={line.label: titles.index(line.label.partition(",")[0]) for line in series},
                )
            )
    return pictures


def _lines(findings: RecipeFindings, setting: Setting, ways: Sequence[Way]) -> list[Series]:
    series = []
    for label, holdings in (("budgets", ("budget",)), ("fixed strengths", ("strength", "plain"))):
        for optimizer in dict.fromkeys(way.optimizer for way in ways):
            wanted = [way for way in ways if way.optimizer == optimizer and way.holding in holdings]
            done = [runs for way in wanted if (runs := _runs(findings, setting, way)) and _rise(runs) > 0]
            done.sort(key=_rise)
            if done:
                places, values = [_rise(runs) for runs in done], [_new(runs) for runs in done]
                series.append(Series(f"{_TITLES[optimizer]}, {label}", places, values, label != "budgets"))
    return series
