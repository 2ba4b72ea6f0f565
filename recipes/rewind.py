"""The way back along the curvature beside linear averaging, from weights that were trained plainly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from holdfast.lab.streams.catalog import build_stream
from holdfast.lab.tables import Estimate
from recipes.backward import (
    ALONE,
    AVERAGING,
    DAMPING,
    INFORMED,
    NUM_HELD_OUT,
    NUM_INTENTS,
    NUM_MEASURED,
    NUM_PROBES,
    RATE,
    digits,
    encoder,
    encoder_held,
)
from recipes.findings import Recipe, RecipeFindings, percent, points
from recipes.lines import Size
from recipes.pictures import Series, curves
from recipes.promise import at_rise

BUDGETS, SHARES = (0.01, 0.02, 0.05, 0.1, 0.3), tuple(share / 10 for share in range(1, 10))
OF_ENCODER = ((0.02, 0.1), (0.33, 0.67))
"""Budgets and shares of the encoder, whose figures cost half a minute a point."""

MLPS = {"permuted digits": ("permuted-digits", None), "split digits": ("split-digits", "domain")}
ENCODER, HELD = "sentence encoder", "sentence encoder, held"
RHYTHM, KEPT = 4, 0.8
"""Steps between pulls of the held encoder; asked for: the share of what plain training loses that it keeps."""

_NOTES = (
    "Every way is taken as far as the probes ask for a budget; averaging also to fixed shares, for the pictures. All "
    "figures are of test examples. Gain: accuracy on the new task above what averaging has, under the same seed, at "
    "the same rise of the old loss on test examples, interpolated in the logarithm of the rise. 95% intervals are over "
    "seeds. Damping and delta of the way back were chosen on validation data of other seeds."
)


def rewind(size: Size) -> Recipe:
    """The recipe for digits."""
    return _recipe(
        size,
        name="rewind",
        title="Back along the curvature, beside linear averaging",
        parts={name: partial(_mlp, size, *stream) for name, stream in MLPS.items()},
        seconds=10.0,
        notes=f"An MLP, 12 epochs a task, Adam at {RATE:g} made anew for the second; split digits are the first two "
        "pairs of classes with one pair of outputs. Importances are Kronecker factors, of the first task with "
        f"`damping={DAMPING:g}` and {NUM_PROBES} probes of its validation examples, of the second on its training "
        f"examples. {_NOTES}",
    )


def rewind_encoder(size: Size) -> Recipe:
    """The recipe for a ready sentence encoder, which is also held by the default budget."""
    return _recipe(
        size,
        name="rewind-encoder",
        title="A sentence encoder back along the curvature, and under a budget",
        parts={
            ENCODER: partial(encoder, size.name, *OF_ENCODER),
            HELD: partial(encoder_held, size.name, RHYTHM),
        },
        seconds=1500.0 if size.name == "full" else 200.0,
        notes="The encoder is the one of the stories of elephants: it learns BANKING77 in 300 steps. The importance of "
        f'its similarities is `hf.measure(..., loss="similarity")` on {NUM_MEASURED} sentences, that of the intents '
        "`hf.kfac` on as many; its old skill is Spearman's correlation on all test pairs, its rise that of "
        f"{NUM_HELD_OUT} test sentences, all drawn at random, and the new skill accuracy on {NUM_INTENTS} test "
        f"sentences. {_NOTES} EWC: `EWC(encoder)` as it comes, but pulled and measured at every {RHYTHM} steps.",
    )


def _recipe(size: Size, *, name: str, title: str, parts: Mapping[str, Any], seconds: float, notes: str) -> Recipe:
    return Recipe(
        name=name,
        title=title,
        question="A network was trained on a second task without any keeper. How much of the first task can be had "
        "back, and what does that cost the second: along the curvature of the first (`keeper.rewind(budget)`), along "
        "that of both (`importance=`), and by linear averaging with the weights of before?",
        source="this library; averaging with both tasks' curvature: Matena & Raffel 2022, arXiv 2111.09832",
        claim="",
        size=size,
        parts=parts,
        measure_seeds=size.num_seeds(3),
        measure_seconds=seconds,
        table=_table,
        conclude=_conclude,
        draw=_draw,
        notes=notes,
    )


def _mlp(size: Size, name: str, scenario: Any, seed: int, data_dir: str | None) -> dict[str, Any]:
    stream = build_stream(name, num_tasks=2, seed=seed, scenario=scenario, data_dir=data_dir)
    hidden, epochs = size.settings.get("hidden", (300, 150)), size.settings.get("epochs", 12)
    return digits(stream, hidden, epochs, BUDGETS, SHARES, seed)


# --- what the runs say


def _runs(findings: RecipeFindings, name: str) -> list[Mapping[str, Any]]:
    return [entry[name] for entry in findings.measured.values() if name in entry]


def _settings(findings: RecipeFindings) -> list[str]:
    """Those with ways back of which something is done."""
    return [name for name in findings.recipe.parts if name != HELD and _runs(findings, name)]


def _values(runs: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    """The budgets, or the shares, that the runs were taken to."""
    return sorted({point[key] for run in runs for point in run["points"] if key in point})


def _at(run: Mapping[str, Any], way: str, key: str, value: float) -> Mapping[str, float] | None:
    """The figures of a way at a budget or a share; None where it had nothing to do."""
    return next((point for point in run["points"] if point["way"] == way and point.get(key) == value), None)


def _all_at(runs: Sequence[Mapping[str, Any]], way: str, key: str, value: float) -> list[Mapping[str, float]]:
    return [point for run in runs if (point := _at(run, way, key, value)) is not None]


def gain(run: Mapping[str, Any], point: Mapping[str, float]) -> float | None:
    """The new task's accuracy above that of averaging at the same rise; None below all of averaging's."""
    averaged = [p for p in (*run["points"], {"way": AVERAGING, **run["trained"]}) if p["way"] == AVERAGING]
    beside = at_rise([(p["rise"], p["new"]) for p in averaged if p["rise"] > 0], point["rise"])
    return None if beside is None else point["new"] - beside


def _gains(runs: Sequence[Mapping[str, Any]], way: str, budget: float) -> Estimate | None:
    found = [g for run in runs if (p := _at(run, way, "budget", budget)) and (g := gain(run, p)) is not None]
    return Estimate.of(found) if found else None


def _of(figures: Sequence[Mapping[str, float]], name: str) -> Estimate:
    return Estimate.of([one[name] for one in figures])


# --- as it is told


def _table(findings: RecipeFindings) -> str:
    rows = [["network", "way", "budget", "rise, nats", "old %", "new %", "gain, points", "seeds"]]
    rows.append([":--"] * 2 + ["--:"] * 6)
    for name in _settings(findings):
        runs = _runs(findings, name)
        rows += [_row(name, f"as {label}", "", [run[key] for run in runs], None) for key, label in _ENDS.items()]
        for budget in _values(runs, "budget"):
            for way in (AVERAGING, ALONE, INFORMED):
                if figures := _all_at(runs, way, "budget", budget):
                    over = None if way == AVERAGING else _gains(runs, way, budget)
                    rows.append(_row(name, way, f"{budget:g}", figures, over))
    held = _runs(findings, HELD)
    rows += [_row(ENCODER, "EWC, then close", "0.02", [run["closed"] for run in held], None)] if held else []
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


_ENDS = {"ready": "it was", "trained": "trained"}


def _row(name: str, way: str, budget: str, figures: Sequence[Mapping[str, float]], over: Estimate | None) -> list[str]:
    rise = mean(one["rise"] for one in figures)
    skills = [percent(_of(figures, skill)) for skill in ("old", "new")]
    return [name, way, budget, f"{rise:.3g}", *skills, "" if over is None else points(over), str(len(figures))]


def _conclude(findings: RecipeFindings) -> str:
    told = [_conclusion(name, _runs(findings, name)) for name in _settings(findings)]
    held = _runs(findings, HELD)
    plain = _runs(findings, ENCODER)
    return " ".join(told + ([_of_held(held, plain)] if held and plain else []))


def _conclusion(name: str, runs: Sequence[Mapping[str, Any]]) -> str:
    budgets, told = _values(runs, "budget"), []
    for way in (ALONE, INFORMED):
        found = {budget: over for budget in budgets if (over := _gains(runs, way, budget)) is not None}
        if found:
            best, least = (choose(found, key=lambda budget: found[budget].mean) for choose in (max, min))
            worse = [b for b, over in found.items() if over.mean + (over.half_width or 0.0) < 0]
            never = "never worse than averaging by more than the noise" if not worse else f"worse at {_list(worse)}"
            told.append(
                f"{way} gains from {points(found[least])} points (budget {least:g}) to {points(found[best])} (budget "
                f"{best:g}) over averaging at the same rise, {never}"
            )
    return f"{name[0].upper()}{name[1:]}: {'; '.join(told)}."


def _list(budgets: Sequence[float]) -> str:
    return ", ".join(f"{budget:g}" for budget in budgets)


def kept_of(held: Mapping[str, Any], plain: Mapping[str, Any]) -> float:
    """The share of the similarity lost by plain training that a held one keeps."""
    return 1 - (held["ready"]["old"] - held["closed"]["old"]) / (plain["ready"]["old"] - plain["trained"]["old"])


def _of_held(held: Sequence[Mapping[str, Any]], plain: Sequence[Mapping[str, Any]]) -> str:
    shares = [kept_of(one, other) for one, other in zip(held, plain)]
    stands = "it does" if mean(shares) >= KEPT else "it does not"
    after, trained = ([run[key] for run in runs] for runs, key in ((held, "closed"), (plain, "trained")))
    return (
        f"Held by `EWC(encoder)`, nothing tuned, the encoder keeps {percent(Estimate.of(shares))}% of the correlation "
        f"that plain training loses (asked for: {KEPT:.0%}, {stands}), and learns intents to "
        f"{percent(_of(after, 'new'))}%, where plain training has {percent(_of(trained, 'new'))}%."
    )


# --- as it is drawn


def _draw(findings: RecipeFindings, folder: Path) -> list[Path]:
    pictures = []
    for name in _settings(findings):
        runs = _runs(findings, name)
        pictures.append(
            curves(
                _lines(runs),
                folder / f"{name.replace(' ', '-')}.png",
                title=f"{name[0].upper()}{name[1:]}: what the old still loses, and what the new keeps",
                remark="mean and 95% interval over seeds; as trained at the right end of every line",
                across="rise of the old loss on test examples, nats",
                up="test accuracy on the new task",
                logarithmic=True,
            )
        )
    return pictures


def _lines(runs: Sequence[Mapping[str, Any]]) -> list[Series]:
    lines = []
    for way in (INFORMED, ALONE, AVERAGING):
        held = [_all_at(runs, way, key, value) for key in ("budget", "share") for value in _values(runs, key)]
        held = [[run["trained"] for run in runs], *(figures for figures in held if figures)]
        held.sort(key=lambda figures: _of(figures, "rise").mean)
        places = [_of(figures, "rise").mean for figures in held]
        lines.append(Series(way, places, [_of(figures, "new") for figures in held], way == AVERAGING))
    return lines
