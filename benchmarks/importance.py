"""The estimators: time and memory against one plain forward and backward pass, beside the usual ways.

The plain pass is what training does to the same batches without the step. Variants take turns within a round; the
ratio to the plain pass of the same round is given as a median with its quartiles. *plain passes* is a call over 40
batches, with the study of the first one; where fewer batches were timed it is computed from the first and the later
ones. *later batches* leaves the first one out. The usual ways have no such start: they are timed on one batch, those of
one example at a time on a few examples, and *ours faster* is how much longer they take than our estimator of the same
quantity.

Memory is the largest amount in use during a call over two batches, in a fresh process, over what the model, the data
and the libraries take (Linux: the kernel's high-water mark VmHWM, reset after a first call on one batch; the allocator
gives every free block back at once). *above plain* and *of plain's peak* compare with the plain pass, gradients
included.

*error* is the norm of the difference over the norm, of all parameters together, from one example at a time in float64
plain torch. Empty: drawn labels, or an estimator whose truth is tested elsewhere.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks import memory
from benchmarks.encoder import sentences
from benchmarks.rivals import vmapped
from benchmarks.tables import Part
from benchmarks.timing import Passage, in_turn, passage, ratios, seconds
from benchmarks.variants import PLAIN, Variant, all_variants, truths
from benchmarks.workloads import WORKLOADS, Workload, part, singles

CALL = 40
"""Batches of the call whose time is given."""

TRIED = ("mlp-small", "convnet", "gpt-32")
"""What a trial runs on, unless it is told."""

ROUNDS = 3
"""Of all variants together."""

CLOSE_RACE = 25
"""Rounds of the plain pass and those that must come near it, alone."""

SECONDS = 60.0
"""No further round of the close race is begun after them."""

WRONG = 1e-3
"""A larger error is no rounding."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Check:
    """What a variant gives on a few examples.

    Attributes:
        failure: why it gives nothing; None where it works.
        error: how far it is from the truth; None where it is not compared.
    """

    failure: str | None = None
    error: str | None = None


def measure(*, quick: bool = False, workloads: Sequence[str] | None = None) -> Iterator[Part]:
    """A part of the table for each workload."""
    for name in workloads or (TRIED if quick else WORKLOADS):
        workload = WORKLOADS[name].trial() if quick else WORKLOADS[name]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what our own estimators warn of goes into the notes
            yield measured(workload, quick=quick)


def measured(workload: Workload, *, quick: bool) -> Part:
    """All variants on one workload."""
    try:
        workload.model()
    except ImportError as error:
        note = f"Not measured: {error}. Install the extra `bench`."
        return Part(workload.name, workload.title, [note], [])
    chunk = best_chunk(workload)
    variants = all_variants(workload, chunk=chunk)
    checks, warned = checked(workload, variants)
    sound = {name: variant for name, variant in variants.items() if checks[name].failure is None}
    times = timed(workload, sound, rounds=1 if quick else ROUNDS)
    together = {name: statistics.median(taken.of(CALL) / CALL for taken in found) for name, found in times.items()}
    plain = dict.fromkeys(times, times[PLAIN])
    close = {name: variant for name, variant in sound.items() if name == PLAIN or _near(variant)}
    again = timed(workload, close, rounds=1 if quick else CLOSE_RACE, within=SECONDS)
    times |= again
    plain |= dict.fromkeys(again, again[PLAIN])
    peaks = peaks_of(workload, list(sound)[:2] if quick else list(sound), chunk=chunk)
    calls = {name: [taken.of(CALL) / CALL for taken in passages] for name, passages in times.items()}
    ours = {variant.quantity: together[name] for name, variant in sound.items() if variant.ours and variant.quantity}
    rows = []
    for name, variant in variants.items():
        row: Row = {"what": name, "plain passes": checks[name].failure, "later batches": None}
        row |= {"target": variant.target, "peak MB": None, "above plain": None, "of plain's peak": None}
        row |= {"error": checks[name].error, "ours faster": None}
        if name in sound:
            row["plain passes"] = ratios(calls[name], [taken.of(CALL) / CALL for taken in plain[name]])
            row["later batches"] = ratios([p.later for p in times[name]], [p.later for p in plain[name]])
        if name in peaks:
            row |= _memory(peaks[name], peaks[PLAIN])
        if name in sound and not variant.ours and variant.quantity in ours:
            row["ours faster"] = together[name] / ours[variant.quantity]
        rows.append(row)
    data = f" Data: {sentences()}." if workload.name == "encoder" else ""
    note = (
        f"Batches of {workload.batch_size}, {workload.num_batches} of them in a timed call; {len(times[PLAIN])} "
        f"rounds, {1 if quick else ROUNDS} of what has no target near the plain pass."
        f"{data} A plain pass takes {1e3 * statistics.median(calls[PLAIN]) * workload.batch_size:.1f} ms a batch."
    )
    return Part(workload.name, workload.title, [note, *warned], rows)


