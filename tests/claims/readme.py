"""What README.md says in numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from recipes.findings import best_answer, final, points
from recipes.rewind import kept_of
from recipes.verdict import above
from tests.claims.files import (
    WORDS,
    chosen_strengths,
    classes,
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
from tests.claims.numbers import README


def _untuned() -> Iterator[str]:
    def average(part: str) -> str:
        return told([sum(run["accuracy"]) / len(run["accuracy"]) for run in measured("untuned", part)])

    yield f"end at {average('digits, sgd')}% under SGD and {average('digits, adam')}% under Adam"
    count = WORDS[len(measured("untuned", "MNIST, sgd"))]
    yield f"ten tasks of MNIST at {average('MNIST, sgd')}% and {average('MNIST, adam')}% ({count} seeds, "

    def mean(way: str) -> str:
        values = [value for run in measured("promise", f"MLP, {way}") for value in run["accuracy"]]
        return f"{100 * sum(values) / len(values):.1f}"

    yield f"together the digits come to {mean('sgd, joint')} and {mean('adam, joint')}, one after the other to "
    yield f"one after the other to {mean('sgd, plain')} and {mean('adam, plain')}"


def _promise() -> Iterator[str]:
    ratios = over_budget("promise", ("MLP", "ConvNet"))
    yield f"each of {len(ratios)} lessons of an MLP and of a convolutional network"
    yield f"cost at most {max(ratios):.2f} budgets"


def _texts() -> Iterator[str]:
    ratios = over_budget("promise-texts", ("Transformer", "GPT"))
    usual = sum(ratio <= 1.5 for ratio in ratios)
    yield f"of a small GPT {usual} of {len(ratios)} at most 1.5, the largest {max(ratios):.2f}"


def _mean(entries: Sequence[Mapping[str, float]], key: str) -> str:
    return f"{100 * sum(entry[key] for entry in entries) / len(entries):.1f}"


def _rewind() -> Iterator[str]:
    trained = [run["trained"] for run in measured("rewind", "permuted digits")]
    back, average = (points_at("rewind", "permuted digits", way, 0.02) for way in ("rewind, importance", "averaging"))
    yield f"the first is at {float(_mean(trained, 'old')):.0f}%"
    yield f"ends at {_mean(back, 'old')}% of it and {_mean(back, 'new')}% of the second"
    yield f"has {_mean(average, 'new')}% of the second"


@cache
def _trials(story: str) -> dict[str, list[Any]]:
    """The reported trials of a story by method, one a seed."""
    by_method: dict[str, list[Any]] = {}
    for trial in runs(f"elephants/{story}/trials/*.json"):
        if not trial["trial"]["tuning"]:
            by_method.setdefault(trial["trial"]["method"], []).append(trial)
    return by_method


def _encoder() -> Iterator[str]:
    labels = {
        "plain": "plain fine-tuning",
        "l2": "L2 to the start, one seed",
        "lora": "LoRA of rank 8, one seed",
        "replay-10": "replay of 10% old data, one seed",
        "ewc": "EWC",
        "ewc-budget": "EWC, `--budget 0.05`, nothing tuned",
        "wva": "WVA",
    }
    trials = _trials("encoder")
    before = trials["plain"][0]["before"]["test"]["value"]
    yield f"| | similarity kept ({before:.3f} before) | after the second set |"
    for method, label in labels.items():
        old = [[after["similarity"]["test"]["value"] for after in trial["after"]] for trial in trials[method]]
        new = [[after["accuracy"][0]["test"]["value"] for after in trial["after"]] for trial in trials[method]]
        cells = [told(values, 1, 3) for values in zip(*old)] + [told(values) for values in zip(*new)]
        yield f"| {label} | {' | '.join(cells)} |"
    plain, held = (measured("rewind-encoder", f"sentence encoder{more}") for more in ("", ", held"))
    lost = [run["ready"]["old"] - run["trained"]["old"] for run in plain]
    shares = [kept_of(ours, theirs) for ours, theirs in zip(held, plain, strict=True)]
    yield f"keeps {told(shares, digits=0)}% of the correlation that plain fine-tuning loses ({told(lost, 1, 3)})"
    ends = told([run["closed"]["new"] for run in held]), told([run["trained"]["new"] for run in plain])
    yield f"learns BANKING77 to {ends[0]}%, plain to {ends[1]}%"


def _gpt() -> Iterator[str]:
    trials = _trials("gpt")

    def value(trial: Any, when: str, language: str) -> float:
        return trial[when][language]["test"]["value"]

    avoided, paid = [], []
    for ours, plain in zip(trials["ewc-kfac"], trials["plain"], strict=True):
        before, after, by_plain = (
            value(trial, when, "english") for trial, when in ((ours, "before"), (ours, "after"), (plain, "after"))
        )
        avoided.append(1 - (after - before) / (by_plain - before))
        paid.append(value(ours, "after", "python") / value(plain, "after", "python") - 1)
    yield f"avoids {told(avoided, digits=0)}%, and pays {told(paid, digits=0)}% in Python's"


def _budget() -> Iterator[str]:
    trials = _trials("encoder-budget")

    def lost(trial: Any, part: str = "test") -> float:
        return trial["before"]["old"][part]["value"] - trial["after"]["old"][part]["value"]

    def learned(trial: Any, part: str = "test") -> float:
        return trial["after"]["new"][part]["value"]

    pairs = list(zip(trials["budget"], trials["plain"], strict=True))
    share = told([lost(ours) / lost(plain) for ours, plain in pairs])
    gain = told([learned(ours) / learned(plain) for ours, plain in pairs])
    yield f"which loses {told([lost(plain) for plain in trials['plain']], 1, 3)}"
    yield f"loses {share}% of that at {gain}% of its accuracy"
    tuned = [trial for trial in runs("elephants/encoder-budget/trials/*.json") if trial["trial"]["tuning"]]
    of = {
        name: [trial for trial in tuned if trial["trial"]["method"] == name]
        for name in ("plain", "replay-10", "budget")
    }
    best = max(of["plain"], key=lambda trial: learned(trial, "validation"))
    enough = 0.98 * learned(best, "validation")
    least = {
        name: min(lost(trial, "validation") for trial in own if learned(trial, "validation") >= enough)
        for name, own in of.items()
        if name != "plain"
    }
    yield (
        f"replay of 10% old pairs loses {least['replay-10']:.3f}, plain {lost(best, 'validation'):.3f}, "
        f"the budget {least['budget']:.3f}"
    )


def _dreams() -> Iterator[str]:
    trials = _trials("gpt-dreams")

    def rise(trial: Any) -> float:
        return trial["after"]["old"]["test"]["loss"] - trial["before"]["old"]["test"]["loss"]

    def learned(trial: Any) -> float:
        return trial["after"]["new"]["test"]["value"]

    pairs = list(zip(trials["dreams-kfac"], trials["plain"], strict=True))
    avoided = told([1 - rise(ours) / rise(plain) for ours, plain in pairs])
    paid = told([learned(ours) / learned(plain) for ours, plain in pairs])
    yield f"avoids {avoided}% of plain's rise in nats at {paid}% of plain's perplexity of Python"
    replayed = list(zip(trials["replay-10"], trials["plain"], strict=True))
    avoided = told([1 - rise(real) / rise(plain) for real, plain in replayed])
    paid = told([learned(real) / learned(plain) for real, plain in replayed])
    yield f"Replay of 10% real English avoids {avoided}% at {paid}%"
    plain = min(_tuning("plain"), key=lambda found: found[2])
    best = {
        name: min((found for found in _tuning(name) if found[2] <= 1.01 * plain[2]), key=lambda found: found[1])
        for name in ("replay-10", "dreams", "dreams-kfac")
    }
    forgotten = {name: f"{found[1]:.2f}" for name, found in {**best, "plain": plain}.items()}
    yield (
        "On validation data replay of 10% real English, at the best of its weights, forgets "
        f"{forgotten['replay-10']} nats a token, dreams in every tenth batch {forgotten['dreams']}, dreams with "
        f"Kronecker factors {forgotten['dreams-kfac']}, and plain {forgotten['plain']}"
    )


def _tuning(name: str) -> list[tuple[float | None, float, float]]:
    """(value, nats forgotten, perplexity of Python) of each setting of the GPT's method, on validation data."""
    found = []
    for trial in runs("elephants/gpt-dreams/trials/*.json"):
        if trial["trial"]["tuning"] and trial["trial"]["method"] == name:
            before, after = (trial[when] for when in ("before", "after"))
            lost = after["old"]["validation"]["loss"] - before["old"]["validation"]["loss"]
            found.append((trial["trial"]["value"], lost, after["new"]["validation"]["value"]))
    return found


