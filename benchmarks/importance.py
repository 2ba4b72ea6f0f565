"""The estimators: each against one plain forward and backward pass, and against one example at a time.

On two multilayer perceptrons, batches of 128 random images. The plain pass is what training does to the same batches
without the step. One example at a time is plain torch: a forward pass for each example, a backward pass for each
number of its whose gradient is wanted; fewer examples, the time of one taken.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import holdfast as hf
from benchmarks.tables import Table
from benchmarks.timing import compare
from holdfast.streams.examples import Examples
from holdfast.training import mlp

NETS = ((300, 150), (1000, 1000))
BATCH = 128

Rows = Callable[[Tensor, Tensor], Tensor]
"""Outputs [1, C] and target [1] -> the numbers [K] whose gradients are wanted."""


def measure(*, quick: bool = False) -> Table:
    """Every estimator on every net."""
    num_batches, few, rounds = (2, 4, 2) if quick else (10, 64, 9)
    rows = []
    for hidden in NETS:
        model = mlp(784, hidden, 10, slope=0.2)
        generator = torch.Generator().manual_seed(0)
        count = num_batches * BATCH
        images, labels = torch.rand(count, 784, generator=generator), torch.randint(10, (count,), generator=generator)
        data = Examples(images, labels)
        variants: dict[str, Callable[[], object]] = {"plain forward and backward": lambda: plain_pass(model, data)}  # noqa: B023
        variants |= {name: lambda f=f: f(model, list(data.batches(BATCH))) for name, f in ESTIMATORS.items()}  # noqa: B023
        together = compare(variants, rounds=rounds)
        singly = compare(
            {name: lambda f=f, k=k: one_at_a_time(model, data.take(few), f, k) for name, (f, k) in SINGLY.items()},  # noqa: B023
            rounds=max(2, rounds // 3),
        )
        for name, timing in together.items():
            each = 1e6 * timing.seconds / len(data)
            alone = 1e6 * singly[name].seconds / few if name in singly else None
            rows.append(
                {
                    "net": f"784-{'-'.join(map(str, hidden))}-10",
                    "what": name,
                    "µs an example": each,
                    "plain passes": timing.spread,
                    "µs, one at a time": alone,
                    "times faster": None if alone is None else alone / each,
                }
            )
    notes = [
        f"{num_batches * BATCH:,} examples in batches of {BATCH}, 10 classes; {rounds} rounds in turn, medians and "
        "quartiles of the ratios within a round.",
    ]
    return Table("Importances", notes, rows, quick=quick)


ESTIMATORS: dict[str, Callable[[nn.Module, list], object]] = {
    "fisher, exact": lambda model, data: hf.fisher(model, data),
    "fisher, sampled": lambda model, data: hf.fisher(model, data, kind="sampled"),
    "fisher, empirical": lambda model, data: hf.fisher(model, data, kind="empirical"),
    "fisher, batched": lambda model, data: hf.fisher(model, data, kind="batched"),
    "mas": lambda model, data: hf.mas(model, data),
    "mas, batched": lambda model, data: hf.mas(model, data, batched=True),
    "mas, local": lambda model, data: hf.mas(model, data, local=True),
    "signal": lambda model, data: hf.signal(model, data),
    "taylor": lambda model, data: hf.taylor(model, data),
}


def _exact(outputs: Tensor, _: Tensor) -> Tensor:
    log_p = outputs.log_softmax(1)[0]
    return (0.5 * log_p).exp().detach() * log_p


def _sampled(outputs: Tensor, _: Tensor) -> Tensor:
    return F.cross_entropy(outputs, torch.multinomial(outputs.detach().softmax(1), 1)[:, 0]).unsqueeze(0)


def _empirical(outputs: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(outputs, target).unsqueeze(0)


def _mas(outputs: Tensor, _: Tensor) -> Tensor:
    return outputs.square().sum().unsqueeze(0)


SINGLY: dict[str, tuple[Rows, Callable[[Tensor], Tensor]]] = {
    "fisher, exact": (_exact, torch.square),
    "fisher, sampled": (_sampled, torch.square),
    "fisher, empirical": (_empirical, torch.square),
    "mas": (_mas, torch.abs),
    "taylor": (_empirical, torch.abs),
}


def plain_pass(model: nn.Module, data: Examples) -> None:
    """What training does to each batch, without the step."""
    for inputs, targets in data.batches(BATCH):
        model.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
    model.zero_grad()


def one_at_a_time(model: nn.Module, data: Examples, rows: Rows, phi: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Sums of phi(gradient) over examples and rows, as one writes it first."""
    parameters = list(model.parameters())
    sums = [torch.zeros_like(parameter) for parameter in parameters]
    for inputs, targets in data.batches(1):
        values = rows(model(inputs), targets)
        for number, value in enumerate(values):
            gradients = torch.autograd.grad(value, parameters, retain_graph=number + 1 < len(values))
            for total, gradient in zip(sums, gradients, strict=True):
                total += phi(gradient)
    return sums