def _near(variant: Variant) -> bool:
    return variant.target is not None and variant.target < 3


def best_chunk(workload: Workload) -> int:
    """The number of examples at which vmap is fastest; all of them where it fails."""
    model, batches = workload.model(), workload.batches(1)
    found = {}
    for chunk in sorted({min(size, workload.batch_size) for size in (4, 16, 64, 128)}):
        try:
            found[chunk] = seconds(lambda: vmapped(model, batches, chunk=chunk))  # noqa: B023
        except Exception:  # whatever torch.func finds to say, it says again when its result is checked
            return workload.batch_size
    return min(found, key=lambda chunk: found[chunk])


def checked(workload: Workload, variants: Mapping[str, Variant]) -> tuple[dict[str, Check], list[str]]:
    """How each variant does on a few examples, and what our own warned of."""
    model = workload.model()
    batch = part(workload.batches(1)[0], 0, workload.num_checked)
    expected = dict(truths(workload, workload.model(), batch))
    checks: dict[str, Check] = {}
    warned: list[str] = []
    for name, variant in variants.items():
        batches = singles(batch, workload.num_checked) if variant.alone else [batch]
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                found = variant.call(model, batches)
        except ImportError as error:
            checks[name] = Check(failure=f"not installed: {error}")
        except Exception as error:  # a table of what others do must survive it
            checks[name] = Check(failure=f"fails: {_short(error)}")
        else:
            warned += [f"Warning: {warning.message}" for warning in caught if variant.ours]
            checks[name] = Check(error=verdict(found, expected[variant.quantity]) if variant.quantity else None)
    return checks, list(dict.fromkeys(warned))


def verdict(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """How far the result is from the truth, and what it lacks."""
    there = [name for name in expected if name in found]
    square = sum(float((found[name].double() - expected[name]).square().sum()) for name in there)
    error = (square / sum(float(expected[name].square().sum()) for name in there)) ** 0.5
    said = f"wrong by {100 * error:.2g}%" if error > WRONG else f"{error:.0e}"
    lacks = len(expected) - len(there)
    return f"{said}; lacks {lacks} of {len(expected)} parameters" if lacks else said


def timed(
    workload: Workload, variants: Mapping[str, Variant], *, rounds: int, within: float | None = None
) -> dict[str, list[Passage]]:
    """For each variant, and each round, the seconds of an example."""
    model, some = workload.model(), workload.batches(workload.num_batches)

    def one(variant: Variant) -> Passage:
        batches = variant.batches(some)
        taken = passage(lambda batches: variant.call(model, batches), batches)
        size = len(batches[0][1])
        if not variant.ours:
            taken = Passage(*[taken.of(len(batches)) / len(batches)] * 2)
        return Passage(taken.first / size, taken.later / size)

    calls = {name: (lambda variant=variant: one(variant)) for name, variant in variants.items()}
    return in_turn(calls, rounds=rounds, warmup=0, within=within)


def peaks_of(workload: Workload, names: Sequence[str], *, chunk: int) -> dict[str, float]:
    """MB of each variant, each in a process of its own; nothing where this system cannot tell."""
    if not memory.measurable():
        return {}
    preload = ["torch", "benchmarks.importance"]
    return {name: memory.in_fresh_process(peak_of, workload, name, chunk, preload=preload) for name in names}


def peak_of(workload: Workload, name: str, chunk: int) -> float:
    """MB of one variant, in this process."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    variant, model = all_variants(workload, chunk=chunk)[name], workload.model()
    some = workload.batches(2)
    batches = variant.batches(some) if variant.alone else some
    return memory.peak(lambda: variant.call(model, batches), warmup=lambda: variant.call(model, batches[:1]))


def _memory(mb: float, plain: float) -> Row:
    return {"peak MB": mb, "above plain": mb - plain, "of plain's peak": mb / plain if plain else None}


def _short(error: Exception) -> str:
    text = str(error).strip().splitlines()[0] if str(error).strip() else ""
    return f"{type(error).__name__}: {text if len(text) <= 80 else text[:77] + '...'}"
