"""What docs/*.md say in numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from recipes.promise import worst
from tests.claims.files import (
    WORDS,
    chosen_strengths,
    content,
    drawing,
    drawn_right,
    kept,
    measured,
    over_budget,
    points_at,
    recipe,
    rows,
    runs,
    seeds,
    span,
    told,
)
from tests.claims.numbers import INTEGRATIONS, REPLAY, STATISTICS, STRENGTH


def _strengths() -> Iterator[str]:
    yield from chosen_strengths()
    tried = [trial["strength"] for trial in content("kfac/development.json")["settings"]]
    chosen = {run["config"]["strength"] for run in runs("kfac/runs/permuted-mnist-ewc-kfac-*.json")}
    yield f"On ten permuted-MNIST tasks {chosen.pop():g} was chosen, of {span(tried)}"


def _back() -> Iterator[str]:
    ways = {"averaging": "linear averaging", "rewind": "`rewind(0.02)`"}
    ways["rewind, importance"] = "`rewind(0.02, importance=...)`"
    table: dict[str, list[str]] = {"as trained": [], **{label: [] for label in ways.values()}}
    for part in ("permuted digits", "split digits"):
        figures = {label: points_at("rewind", part, way, 0.02) for way, label in ways.items()}
        figures["as trained"] = [run["trained"] for run in measured("rewind", part)]
        for label, entries in figures.items():
            table[label] += [told([entry[key] for entry in entries]) for key in ("old", "new")]
    yield from (f"| {label} | {' | '.join(cells)} |" for label, cells in table.items())
    ratios = over_budget("promise", ("MLP", "ConvNet"))
    yield f"all of {len(ratios)} lessons of an MLP and of a convolutional network with batch norm cost at most "
    yield f"norm cost at most {max(ratios):.2f} budgets"


def _forecasts() -> Iterator[str]:
    def ways(kind: str) -> list[list[Any]]:
        return [measured("promise", f"MLP, {optimizer}, {kind} 0.05") for optimizer in ("sgd", "momentum", "adam")]

    def most(kind: str) -> list[float]:
        return [max(rise / 0.05 for run in found for rise in worst(run)) for found in ways(kind)]

    def average(kind: str) -> list[str]:
        return [told([sum(run["accuracy"]) / len(run["accuracy"]) for run in found]) for found in ways(kind)]

    def row(label: str, cells: Iterable[str]) -> str:
        return f"| {label} | {' | '.join(cells)} |"

    sgd, momentum, adam = most("forecast")
    yield f"up to {sgd:.0f} (SGD), {adam:.0f} (Adam) and {momentum:.0f} (momentum) budgets"
    first = "most that a skill lost in a lesson, in budgets: forecast"
    yield row(first, (f"{value:.1f}" for value in most("forecast")))
    yield row("calibrated", (f"{value:.1f}" for value in most("calibrated")))
    yield row("average accuracy at the end: forecast", average("forecast"))
    yield row("calibrated", average("calibrated"))


def _resting() -> Iterator[str]:
    powers = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")

    def power(text: str) -> str:
        exponent = round(math.log10(float(text)))
        return "1" if exponent == 0 else f"10{str(exponent).translate(powers)}"

    for row in content("benchmarks/resting.json")["parts"]["metrics"]["rows"]:
        strength = " to ".join(power(end) for end in row["strength S / M"].split(" to "))
        names = ("task: exact", "task: ours", "task: majorised", "theta' still: ours", "theta' still: majorised")
        steps = " | ".join(f"{row[name]:,}" for name in names)
        yield f"| {power(row['condition of M'])} | {strength} | {steps} |"


def _rarely() -> Iterator[str]:
    for rate in (0.02, 0.1, 0.5):
        off = []
        for n in (2, 5, 10):
            root, other = math.sqrt(rate), math.sqrt((1 - (1 - rate) ** n) / n)
            off.append(f"{(root - other) / (root + other):.3f}")
        yield f"| {rate:g} | {' | '.join(off)} |"


def _rhythm() -> Iterator[str]:
    table = rows("rhythm", "digits", "every")
    means = {every: float(row["accuracy"].split(" ± ")[0]) for every, row in table.items()}
    often = [means[every] for every in ("1", "4", "16", "32")]
    yield (
        f"to every 32nd end at {span(often, 1)}%, every 64th at {means['64']:.1f}%, every 128th at {means['128']:.1f}%"
    )
    small, large = (
        {name: row["whole step"]["median"] for name, row in rows("step", f"mlp-{size}-adam", "step").items()}
        for size in ("small", "large")
    )
    rare = "EWC, K-FAC every 64"
    yield f"takes {small[rare]:.2f} (784-300-150-10) and {large[rare]:.2f} (784-1000-1000-10) of one of plain Adam"
    both = span((small["EWC, K-FAC"], large["EWC, K-FAC"]))
    yield f"at every 16th {span((small['EWC, K-FAC every 16'], large['EWC, K-FAC every 16']), 2)}, at every step {both}"
    lessons = {every: table[every]["lessons"]["median"] for every in ("64", "auto")}
    yield f'took {lessons["64"]:.2f} of plain ones, with `"auto"` {lessons["auto"]:.2f}'


def _replay() -> Iterator[str]:
    for label, method in {"DGR": "dgr", "DGR distilled": "dgr-distilled"}.items():
        cells = (kept("dgr", f"{label}, {scenario}") for scenario in ("task", "domain", "class"))
        yield f"| `{method}` | {' | '.join(cells)} |"
    yield f"| `dgr-distilled --generator cvae` | | | {kept('dgr', 'DGR distilled, conditional VAE')} |"
    task, classes = (seeds("dgr", f"DGR, {scenario}") for scenario in ("task", "class"))
    yield f"{WORDS[task]} seeds, class-incremental {WORDS[classes]} ([page](results/dgr/report.md))"
    figures = [
        recipe("dgr").answer(f"{label}, {scenario}")
        for scenario in ("task", "domain", "class")
        for label in ("DGR", "DGR distilled")
    ]
    texts = [answer.line.reference.text for answer in figures if answer.line.reference is not None]
    cells = (", ".join(texts[place : place + 2]) for place in (0, 2, 4))
    yield f"| in print: hard, distilled answers | {' | '.join(cells)} |"


def _controls() -> Iterator[str]:
    exact, drawn, noise, none = (kept("dgr-controls", name) for name in ("exact", "generative", "noise", "none"))
    yield f"real old inputs keep {exact}, drawn ones {drawn}, noise {noise}, none {none}"
    yield f"{WORDS[seeds('dgr-controls', 'exact')]} seeds, answers at temperature 2"


_NETS = ("perceptron", "convolutions")


def _norms(net: str, column: str, chosen: Callable[[float], bool]) -> list[tuple[float, float]]:
    """Mean and deviation of a column in the rows of these strengths."""
    table = content("benchmarks/batchnorm.json")["parts"][net]["rows"]
    texts = [row[column].split(" ± ") for row in table if chosen(float(row["strength"]))]
    return [(float(mean), float(spread)) for mean, spread in texts]


def _batchnorm() -> Iterator[str]:
    columns = ("old, free", "old, hold", "old, each its own", "new, free", "new, hold")
    for row in content("benchmarks/batchnorm.json")["parts"]["convolutions"]["rows"]:
        if row["strength"] in (10, 100, 1000):
            cells = " | ".join(row[column].split(" ± ")[0] for column in columns)
            yield f"| {row['second task']} | {row['strength']:g} | {cells} |"


def _statistics() -> Iterator[str]:
    def means(net: str, column: str, strength: float) -> list[float]:
        return [mean for mean, _ in _norms(net, column, lambda found: found == strength)]

    def deviation(column: str) -> float:
        return max(spread for net in _NETS for _, spread in _norms(net, column, lambda found: found >= 100))

    pinned = {net: span(means(net, "old, free", math.inf)) for net in _NETS}
    held = [mean for net in _NETS for mean in means(net, "old, hold", math.inf)]
    yield f"{span(held)} % on the old digits become {pinned['perceptron']} in a perceptron, and"
    yield f"in a perceptron, and {pinned['convolutions']} in a network of convolutions"
    free, hold = deviation("old, free"), deviation("old, hold")
    yield f"up to {free:.0f} points of old accuracy under *free*, {hold:.0f} under *hold*"
    firm = span(mean for net in _NETS for mean in means(net, "old, hold", 1000))
    loose = {net: span(means(net, "old, free", 1000)) for net in _NETS}
    yield f"all old accuracies are {firm} %, where *free* has {loose['convolutions']} (convolutions) or"
    yield f"or {loose['perceptron']} (perceptron)"
    pairs = (zip(means(net, "new, free", 1000), means(net, "new, hold", 1000)) for net in _NETS)
    yield f"loses at most {max(free - hold for pair in pairs for free, hold in pair):.0f} points by it"
    turned = means("convolutions", "old, hold", 10)[1], means("convolutions", "old, free", 10)[1]
    yield f"images turned, strength 10, {turned[0]:.0f} % and not {turned[1]:.0f}"
    inverted = means("perceptron", "old, each its own", 1000)[2], means("perceptron", "old, hold", 1000)[2]
    yield f"({inverted[0]:.0f} % at strength 1000, where *hold* has {inverted[1]:.0f})"


def _drawn() -> Iterator[str]:
    labels = {"mergan-jtr": "`mergan-jtr`", "mergan-ra": "`mergan-ra --alignment 0.1`", "none": "`none`, one seed"}
    for method, label in labels.items():
        found = drawing("mnist", method)
        yield f"| {label} | {drawn_right(found, 5)} | {drawn_right(found, 10)} |"


def _sharded() -> Iterator[str]:
    title = content("benchmarks/sharded.json")["parts"]["gpt"]["title"]
    share = 100 * rows("sharded", "gpt", "processes")["4"]["of one's"]
    yield f"Of {title[0].lower()}{title[1:]} each of four processes takes at most {math.ceil(share)}% of what one takes"


SAID: Mapping[str, Sequence[Callable[[], Iterator[str]]]] = {
    INTEGRATIONS: (_sharded,),
    STRENGTH: (_strengths, _back, _forecasts, _resting, _rarely, _rhythm),
    REPLAY: (_replay, _controls, _drawn),
    STATISTICS: (_batchnorm, _statistics),
}
"""Page -> what writes its texts."""