def _methods() -> Iterator[str]:
    took = {name: row["plain passes"]["median"] for name, row in rows("importance", "mlp-small", "what").items()}
    step, adam = (
        {name: row["whole step"]["median"] for name, row in rows("step", f"mlp-small-{kind}", "step").items()}
        for kind in ("sgd", "adam")
    )
    fisher = f"{took['fisher, exact']:.1f} (sampled: {took['fisher, sampled']:.1f})"
    ewc, wva = f"{step['EWC']:.1f}", f"{step['WVA']:.1f}"

    def end(name: str, label: str) -> str:
        return f"{kept(name, label)} | {seeds(name, label)} |"

    yield f"| `none` | 0 | | 1 | {end('curve', 'plain')}"
    yield f"| `ewc-fisher`, exact | anchors + importance: 2 | {fisher} | {ewc} | {end('curve', 'EWC Fisher')}"
    yield f"| `ewc-signal` | 2 | {took['signal']:.1f}, needs no labels | {ewc} | {end('curve', 'EWC signal')}"
    mas = f"{took['mas, batched']:.1f}, needs no labels"
    yield f"| `ewc-mas`, of a batch's mean | 2 | {mas} | {ewc} | {end('curve', 'EWC MAS')}"
    yield f"| {ewc}, and the gathering | {end('curve', 'EWC SI')}"
    yield f"| `wva-signal` | importance: 1 | {took['signal']:.1f} | {wva} | {end('curve', 'WVA signal')}"
    yield f"| `wva-fisher`, exact | 1 | {fisher} | {wva} | {end('importances', 'WVA Fisher')}"
    kfac = [run["average_accuracy"][-1] for run in runs("kfac/runs/permuted-mnist-ewc-kfac-*.json")]
    every = f"{adam['EWC, K-FAC every 4']:.1f} at every fourth"
    yield f"| {took['kfac, exact']:.1f} | {every} | {told(kfac, digits=2)} | {len(kfac)} |"


