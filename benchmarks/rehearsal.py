"""Rehearsal at a share of one batch in ten: what it adds to the time and memory of training.

*time* is that of ten steps of AdamW with one rehearsed over that of ten without, in the same round, a median with its
quartiles. The past is of batches as large as the new ones, with the network's old answers. *memory* is what is in use
at most during such ten steps with weights, gradients and moments, over the same of plain training, each in a fresh
process; the past itself, which stays where it is, is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import nn

import holdfast as hf
from benchmarks import memory
from benchmarks.tables import Part
from benchmarks.timing import compare
from benchmarks.workloads import WORKLOADS, Batch, Workload, nll

NETS = ("mlp-large", "convnet", "gpt-32", "gpt-128")
SHARE, STEPS, PAST = 0.1, 10, 4
TARGET_TIME, TARGET_MEMORY = 1.12, 1.05
SECONDS = 60.0


def measure(*, quick: bool = False, workloads: Sequence[str] | None = None) -> Iterator[Part]:
    """One table of all networks."""
    names = [name for name in NETS if name in (workloads or (NETS[:1] if quick else NETS))]
    if names:
        rows = [_row(WORKLOADS[name].trial() if quick else WORKLOADS[name], quick=quick) for name in names]
        note = f"Share {SHARE}, {PAST} batches of the past; targets {TARGET_TIME} and {TARGET_MEMORY}."
        yield Part("share", "One batch in ten is of the past", [note], rows)


def _row(workload: Workload, *, quick: bool) -> dict[str, object]:
    calls = {name: _training(workload, share)[1] for name, share in (("plain", None), ("rehearsed", SHARE))}
    taken = compare(calls, rounds=1 if quick else 15, within=SECONDS)
    preload = ["torch", "benchmarks.workloads"]
    peaks = [memory.in_fresh_process(_peak, workload.name, share, quick, preload=preload) for share in (None, SHARE)]
    return {
        "network": workload.title,
        "ms a step, plain": 1e3 * taken["plain"].seconds / STEPS,
        "time": taken["rehearsed"].ratio,
        "MB, plain": peaks[0],
        "memory": peaks[1] / peaks[0],
    }


def _training(workload: Workload, share: float | None) -> tuple[nn.Module, Callable[[], None]]:
    """A network, and ten steps of it on one batch."""
    model = workload.model().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    (batch, *past) = workload.batches(1 + PAST)
    if share is not None:
        answers = hf.probes_of(model, past, num_examples=None)
        hf.Rehearsal(model, answers, share=share).attach(optimizer)
    return model, partial(_steps, model, optimizer, batch)


def _steps(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    inputs, targets = batch
    for _ in range(STEPS):
        optimizer.zero_grad()
        nll(model(*inputs), targets).mean().backward()
        optimizer.step()


def _peak(name: str, share: float | None, quick: bool) -> float:
    """MB of ten steps at most, with weights, gradients and moments; in this process, for good."""
    torch.set_num_threads(1)
    workload = WORKLOADS[name].trial() if quick else WORKLOADS[name]
    model, call = _training(workload, share)
    most = memory.peak(call, warmup=call)
    return most + 4 * sum(parameter.nbytes for parameter in model.parameters()) / memory.MB
