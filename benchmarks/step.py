"""A held training step: what EWC and WVA add to forward, backward and step, beside the usual ways.

*whole step* is over the plain step of the same optimizer in the same round, a median with its quartiles. *pull alone*
is what is added to `optimizer.step()` itself, or done before it; a penalty in the loss has its cost elsewhere. One task
is retained, with importances drawn at random, since the time does not hang on their values; Kronecker factors are those
of one batch. Medians leave out the one step in a hundred that is measured for the keeper's report.

The last part is about many tasks: the step after ten retained tasks over that after one, for each rule of accumulation.
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice

from benchmarks.holds import (
    HeldModel,
    Hold,
    OptimizerName,
    held_bytes,
    injected,
    kept,
    kept_by_factors,
    penalised,
    plain,
)
from benchmarks.memory import MB
from benchmarks.tables import Part
from benchmarks.timing import Spread, clock, in_turn, ratios
from benchmarks.workloads import WORKLOADS, Batch, Workload, nll
from holdfast import EWC, WVA, Decayed
from holdfast.curvature import Accumulate

NETS = {"mlp-small": 10, "mlp-large": 4, "gpt-128": 1}
"""Workload -> steps of a round."""

TARGETS = {("mlp-large", "adam"): 1.10, ("gpt-128", "adam"): 1.05}
"""Of EWC and WVA."""

MANY, MANY_ON = 10, "mlp-small"
"""Tasks, and the workload they are retained on."""

PLAIN = "plain"
HOLDS: dict[str, Hold] = {
    PLAIN: plain,
    "EWC": kept(lambda model: EWC(model, strength=1.0)),
    "WVA": kept(lambda model: WVA(model, strength=100.0)),
    "EWC, budget": kept(lambda model: EWC(model, budget=0.01)),
    "EWC, K-FAC": kept_by_factors(every=1),
    "EWC, K-FAC every 4": kept_by_factors(every=4),
    "EWC, K-FAC every 16": kept_by_factors(every=16),
    "EWC, K-FAC every 64": kept_by_factors(every=64),
    "penalty in the loss": penalised(1),
    "penalty in the loss, 5 separate tasks": penalised(5),
    "added to each gradient in a loop": injected,
}
SECONDS, SECONDS_A_RULE = 15.0, 3.0
"""No further round is begun after them."""

RULES: tuple[Accumulate, ...] = ("sum", "mean", Decayed(0.9), "max", "per_task")
BY_RULE: dict[str, Callable[[int], Hold]] = {
    **{
        f"EWC, {rule}": lambda count, rule=rule: kept(
            lambda model: EWC(model, strength=1.0, accumulate=rule), num_tasks=count
        )
        for rule in RULES
    },
    "WVA, sum": lambda count: kept(lambda model: WVA(model, strength=100.0), num_tasks=count),
    "EWC, K-FAC, sum": lambda count: kept_by_factors(every=1, num_tasks=count),
    "EWC, K-FAC, per_task": lambda count: kept_by_factors(every=1, accumulate="per_task", num_tasks=count),
}
"""Name -> number of tasks -> how they are held."""


@dataclass(frozen=True)
class Taken:
    """Seconds of some steps: in all, and of `optimizer.step()` with what comes before it."""

    whole: float
    step: float


def measure(*, quick: bool = False, workloads: Sequence[str] | None = None) -> Iterator[Part]:
    """Each network under SGD and Adam, then many tasks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of layers that have a diagonal instead of factors
        for name in [name for name in NETS if name in (workloads or ([MANY_ON] if quick else NETS))]:
            workload = WORKLOADS[name].trial() if quick else WORKLOADS[name]
            for optimizer in ("sgd", "adam"):
                yield one_task(workload, optimizer, num_steps=NETS[name], quick=quick)
        if not workloads or MANY_ON in workloads:
            workload = WORKLOADS[MANY_ON]
            yield many_tasks(workload.trial() if quick else workload, num_steps=NETS[MANY_ON], quick=quick)


