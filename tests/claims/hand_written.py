"""What the results' own pages say that no command draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from tests.claims.files import WORDS, classes, content, drawing, drawn_right, kept, recipe, rows, runs, span, told
from tests.claims.numbers import CLASSES, GENERATION, KFAC


def _quality(found: Sequence[Any]) -> str:
    reverse = told([run["generation"]["reverse_accuracy"] for run in found])
    return f"{reverse} | {told([run['generation']['frechet_distance'][-1] for run in found], 1, 0)}"


def _minutes(pattern: str, digits: int) -> str:
    return f"{span((run['seconds'] / 60 for run in runs(pattern)), digits)} minutes a run"


def _generation() -> Iterator[str]:
    yield _minutes("generation/runs/mnist-*.json", 0)
    labels = {"mergan-jtr": "MeRGAN, joint retraining with replay", "mergan-ra": "MeRGAN, replay alignment"}
    for method, label in {**labels, "none": "plain fine-tuning"}.items():
        found = drawing("mnist", method)
        yield f"| {label} | {len(found)} | {drawn_right(found, 5)} | {drawn_right(found, 10)} | {_quality(found)} |"


def _generation_digits() -> Iterator[str]:
    yield _minutes("generation/runs/digits-*.json", 1)
    labels = {
        "joint": "joint, the ceiling",
        "mergan-ra": "MeRGAN, replay alignment",
        "mergan-jtr-ra": "MeRGAN, both",
        "mergan-jtr": "MeRGAN, joint retraining with replay",
        "dgr": "Deep Generative Replay",
        "ewc-fisher": "EWC on the generator",
        "none": "plain fine-tuning",
    }
    for method, label in labels.items():
        found = drawing("digits", method)
        yield f"| {label} | {len(found)} | {drawn_right(found, 5)} | {drawn_right(found, 10)} | {_quality(found)} |"


def _kfac() -> Iterator[str]:
    held, plain = (runs(f"kfac/runs/permuted-mnist-{method}-*.json") for method in ("ewc-kfac", "none"))
    for run in held:
        figures = (
            run["average_accuracy"][-1],
            run["validation_accuracy"][-1],
            run["forgetting"],
            run["learning_accuracy"],
        )
        yield f"| {run['seed']} | {' | '.join(f'{100 * figure:.2f}' for figure in figures)} |"
    yield f"Mean {told([run['average_accuracy'][-1] for run in held], digits=2)} (95%, {WORDS[len(held)]} seeds"
    yield f"reaches {kept('curve', 'EWC Fisher')} at the authors' strength and learning rate"
    took = [span(run["seconds"] for run in found) for found in (held, plain)]
    yield f"A run took {took[0]} seconds, plain SGD training of the same steps {took[1]}"
    yield f"factors takes {span((run['seconds_importance'] / 10 for run in held), 1)} s"


def _kfac_costs() -> Iterator[str]:
    def short(ratio: float) -> str:
        return f"{ratio:.0f}" if ratio >= 9.95 else f"{ratio:.1f}"

    for net in ("784-300-150-10", "784-1000-1000-10"):
        for optimizer, label in {"adam": "Adam", "sgd": "SGD"}.items():
            took = content("kfac/step.json")[net][optimizer]
            diagonal, *layers = (took[name] / took["plain"] for name in ("diagonal", "kfac", "kfac, every=5"))
            yield f"| {net} | {label} | {diagonal:.2f} | {' | '.join(map(short, layers))} |"
    step = {name: row["whole step"]["median"] for name, row in rows("step", "mlp-small-adam", "step").items()}
    often, rare = step["EWC, K-FAC"], step["EWC, K-FAC every 4"]
    yield f"{often:.1f} times plain training at every step, {rare:.1f} times at every fourth"
    found = content("kfac/development.json")
    merges, every = found["merges"], found["every"]
    spectrum, means, nearest, whole = (
        next(value for name, value in merges.items() if start in name and isinstance(value, float))
        for start in ("(the one kept)", "one pair: mean", "(Van Loan)", "implicit, every task's")
    )
    yield f"its own spectrum {spectrum:.4f}, one pair by means {means:.4f}"
    yield f"the nearest Kronecker product {nearest:.4f}, every task's factors and anchors kept {whole:.4f}"
    yield f"n = 1, 4, 10: {every['1']:.4f}, {every['4']:.4f}, {every['10']:.4f}"


def _classes() -> Iterator[str]:
    yield f"| joint training | {kept('scenarios', 'joint, class')} | |"
    yield f"| plain training | {kept('scenarios', 'plain, class')} | |"
    lines = {
        "`ranpac`, 2,000 random features": classes("ranpac", projection=2000),
        "`ranpac --adapt`": classes("ranpac", adapt=True),
        "`ranpac`, 1,000 random features": classes("ranpac"),
        "`slda --adapt`": classes("slda", adapt=True),
        "`slda`": classes("slda"),
        "`class-means`": classes("class-means"),
    }
    for label, found in lines.items():
        assert len(found) == 3
        held = {run["held_bytes"] / 1e6 for run in found}
        assert len(held) == 1
        yield f"| {label} | {told([run['average_accuracy'][-1] for run in found])} | {held.pop():.2g} |"


def _ready() -> Iterator[str]:
    entries = list(recipe("cifar-ready").measured.values())
    solved, joint = (
        f"{100 * fmean(values):.1f}%"
        for values in (
            [entry["heads"]["ridge"]["10 x 1"] for entry in entries],
            [entry["joint"]["test"] for entry in entries],
        )
    )
    replayed, *others = (
        [entry["rivals"][name]["10 x 1"]["test"] for entry in entries]
        for name in ("replay, 500 kept", "plain", "LwF", "EWC")
    )
    yield f"regression ends at {solved} of all ten classes, joint logistic regression on the same features at {joint}"
    best = told(max(others, key=fmean))
    yield f"features at {told(replayed)}%, and what is trained without old data at {best}% at best"


SAID: Mapping[str, Sequence[Callable[[], Iterator[str]]]] = {
    CLASSES: (_classes, _ready),
    KFAC: (_kfac, _kfac_costs),
    GENERATION: (_generation, _generation_digits),
}
"""Page -> what writes its texts."""
