"""The training loop: `none` against a bare loop in torch, and the held methods against `none`.

An epoch is what the protocol of permuted MNIST has: the net 784-300-150-10, batches of 100, SGD. The bare loop takes
the same steps to the same bits, which is checked. Held methods learn a second task, with the first one retained.
Then whole runs, with their evaluations, importances and checkpoints.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.tables import Part
from benchmarks.timing import Timing, clock, compare
from holdfast.lab.config import configure
from holdfast.lab.methods import Setting, build_learner, method_named
from holdfast.lab.running import run
from holdfast.lab.streams.catalog import build_stream
from holdfast.lab.training import build_optimizer, mlp, train_epoch

HELD = ("ewc-fisher", "ewc-mas", "ewc-signal", "ewc-si", "wva-signal")


def bare_epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, targets: Tensor, *, batch_size: int, seed: int
) -> None:
    """The steps of `train_epoch`, as one writes them without a library."""
    model.train()
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
    for chosen in order.split(batch_size):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs[chosen]), targets[chosen])
        loss.backward()
        optimizer.step()


def measure(*, quick: bool = False, workloads: Sequence[str] | None = None) -> Iterator[Part]:
    """Epochs, then whole runs; nothing where certain workloads are asked for."""
    if not workloads:
        yield _measured(quick=quick)


def _measured(*, quick: bool) -> Part:
    stream, num_tasks = ("permuted-digits", 2) if quick else ("permuted-mnist", 10)
    config = configure(stream, "none")
    task = build_stream(stream, num_tasks=2)[1]
    train, held_out = task.train, task.validation
    pixels, batch_size = task.train.inputs[0].numel(), config.batch_size

    def net() -> nn.Sequential:
        return mlp(pixels, config.hidden, 10, slope=config.slope)

    def ours(method: str) -> tuple[nn.Module, Callable[[], object]]:
        chosen = configure(stream, method, **({"si_variant": "zenke"} if method.endswith("-si") else {}))
        model = net()
        learner = build_learner(method_named(method), model, Setting((tuple(range(10)),)), chosen.options)
        optimizer = build_optimizer("sgd", model.parameters(), lr=chosen.lr)
        learner.attach(optimizer)
        if method != "none":  # a path to measure, for SI
            train_epoch(model, optimizer, train.take(batch_size), batch_size=batch_size, seed=0)
        learner.close_task(held_out.take(200), classes=None, task=0)
        return model, lambda: train_epoch(model, optimizer, train, batch_size=batch_size, seed=1)

    def bare() -> tuple[nn.Module, Callable[[], object]]:
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=config.lr)
        return model, lambda: bare_epoch(model, optimizer, train.inputs, train.targets, batch_size=batch_size, seed=1)

    (bare_model, bare_step), (plain_model, plain_step) = bare(), ours("none")
    plain = compare({"bare loop": bare_step, "none": plain_step}, rounds=3 if quick else 15)
    for one, other in zip(bare_model.parameters(), plain_model.parameters(), strict=True):
        if not torch.equal(one, other):
            raise SystemExit("loop: the bare loop and train_epoch did not take the same steps; no comparison.")
    held = compare({"none": ours("none")[1], **{name: ours(name)[1] for name in HELD}}, rounds=3 if quick else 7)
    rows = [
        _row("an epoch of `none`", "the bare loop", plain["none"], target="1.3"),
        *(
            _row(
                f"an epoch of `{name}`",
                "an epoch of `none`",
                held[name],
                target="1.5" if name == "ewc-fisher" else None,
            )
            for name in HELD
        ),
        *_whole_runs(stream, num_tasks, bare_step, quick=quick),
    ]
    notes = [
        f"Stream {stream}: {len(train):,} training examples a task, batches of {batch_size}, net "
        f"{pixels}-{'-'.join(map(str, config.hidden))}-10, SGD.",
        "Ratios of epochs are medians over rounds in which the variants take turns, with their quartiles; whole runs "
        "are timed once.",
    ]
    return Part(stream, f"{stream}, {num_tasks} tasks", notes, rows)


def _whole_runs(stream: str, num_tasks: int, bare_step: Callable[[], object], *, quick: bool) -> list[dict]:
    settings = {"num_tasks": num_tasks, **({"epochs": 2} if quick else {})}
    epochs = num_tasks * configure(stream, "none", **settings).epochs
    now = clock()
    seconds = {}
    for name in ("none", "ewc-fisher"):
        with tempfile.TemporaryDirectory() as folder:
            began = now()
            run(configure(stream, name, **settings), output=folder)
            seconds[name] = now() - began
    began = now()
    for _ in range(epochs):
        bare_step()
    bare = now() - began
    whole = f"a run of {num_tasks} tasks"
    return [
        {
            "what": f"{whole}, `none`, with evaluations and files",
            "against": f"{epochs} epochs of the bare loop",
            "seconds": seconds["none"],
            "ratio": seconds["none"] / bare,
            "target": "1.3",
        },
        {
            "what": f"{whole}, `ewc-fisher`, with its importances",
            "against": f"{whole}, `none`",
            "seconds": seconds["ewc-fisher"],
            "ratio": seconds["ewc-fisher"] / seconds["none"],
            "target": "1.5 without them",
        },
    ]


def _row(what: str, against: str, timing: Timing, *, target: str | None) -> dict:
    return {"what": what, "against": against, "seconds": timing.seconds, "ratio": timing.ratio, "target": target}
