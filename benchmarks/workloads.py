"""What is measured on: networks with data of their size."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import encoder, nets
from holdfast.lab.training import mlp

Batch = tuple[tuple[Tensor, ...], Tensor]
"""Arguments of the model, and class numbers [B] or, of a sequence, [B, T]."""

Batches = Iterable[Batch]


@dataclass(frozen=True)
class Workload:
    """A network, and batches for it.

    Attributes:
        name: on the command line.
        title: for people.
        build: makes the network; picklable, as the measurement of memory makes it again in another process.
        draw: (number of examples, generator) -> a batch; likewise.
        batch_size: examples of a batch.
        num_batches: of a timed call.
        num_checked: examples on which results are compared with the truth.
        exact: whether all classes are few enough for the exact Fisher.
        target: largest ratio to a plain pass that an estimator of one backward pass may have; None for no target.
        exact_target: the same for the exact Fisher or, without it, for the most probable classes.
        factors_target: the same for Kronecker factors as `hf.measure` takes them.
    """

    name: str
    title: str
    build: Callable[[], nn.Module]
    draw: Callable[[int, torch.Generator], Batch]
    batch_size: int = 128
    num_batches: int = 40
    num_checked: int = 32
    exact: bool = True
    target: float | None = None
    exact_target: float | None = None
    factors_target: float | None = None

    def model(self) -> nn.Module:
        """The network in evaluation mode, the same at every call; ImportError where a package is missing."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.build().eval()

    def batches(self, count: int) -> list[Batch]:
        """So many batches, the same at every call."""
        generator = torch.Generator().manual_seed(0)
        return [self.draw(self.batch_size, generator) for _ in range(count)]

    def trial(self) -> Workload:
        """The same with few examples."""
        return replace(self, batch_size=4, num_batches=2, num_checked=2)


def nll(outputs: Tensor, targets: Tensor) -> Tensor:
    """[B]: cross-entropy of logits [B, C], or [B, T, C] summed over positions."""
    losses = F.cross_entropy(outputs.flatten(0, -2), targets.flatten(), reduction="none")
    return losses.view(len(targets), -1).sum(dim=1)


def part(batch: Batch, start: int, stop: int) -> Batch:
    """Examples `start` to `stop` (exclusive)."""
    inputs, targets = batch
    return tuple(tensor[start:stop] for tensor in inputs), targets[start:stop]


def singles(batch: Batch, count: int) -> list[Batch]:
    """The first so many examples, each a batch of its own."""
    return [part(batch, number, number + 1) for number in range(min(count, len(batch[1])))]


def draw_images(shape: tuple[int, ...], count: int, generator: torch.Generator) -> Batch:
    """Uniform in 0..1, with one of ten classes each."""
    inputs = torch.rand(count, *shape, generator=generator)
    return (inputs,), torch.randint(10, (count,), generator=generator)


def draw_tokens(vocabulary: int, length: int, count: int, generator: torch.Generator) -> Batch:
    """Tokens that fall off in frequency as words do, p(n) ~ 1/n, and the next one at every position."""
    chances = 1 / torch.arange(1, vocabulary + 1, dtype=torch.float64)
    drawn = torch.multinomial(chances, count * (length + 1), replacement=True, generator=generator)
    tokens = drawn.view(count, length + 1)
    return (tokens[:, :-1].contiguous(),), tokens[:, 1:].contiguous()


def _mlp(name: str, hidden: tuple[int, ...]) -> Workload:
    return Workload(
        name=name,
        title=f"MLP 784-{'-'.join(map(str, hidden))}-10",
        build=partial(mlp, 784, hidden, 10, slope=0.2),
        draw=partial(draw_images, (784,)),
        target=1.2,
        exact_target=2.6,
        factors_target=3.0,
    )


def _gpt(length: int, *, num_batches: int) -> Workload:
    sizes = {"vocabulary": 8192, "width": 256, "num_layers": 4, "num_heads": 8, "length": length}
    return Workload(
        name=f"gpt-{length}",
        title=f"GPT, width 256, 4 layers, {length} tokens of 8,192, head tied to the embedding",
        build=partial(nets.GPT, **sizes),
        draw=partial(draw_tokens, sizes["vocabulary"], length),
        batch_size=16,
        num_batches=num_batches,
        num_checked=16,
        exact=False,
        target=1.2,
        exact_target=3.0,
        factors_target=3.0,
    )


WORKLOADS = {
    workload.name: workload
    for workload in (
        _mlp("mlp-small", (300, 150)),
        _mlp("mlp-large", (1000, 1000)),
        Workload(
            name="convnet",
            title="ConvNet on 32x32x3: three convolutions, two linear layers",
            build=partial(nets.convnet, 10),
            draw=partial(draw_images, (3, 32, 32)),
            num_batches=6,
            target=1.2,
            exact_target=10.0,
            factors_target=5.0,
        ),
        Workload(
            name="resnet",
            title="Residual network on 32x32x3: three blocks of 32, 64 and 128 channels, batch norm in evaluation mode",
            build=partial(nets.residual_net, 10),
            draw=partial(draw_images, (3, 32, 32)),
            num_batches=2,
            target=1.4,
            exact_target=10.0,
        ),
        _gpt(128, num_batches=2),
        _gpt(32, num_batches=4),
        Workload(
            name="encoder",
            title="Sentence encoder all-MiniLM-L6-v2 (22.6 million weights), 32 tokens, a head of six classes",
            build=encoder.pair_classifier,
            draw=encoder.draw_pairs,
            batch_size=16,
            num_batches=3,
            num_checked=4,
        ),
    )
}
