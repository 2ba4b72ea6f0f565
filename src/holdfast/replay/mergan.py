"""Memory Replay GANs: an AC-GAN that learns class after class, and rehearses what its frozen self draws of the past."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from holdfast.replay.generators import check_alive, drawn_classes, frozen
from holdfast.replay.wgan import WGAN, Alignment
from holdfast.tensors import prefixed, under


class MemoryReplayGAN:
    """A conditional WGAN-GP that keeps drawing the classes of earlier tasks, without their data.

        memory = MemoryReplayGAN(WGAN(shape, num_classes=10), alignment=0.01)
        for task in stream:
            memory.open_task(task.classes)
            for images, classes in batches:  # of this task alone
                memory.fit(images, classes)
            memory.close_task()

    Joint retraining puts samples of the frozen generator in the place of a part of each batch, so that every class is
    there alike often: critic and generator are trained as on the data of all classes. Replay alignment leaves the batch
    alone and holds the generator's images of past classes near those that its frozen self draws of the same z and
    class. Neither, and it is sequential fine-tuning. A task costs the same however many were before it.

    Args:
        gan: the generator and its critic, conditional on the class.
        retraining: joint retraining with replay.
        alignment: weight of replay alignment, see `holdfast.replay.wgan`; None: none.

    Attributes:
        optimizers: of the task at hand, new at its start; a keeper may be attached to the first, the generator's.
        past: the classes of finished tasks.
        previous: the frozen generator of those; None in the first task.

    Source: Wu et al. 2018 (arXiv 1809.02058). Departures: the batch is dealt out to new and past classes where the
    authors' program adds past classes to it, and replayed images take part in the gradient penalty.
    """

    def __init__(self, gan: WGAN, *, retraining: bool = False, alignment: float | None = None) -> None:
        self.gan, self.retraining, self.alignment = gan, retraining, alignment
        self.optimizers: Sequence[Optimizer] = ()
        self.classes: tuple[int, ...] = ()
        self.past: tuple[int, ...] = ()
        self.previous: WGAN | None = None

    def open_task(self, classes: Sequence[int]) -> None:
        """Begin a task with new optimizers.

        Args:
            classes: those that it brings.
        """
        self.classes = tuple(classes)
        self.optimizers = self.gan.optimizers()

    def fit(self, images: Tensor, classes: Tensor) -> Tensor:
        """One iteration on images of the task at hand, [B, ...] in 0..1, and their classes, int64 [B].

        Returns:
            The critic's estimate of the Wasserstein distance; a scalar.
        """
        align = None
        if self.previous is not None:
            if self.retraining:
                images, classes = self._with_past(images, classes)
            if self.alignment is not None:
                align = Alignment(self.previous, self.past, self.alignment)
        return self.gan.fit(images, classes, optimizers=self.optimizers, alignment=align)

    def close_task(self, *, where: str = "MeRGAN") -> None:
        """Freeze what the generator can draw now.

        Args:
            where: who asks, for the message.

        Raises:
            NotFiniteError, CollapseError: it has diverged or collapsed; see `check_alive`.
        """
        known = (*self.past, *self.classes)
        check_alive(self.gan, classes=self.classes, where=f"{where}, classes {', '.join(map(str, self.classes))}")
        self.past, self.classes = known, ()
        self.previous = frozen(self.gan)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Of both generators and their critics, for a checkpoint; the optimizers' states are the caller's."""
        tensors = prefixed("gan", self.gan.state_dict())
        if self.previous is not None:
            tensors |= prefixed("previous", self.previous.state_dict())
        return tensors, {"classes": self.classes, "past": self.past}

    def load_state(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Go on from what `state` gave, in a task with new optimizers, whose states are then to be loaded."""
        self.past = tuple(notes["past"])
        if self.past:
            self.previous = frozen(self.gan)
            self.previous.load_state_dict(under("previous", tensors))
        self.gan.load_state_dict(under("gan", tensors))
        self.open_task(notes["classes"])

    def _with_past(self, images: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """The batch with replayed images in the place of its end, each class having the same share."""
        assert self.previous is not None
        keep = num_new(len(images), new=len(self.classes), past=len(self.past))
        asked = drawn_classes(len(images) - keep, self.past, device=images.device, generator=None)
        replayed = self.previous.sample(len(asked), classes=asked)
        return torch.cat([images[:keep], replayed]), torch.cat([classes[:keep], asked])


def num_new(n: int, *, new: int, past: int) -> int:
    """How many of n examples are of the new classes, if every class has the same share: at least one."""
    return max(1, round(n * new / (new + past)))