def one_task(workload: Workload, optimizer: OptimizerName, *, num_steps: int, quick: bool) -> Part:
    """Every way of holding one task."""
    held = {name: hold(workload, optimizer) for name, hold in HOLDS.items()}
    taken = timed(held, workload, num_steps, quick=quick, within=SECONDS)
    target = TARGETS.get((workload.name, optimizer))
    rows = [
        {
            "step": name,
            "whole step": whole_ratios(steps, taken[PLAIN]),
            "target": target if name in ("EWC", "WVA") else None,
            "ms a step": 1e3 * statistics.median(step.whole for step in steps),
            "pull alone, ms": None if name == PLAIN or "loss" in name else pull_ms(steps, taken[PLAIN]),
        }
        for name, steps in taken.items()
    ]
    title = f"{workload.title}, {'Adam' if optimizer == 'adam' else 'SGD'}"
    return Part(f"{workload.name}-{optimizer}", title, [_note(workload, taken, num_steps)], rows)


def many_tasks(workload: Workload, *, num_steps: int, quick: bool) -> Part:
    """The step after many retained tasks over that after one, under Adam."""
    rows = []
    for name, build in BY_RULE.items():
        held = {PLAIN: plain(workload, "adam"), **{str(count): build(count)(workload, "adam") for count in (1, MANY)}}
        taken = timed(held, workload, num_steps, quick=quick, within=SECONDS_A_RULE)
        one, many = (held[str(count)].keeper for count in (1, MANY))
        assert one is not None
        assert many is not None
        rows.append(
            {
                "held by": name,
                f"step after {MANY} tasks over that after 1": whole_ratios(taken[str(MANY)], taken["1"]),
                "pull after 1, ms": pull_ms(taken["1"], taken[PLAIN]),
                f"pull after {MANY}, ms": pull_ms(taken[str(MANY)], taken[PLAIN]),
                "held after 1, MB": held_bytes(one) / MB,
                f"held after {MANY}, MB": held_bytes(many) / MB,
            }
        )
    return Part("tasks", f"Many tasks: {workload.title}, Adam", [_note(workload, taken, num_steps)], rows)


def timed(
    held: Mapping[str, HeldModel], workload: Workload, num_steps: int, *, quick: bool, within: float
) -> dict[str, list[Taken]]:
    """For each way, and each round, the time of a step; of what pulls now and then over whole rhythms."""
    batches = workload.batches(num_steps)
    calls = {}
    for name, way in held.items():
        every = way.keeper.every if isinstance(way.keeper, EWC) else 1
        every = every if isinstance(every, int) else 1
        count = every * math.ceil(num_steps / every)
        calls[name] = partial(take_steps, way, list(islice(cycle(batches), count)))
    return in_turn(calls, rounds=1 if quick else 41, within=within)


def take_steps(held: HeldModel, batches: Sequence[Batch]) -> Taken:
    """A step for each batch; the mean time of one."""
    now, in_steps = clock(), 0.0
    began = now()
    for inputs, targets in batches:
        held.optimizer.zero_grad()
        loss = nll(held.model(*inputs), targets).mean()
        if held.penalty is not None:
            loss = loss + held.penalty()
        loss.backward()
        step_began = now()
        if held.inject is not None:
            held.inject()
        held.optimizer.step()
        in_steps += now() - step_began
    return Taken((now() - began) / len(batches), in_steps / len(batches))


def whole_ratios(steps: Sequence[Taken], base: Sequence[Taken]) -> Spread:
    """Of whole steps over those of the base in the same round."""
    return ratios([step.whole for step in steps], [step.whole for step in base])


def pull_ms(steps: Sequence[Taken], base: Sequence[Taken]) -> float:
    """Milliseconds that `optimizer.step()` and what comes before it take more than in the base, the median."""
    return 1e3 * statistics.median(one.step - other.step for one, other in zip(steps, base, strict=True))


def _note(workload: Workload, taken: Mapping[str, Sequence[Taken]], num_steps: int) -> str:
    rounds = f"{len(taken[PLAIN])} rounds of {num_steps} steps or, where pulls are rarer, of those to the next"
    return f"Batches of {workload.batch_size}; {rounds}."
