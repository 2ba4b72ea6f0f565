"""What generative replay asks of a generator, and what it does with any of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from holdfast.choices import check_choices
from holdfast.errors import BatchError, CollapseError, NotFiniteError

M = TypeVar("M")

LEAST_SPREAD = 1e-3
"""Below this standard deviation of a pixel over samples (pixels being 0..1) all samples are one and the same."""


@runtime_checkable
class Generator(Protocol):
    """A module that draws inputs like those it was trained on: the library's, or a user's.

    An `nn.Module` with three methods of its own. Its weights are all that it remembers: a frozen copy of it is the
    generator of the tasks so far, and its `state_dict` and those of its optimizers are what a checkpoint holds. Random
    numbers come from torch's global generator where none is passed.
    """

    def state_dict(self) -> Any:
        """As `nn.Module` has it."""
        ...

    def load_state_dict(self, state_dict: Any) -> Any:
        """As `nn.Module` has it."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """As `nn.Module` has it."""
        ...

    def optimizers(self) -> Sequence[Optimizer]:
        """New optimizers of its parameters, for one task; a keeper may be attached to them."""
        ...

    def fit(
        self,
        inputs: Tensor,
        classes: Tensor | None = None,
        *,
        weights: Tensor | None = None,
        optimizers: Sequence[Optimizer],
    ) -> Tensor:
        """One iteration of training on a batch.

        Args:
            inputs: [B, ...], of any device that the parameters are on; images are in 0..1.
            classes: int64 [B]; a generator that is not conditional ignores them.
            weights: [B], >= 0, of sum 1: what each example counts for; None: all alike.
            optimizers: as `optimizers` gave them.

        Returns:
            The loss, a scalar without gradient.
        """
        ...

    def sample(self, n: int, *, classes: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Draw n inputs; no gradient.

        Args:
            n: how many.
            classes: int64 [n], what is asked for; a generator that is not conditional ignores them.
            generator: of the random numbers; None: torch's global one.

        Returns:
            [n, ...], in the range of the inputs it was trained on.
        """
        ...


@dataclass(frozen=True)
class HoldablePart:
    """The part of a generator that EWC or WVA may hold, and what its importance is measured on.

    Attributes:
        module: the network that turns latents into inputs.
        batches: `(inputs, targets)` of that network, drawn anew at each iteration.
        loss: a likelihood's name, or a function of (outputs, batch) that returns one loss an example.
        kind: of the Fisher information.
    """

    module: nn.Module
    batches: Iterable[Any]
    loss: str | Callable[[Any, Any], Tensor]
    kind: Literal["sampled", "empirical"]

    def __post_init__(self) -> None:
        check_choices(self)


@runtime_checkable
class Holdable(Protocol):
    """A generator whose weights EWC and WVA can hold."""

    def holdable_part(self, n: int, *, classes: Sequence[int], seed: int) -> HoldablePart:
        """What to hold, and n latents (of these classes, drawn evenly) to measure its importance on."""
        ...


def is_conditional(generator: Generator) -> bool:
    """Whether its samples are of the classes asked for: it then has `num_classes`, and that is not None."""
    return getattr(generator, "num_classes", None) is not None


def frozen(module: M) -> M:
    """A copy of a module that stays as it is: evaluation mode, no gradients; nothing of it is shared."""
    twin: Any = copy.deepcopy(module)
    return twin.eval().requires_grad_(False)


def drawn_classes(n: int, classes: Sequence[int], *, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """int64 [n]: classes drawn with equal chances."""
    places = torch.randint(len(classes), (n,), generator=generator)
    return torch.tensor(classes)[places].to(device)


def check_range(inputs: Tensor, *, where: str) -> None:
    """Raise `BatchError` unless all inputs are in 0..1."""
    low, high = map(float, inputs.aminmax())
    if not 0 <= low <= high <= 1:
        raise BatchError(
            f"{where}: found inputs from {low:.3g} to {high:.3g}, expected 0..1. Scale them: "
            "(inputs - low) / (high - low)."
        )


LEAST_LISTENING = 0.02
"""Of the spread over samples of a class the spread over classes of one and the same draw, below which the class asked
for does not matter; of untrained generators it is a tenth and more, of trained ones about one."""


def check_alive(generator: Generator, *, classes: Sequence[int] = (), where: str, n: int = 64) -> None:
    """Make sure that a generator has neither diverged nor collapsed, and heeds the class that it is asked for.

    It has diverged where a weight or a sample is not finite, and collapsed where all its samples (of one class, where
    it is conditional) are the same image: the mean over pixels of their standard deviation is below 0.001. A
    conditional one ignores its class where the same random numbers give the same image whichever class is asked for:
    then the standard deviation over classes is below a fiftieth of that over samples.

    Args:
        generator: any.
        classes: those it should know; each is looked at.
        where: who asks, for the message.
        n: samples of each class.

    Raises:
        NotFiniteError: it has diverged.
        CollapseError: it has collapsed, or ignores the class.
    """
    remedy = "Lower the generator's learning rate, or start with another seed; the last checkpoint is from before."
    broken = [name for name, value in generator.state_dict().items() if not value.isfinite().all()]
    if broken:
        raise NotFiniteError(f"{where}: the generator has diverged: not finite are {', '.join(broken[:3])}. {remedy}")
    of_class = []
    for label in classes if is_conditional(generator) else (None,):
        samples = _drawn_alike(generator, n, label)
        of_class.append(samples.flatten(1).float())
        spread = float(samples.flatten(1).float().std(0).mean())
        if not spread >= LEAST_SPREAD:
            of = "" if label is None else f" of class {label}"
            raise CollapseError(
                f"{where}: the generator has collapsed: {n} samples{of} are one and the same, with a standard "
                f"deviation of {spread:.1g} a pixel, expected at least {LEAST_SPREAD:g}. {remedy}"
            )
    if len(of_class) > 1:
        drawn = torch.stack(of_class)
        apart, spread = float(drawn.std(0).mean()), float(drawn.std(1).mean())
        if not apart >= LEAST_LISTENING * spread:
            raise CollapseError(
                f"{where}: the generator ignores the class that it is asked for: from the same random numbers its "
                f"samples of {len(of_class)} classes differ by {apart:.1g} a pixel, those of one class by "
                f"{spread:.2g}; expected at least a fiftieth of that. Let sample() and fit() use classes=, or leave "
                "num_classes out, so that the solver says what each sample is; if it heeded them before, lower its "
                "learning rate."
            )


def _drawn_alike(generator: Generator, n: int, label: int | None) -> Tensor:
    """Samples of a class from the same random numbers each time, whether they are drawn from what is passed or not."""
    device = next(generator.parameters()).device
    asked = None if label is None else torch.full((n,), label, device=device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        return generator.sample(n, classes=asked, generator=torch.Generator().manual_seed(0))
