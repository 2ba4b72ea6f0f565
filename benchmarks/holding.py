"""Holding a large model in little memory: what each form takes, what it adds to a step, and what it changes.

*Memory* is over weights, gradients and Adam's state of a GPT of 100 million float32 weights, 1.00 being the size of its
weights. *held* counts what is kept from step to step with all that comes with it, as the process' own memory has it;
*in a step* adds the most that is in use at any moment of a step. The optimizer is the fused Adam, which needs no
memory of its own in a step. Anchors by reference are in a file on disk.

*The step* is the processor's time that a held step takes more than a plain one, over forward, backward and step.
Forward and backward are of one small batch: with a larger one the share is smaller.

*What it changes* is measured where every weight can be compared: a small net learns handwritten digits, then the same
with their pixels in another order, held by EWC with the exact Fisher under Adam.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.holds import drawn, held_bytes
from benchmarks.memory import MB, give_back_at_once, in_fresh_process, in_use, measurable, peak
from benchmarks.nets import GPT
from benchmarks.tables import Part
from benchmarks.timing import Spread, clock, spread
from benchmarks.workloads import draw_tokens
from holdfast import EWC, WVA, fisher
from holdfast.lab.streams.catalog import build_stream
from holdfast.lab.training import accuracy, mlp, train_epoch
from holdfast.retention import Keeper

SIZES = {"vocabulary": 37_888, "width": 768, "num_layers": 10, "num_heads": 12, "length": 256}
"""Of the GPT: 100.2 million weights."""

TINY = {"vocabulary": 512, "width": 32, "num_layers": 1, "num_heads": 2, "length": 16}
BATCH = 2
"""Sequences of a batch."""

REFERENCE = "anchors by reference"
_EWC = partial(EWC, strength=1.0)
_INT8: dict[str, Any] = {"importance_dtype": "int8"}


@dataclass(frozen=True)
class Form:
    """A keeper to be measured.

    Attributes:
        build: (model, options that only a measurement knows) -> the keeper.
        memory: most that it may take, in sizes of the weights; None for no target.
        overhead: most that it may add to a step, as a share; None for no target.
    """

    build: Callable[..., Keeper]
    memory: float | None = None
    overhead: float | None = 0.05


FORMS = {
    "EWC": Form(_EWC),
    "EWC, bfloat16": Form(partial(_EWC, importance_dtype="bfloat16", anchor_dtype="bfloat16")),
    "EWC, 8-bit importances, 16-bit anchors": Form(partial(_EWC, anchor_dtype="int16", **_INT8), 0.76),
    "EWC, 8-bit importances, bfloat16 anchors": Form(partial(_EWC, anchor_dtype="bfloat16", **_INT8), 0.76),
    "the same, every 16 steps": Form(partial(_EWC, anchor_dtype="bfloat16", every=16, **_INT8), 0.76, 0.01),
    f"EWC, 8-bit importances, {REFERENCE}": Form(partial(EWC, **_INT8), 0.26),
    "WVA": Form(partial(WVA, strength=100.0)),
    "WVA, 8-bit importances": Form(partial(WVA, strength=100.0, **_INT8), 0.26),
}

CHANGES: dict[str, dict[str, Any]] = {
    "float32": {},
    "importances in bfloat16": {"importance_dtype": "bfloat16"},
    "importances in 8 bits": _INT8,
    "anchors in bfloat16": {"anchor_dtype": "bfloat16"},
    "anchors in 16 bits": {"anchor_dtype": "int16"},
    "8 and 16 bits": {"anchor_dtype": "int16", **_INT8},
    "8 bits and bfloat16": {"anchor_dtype": "bfloat16", **_INT8},
    **{f"every {k} steps": {"every": k} for k in (2, 4, 16, 64)},
    "not held": {"strength": 0.0},
}


def measure(*, quick: bool = False, workloads: Sequence[str] | None = None) -> Iterator[Part]:
    """Memory, step and effect; nothing where certain workloads are asked for."""
    if workloads:
        return
    sizes = TINY if quick else SIZES
    if measurable():
        yield memory(sizes)
    yield step(sizes, quick=quick)
    yield changes(quick=quick)


def memory(sizes: Mapping[str, int]) -> Part:
    """What each form takes, each in a process of its own."""
    rows = []
    for name, form in FORMS.items():
        found = in_fresh_process(_memory_of, name, dict(sizes), preload=["benchmarks.holding"])
        rows.append({"form": name, **found, "target": form.memory})
    return Part("memory", "Memory, in sizes of the weights", [_about(sizes)], rows)


def _memory_of(name: str, sizes: Mapping[str, int]) -> dict[str, float]:
    give_back_at_once()
    _memory_of_one(name, TINY)  # what is loaded at first use is no memory of the model's size
    return _memory_of_one(name, sizes)


def _memory_of_one(name: str, sizes: Mapping[str, int]) -> dict[str, float]:
    model = GPT(**sizes)
    weights = sum(parameter.nbytes for parameter in model.parameters()) / MB
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5, fused=True)
    for parameter in model.parameters():
        parameter.grad = 1e-3 * torch.randn_like(parameter)
    optimizer.step()
    with tempfile.TemporaryDirectory() as folder:
        keeper = _keeper(name, model, Path(folder)).attach(optimizer)
        before = in_use()
        importance = drawn(model, 0)
        retaining = peak(partial(keeper.retain, importance), warmup=lambda: None)
        del importance
        for _ in range(2):  # the first is measured for the keeper's report
            optimizer.step()
        held = in_use() - before
        usual = peak(optimizer.step, warmup=lambda: None)
        keeper.log_every = 1
        reporting = peak(lambda: (optimizer.step(), keeper.report()), warmup=lambda: None)
    return {
        "bytes held": held_bytes(keeper) / MB / weights,
        "held": held / weights,
        "in a step": (held + usual) / weights,
        "in one with a report": (held + reporting) / weights,
        "at retain, beside the importances given": retaining / weights,
    }


def step(sizes: Mapping[str, int], *, quick: bool) -> Part:
    """What each form adds to a step: one model, its keepers in turn."""
    torch.manual_seed(0)
    model = GPT(**sizes)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5)
    (inputs,), targets = draw_tokens(sizes["vocabulary"], sizes["length"], BATCH, torch.Generator().manual_seed(0))

    def pass_() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).backward()

    pass_()
    optimizer.step()
    with tempfile.TemporaryDirectory() as folder:
        keepers: dict[str, Keeper | None] = {"plain": None}
        for name in FORMS:
            keepers[name] = _keeper(name, model, Path(folder))
            keepers[name].retain(drawn(model, 0))
            keepers[name].log_every = 0
        shares: dict[str, list[float]] = {name: [] for name in FORMS}
        seconds: dict[str, list[float]] = {name: [] for name in keepers}
        passes = []
        for _ in range(1 if quick else 7):
            passes.append(_seconds(pass_))
            for name, keeper in keepers.items():
                seconds[name].append(_step_seconds(optimizer, keeper))
            whole = passes[-1] + seconds["plain"][-1]
            for name in FORMS:
                shares[name].append((seconds[name][-1] - seconds["plain"][-1]) / whole)
    rows = [
        {
            "form": name,
            "added to a whole step": _percent(spread(shares[name])),
            "target": f"{form.overhead:.0%}" if form.overhead is not None else None,
            "step of the optimizer, ms": 1e3 * statistics.median(seconds[name]),
        }
        for name, form in FORMS.items()
    ]
    tokens, plain = BATCH * sizes["length"], 1e3 * statistics.median(seconds["plain"])
    note = (
        f"{_about(sizes)} Forward and backward of {tokens} tokens: {1e3 * statistics.median(passes):.0f} ms; Adam's "
        f"own step: {plain:.0f} ms. {len(passes)} rounds; median and quartiles."
    )
    return Part("step", "The step", [note], rows)


def changes(*, quick: bool) -> Part:
    """How far the forms, and a pull at every so many steps, lead away from EWC in float32 at every step."""
    seeds, epochs = (1, 1) if quick else (3, 30)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CHANGES}
    for seed in range(seeds):
        for name, values in _changes_of(seed, epochs=epochs).items():
            found[name].append(values)
    rows = [
        {"form": name, **{key: statistics.mean(run[key] for run in runs) for key in runs[0]}}
        for name, runs in found.items()
    ]
    note = (
        f"MLP 64-300-150-10, {epochs} epochs a task in batches of 64, Adam at 1e-3, strength 10, {seeds} seeds; means. "
        "*apart*: the distance of the final weights from those of float32, over the distance those moved in the "
        "second task. Accuracies are on test data, in %."
    )
    return Part("changes", "What it changes", [note], rows)


def _changes_of(seed: int, *, epochs: int) -> dict[str, dict[str, float]]:
    first, second = build_stream("permuted-digits", num_tasks=2, seed=seed)
    torch.manual_seed(seed)
    start = mlp(64, (300, 150), 10)
    optimizer = torch.optim.Adam(start.parameters(), lr=1e-3)
    for epoch in range(epochs):
        train_epoch(start, optimizer, first.train, batch_size=64, seed=epoch)
    importance = fisher(start, first.train.batches(256))
    learned = {name: value.detach().clone() for name, value in start.named_parameters()}
    found: dict[str, dict[str, float]] = {}
    exact: dict[str, Tensor] = {}
    for name, options in CHANGES.items():
        model = mlp(64, (300, 150), 10)
        model.load_state_dict(start.state_dict())
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        EWC(model, **{"strength": 10.0, "log_every": 0, **options}).attach(optimizer).retain(importance)
        for epoch in range(epochs):
            train_epoch(model, optimizer, second.train, batch_size=64, seed=epoch)
        weights = {key: value.detach() for key, value in model.named_parameters()}
        exact = exact or weights
        found[name] = {
            "apart": _distance(weights, exact) / _distance(exact, learned),
            "old accuracy": 100 * accuracy(model, first.test),
            "new accuracy": 100 * accuracy(model, second.test),
            "old loss, nats": _loss(model, first.test),
        }
    return found


def _keeper(name: str, model: nn.Module, folder: Path) -> Keeper:
    if REFERENCE not in name:
        return FORMS[name].build(model)
    path = folder / "model.safetensors"
    save_file({key: value.detach() for key, value in model.named_parameters()}, path)
    return FORMS[name].build(model, anchors=path)


def _step_seconds(optimizer: torch.optim.Optimizer, keeper: Keeper | None) -> float:
    """Of a step, after one that does not count."""
    every = getattr(keeper, "every", 1)
    if keeper is not None:
        keeper.attach(optimizer)
    for _ in range(every):
        optimizer.step()
    count = max(3, every)
    taken = _seconds(lambda: [optimizer.step() for _ in range(count)]) / count
    if keeper is not None:
        keeper.detach()
    return taken


def _seconds(call: Callable[[], object]) -> float:
    now = clock()
    began = now()
    call()
    return now() - began


def _about(sizes: Mapping[str, int]) -> str:
    weights = sum(parameter.numel() for parameter in GPT(**sizes).parameters())
    return f"GPT of {weights / 1e6:.1f} million weights, width {sizes['width']}, {sizes['num_layers']} layers."


def _percent(found: Spread) -> str:
    return f"{100 * found.median:.1f} % ({100 * found.low:.1f} to {100 * found.high:.1f})"


def _distance(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    return sum(float((first[name] - second[name]).square().sum()) for name in first) ** 0.5


def _loss(model: nn.Module, examples: Any) -> float:
    model.eval()
    with torch.no_grad():
        found = [F.cross_entropy(model(x), y, reduction="sum") for x, y in examples.batches(2000)]
    return float(sum(found)) / len(examples)