def _scenarios() -> Iterator[str]:
    def means(scenario: str) -> list[float]:
        held = (recipe("scenarios").answer(f"{name}, {scenario}") for name in ("online EWC", "SI", "MAS"))
        return [answer.of(final).mean for answer in held]

    plain = recipe("scenarios").answer("plain, task").of(final).mean
    yield f"keep {span(means('task'), 1, 100)}% where the task is told at test time (plain training {100 * plain:.0f}%)"
    yield f"{span(means('domain'), 0, 100)}% where it is not, and {span(means('class'), 0, 100)}% where all ten"
    vae, conditional = (
        recipe("dgr").answer(label).of(final).mean
        for label in ("DGR distilled, class", "DGR distilled, conditional VAE")
    )
    yield f"{100 * vae:.1f}% with a VAE, {100 * conditional:.1f}% with a conditional one"


def _tuned() -> Iterator[str]:
    ewc, wva = (kept("curve", f"{label}, tuned") for label in ("EWC Fisher", "WVA signal"))
    yield f"`ewc-fisher` reaches {ewc} and `wva-signal` {wva}"
    found = recipe("importances")
    best, other = (best_answer(found.labelled(mechanism)) for mechanism in ("EWC", "WVA"))
    yield f"EWC's best less WVA's best is {points(found.paired(best, other))} points over"
    stays = above(found.paired(best, other))
    yield f"points over {WORDS[len(best.results)]} seeds: which of them keeps more stays {stays}"
    yield from chosen_strengths()


def _classes() -> Iterator[str]:
    solved = told([run["average_accuracy"][-1] for run in classes("ranpac", projection=2000)])
    plain, joint = (kept("scenarios", f"{method}, class") for method in ("plain", "joint"))
    yield f"split MNIST ends at {solved}% over all ten classes, where plain training ends at {plain} and joint"
    yield f"and joint training at {joint}."


SAID: Mapping[str, Sequence[Callable[[], Iterator[str]]]] = {
    README: (
        _untuned,
        _promise,
        _texts,
        _rewind,
        _encoder,
        _budget,
        _gpt,
        _dreams,
        _methods,
        _scenarios,
        _classes,
        _tuned,
    )
}
"""Page -> what writes its texts."""
