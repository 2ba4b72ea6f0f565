"""README's lines on five and on ten tasks: a budget by default, and nothing tuned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from torch import nn

from holdfast.lab.streams.catalog import build_stream
from holdfast.lab.streams.stream import Task
from holdfast.lab.tables import Estimate
from holdfast.lab.training import OptimizerName, build_net
from holdfast.retention.elastic import BUDGET
from recipes.findings import Recipe, RecipeFindings, percent
from recipes.lessons import Holding, LessonSetting, Way, learn
from recipes.lines import Size
from recipes.pictures import Series, curves
from recipes.promise import SHARE, USUAL, worst

_TITLES: dict[OptimizerName, str] = {"sgd": "SGD", "adam": "Adam"}
_ASKED = {"digits": 0.96, "MNIST": 0.95}
"""Of the average accuracy."""


def untuned(size: Size) -> Recipe:
    """The recipe."""
    settings = settings_of(size)
    return Recipe(
        name="untuned",
        title="README's lines, nothing tuned",
        question=f"`hf.EWC(model)` and `hf.measure(model, train, probes=validation)`: a budget of {BUDGET:g} nats for "
        "each lesson, and every other choice the library's. How much of all tasks is known at the end?",
        source="this library; the protocol on MNIST is Kutalev's (arXiv 2005.07107, 2109.10021)",
        claim="",
        size=size,
        parts={_name(s, way): partial(learn, s, way) for s in settings for way in s.ways},
        measure_seeds=size.num_seeds(3),
        measure_seconds=600.0 if size.name == "full" else 10.0,
        table=partial(_table, settings),
        conclude=partial(_conclude, settings),
        draw=partial(_draw, settings),
        notes="Digits: five tasks of the embedded 8 x 8 digits, pixels permuted, net 64-300-150-10, 12 epochs a task "
        "in batches of 32, SGD 0.1, Adam 0.001. MNIST: ten tasks, the plain images and nine permutations, net "
        "784-300-150-10 with leaky ReLU, 4 epochs a task in batches of 100, SGD 0.2, Adam 0.001; tasks are "
        "measured on all 55,000 training images. One optimizer for all tasks. Probes are the first "
        "512 validation images of a task, of digits all 300. Accuracies and increments are of test images. Increment "
        "over budget: the rise of the skill that lost most in a lesson, after `close()`. 95% intervals are over seeds.",
    )


def settings_of(size: Size) -> tuple[LessonSetting, ...]:
    """Both networks, each with its tasks; small, the one on digits alone."""
    epochs = size.settings.get("epochs")
    holdings: list[tuple[Holding, float]] = [("budget", BUDGET)]
    digits = LessonSetting(
        name="digits",
        build=partial(_digits, size),
        tasks="pixels permuted",
        rates={"sgd": 0.1, "adam": 1e-3},
        holdings=holdings,
        epochs=epochs or 12,
    )
    mnist = LessonSetting(
        name="MNIST",
        build=_mnist,
        tasks="pixels permuted",
        rates={"sgd": 0.2, "adam": 1e-3},
        holdings=holdings,
        epochs=epochs or 4,
        batch_size=100,
    )
    return (digits, mnist) if size.name == "full" else (digits,)


def _digits(size: Size, seed: int, data_dir: str | None) -> tuple[nn.Module, list[Task]]:
    stream = build_stream("permuted-digits", num_tasks=size.settings.get("num_tasks", 5), seed=seed, data_dir=data_dir)
    hidden = size.settings.get("hidden", (300, 150))
    return build_net("mlp", stream.input_shape, stream.num_classes, hidden=hidden, seed=seed), list(stream)


def _mnist(seed: int, data_dir: str | None) -> tuple[nn.Module, list[Task]]:
    stream = build_stream("permuted-mnist", seed=seed, data_dir=data_dir)
    net = build_net("mlp", stream.input_shape, stream.num_classes, hidden=(300, 150), slope=0.2, seed=seed)
    return net, list(stream)


def _name(setting: LessonSetting, way: Way) -> str:
    return f"{setting.name}, {way.optimizer}"


def _runs(findings: RecipeFindings, setting: LessonSetting, way: Way) -> list[Mapping[str, Any]]:
    """Those that are done, one a seed."""
    name = _name(setting, way)
    return [entry[name] for entry in findings.measured.values() if name in entry]


def _done(
    findings: RecipeFindings, settings: Sequence[LessonSetting]
) -> list[tuple[LessonSetting, Way, list[Mapping[str, Any]]]]:
    pairs = [(setting, way) for setting in settings for way in setting.ways]
    return [(setting, way, runs) for setting, way in pairs if (runs := _runs(findings, setting, way))]


def _average(runs: Sequence[Mapping[str, Any]]) -> Estimate:
    return Estimate.of([mean(run["accuracy"]) for run in runs])


def _ratios(runs: Sequence[Mapping[str, Any]]) -> list[float]:
    """Of every lesson, increment over budget."""
    return [rise / BUDGET for run in runs for rise in worst(run)]


def _table(settings: Sequence[LessonSetting], findings: RecipeFindings) -> str:
    titles = ["tasks", "optimizer", "average accuracy %", "asked for %", "new task %", "first task at the end %"]
    rows = [[*titles, f"lessons ≤ {USUAL:g} budgets", "largest / budget", "seeds"], [":--"] * 2 + ["--:"] * 7]
    for setting, way, runs in _done(findings, settings):
        new = Estimate.of([mean(lesson["new"] for lesson in run["lessons"]) for run in runs])
        first = Estimate.of([run["accuracy"][0] for run in runs])
        ratios = _ratios(runs)
        kept = f"{sum(ratio <= USUAL for ratio in ratios)} of {len(ratios)}"
        figures = [percent(_average(runs)), f"{100 * _ASKED[setting.name]:g}", percent(new), percent(first)]
        tasks = f"{len(runs[0]['accuracy'])} of {setting.name}"
        rows.append([tasks, _TITLES[way.optimizer], *figures, kept, f"{max(ratios):.2f}", str(len(runs))])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _conclude(settings: Sequence[LessonSetting], findings: RecipeFindings) -> str:
    told = []
    for setting, way, runs in _done(findings, settings):
        average, asked = _average(runs), _ASKED[setting.name]
        stands = "reached" if average.mean >= asked else "not reached"
        told.append(
            f"{setting.name} under {_TITLES[way.optimizer]}: {percent(average)}% on average at the end, where "
            f"{100 * asked:g} were asked for: {stands}."
        )
    ratios = [ratio for _, _, runs in _done(findings, settings) for ratio in _ratios(runs)]
    usual = sum(ratio <= USUAL for ratio in ratios)
    told.append(
        f"In {usual} of {len(ratios)} lessons ({100 * usual / len(ratios):.0f}%) the increment on examples that no "
        f"probe saw was at most {USUAL:g} budgets, where {100 * SHARE:.0f}% were asked for; the largest was "
        f"{max(ratios):.2f} budgets."
    )
    return " ".join(told)


def _draw(settings: Sequence[LessonSetting], findings: RecipeFindings, folder: Path) -> list[Path]:
    series = []
    for setting, way, runs in _done(findings, settings):
        tasks = range(1, len(runs[0]["accuracy"]) + 1)
        at_end = [Estimate.of([run["accuracy"][number - 1] for run in runs]) for number in tasks]
        series.append(Series(f"{setting.name}, {_TITLES[way.optimizer]}", list(tasks), at_end, False))
    if not series:
        return []
    picture = curves(
        series,
        folder / "tasks.png",
        title=findings.recipe.title,
        remark="mean and 95% interval over seeds",
        across="task, in the order of learning",
        up="test accuracy at the end",
    )
    return [picture]
