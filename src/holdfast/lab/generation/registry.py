"""The registries of generation: what class after class can be drawn of, and how it is learned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch

from holdfast.files.typed import Within
from holdfast.lab.configured import GivenSettings
from holdfast.lab.options import names_of
from holdfast.lab.registry import FLAGS, Entry, Registry
from holdfast.lab.streams import Stream, StreamEntry, StreamPlan
from holdfast.lab.streams.split import split
from holdfast.replay import WGAN
from holdfast.replay.wgan import Precision


@dataclass(frozen=True, kw_only=True)
class DrawingSettings:
    """What every generation run is to be told beside its stream, method and seed.

    Attributes:
        num_tasks: the first so many classes; None: all.
        iterations: of the generator, a task.
        batch_size: images a step of generator and critic.
        lr: of Adam with betas (0, 0.9), new at each task.
        latent: length of z.
        width: channels at the fine end of generator and critic.
        critic_steps: the critic's steps before each of the generator's.
        penalty: weight of the gradient penalty.
        images: of each class, drawn for each measurement.
        precision: "float32", or "bfloat16" for autocast.
        compile: whether torch.compile has the networks.
    """

    num_tasks: Annotated[int, Within(1, 1000)] | None = None
    iterations: Annotated[int, Within(1, 10**9)] = 4000
    batch_size: Annotated[int, Within(2, 10**6)] = 64
    lr: Annotated[float, Within(0, 1e6)] = 1e-4
    latent: Annotated[int, Within(1, 10**6)] = 128
    width: Annotated[int, Within(1, 10**4)] = 32
    critic_steps: Annotated[int, Within(1, 1000)] = 5
    penalty: Annotated[float, Within(0, 1e9)] = 10.0
    images: Annotated[int, Within(2, 10**6)] = 1000
    precision: Precision = "float32"
    compile: bool = False


@dataclass(frozen=True)
class DrawingPlan:
    """What a generation run asks of a method.

    Attributes:
        settings: of the run.
        seed: of the initial weights.
        shape: (channels, side, side) of an image.
        num_classes: how many there are.
        device: where it is learned.
    """

    settings: DrawingSettings
    seed: int
    shape: tuple[int, ...]
    num_classes: int
    device: torch.device

    def gan(self, *, conditional: bool = True) -> WGAN:
        """The generator and its critic, whose images are of the class asked for unless it is not conditional."""
        told = self.settings
        gan = WGAN(
            self.shape,
            num_classes=self.num_classes if conditional else None,
            latent=told.latent,
            width=told.width,
            lr=told.lr,
            critic_steps=told.critic_steps,
            penalty=told.penalty,
            precision=told.precision,
            seed=self.seed,
        ).to(self.device)
        if told.compile:
            gan.compile_networks()
        return gan


@dataclass(frozen=True, kw_only=True)
class DrawingEntry(Entry):
    """A way to learn to draw class after class; `make(plan, options)` gives its `Drawing`.

    Attributes:
        past_data: whether it has the real data of all classes so far.
    """

    past_data: bool = False
    reserved: ClassVar[frozenset[str]] = (
        FLAGS | names_of(DrawingSettings) | names_of(GivenSettings) | {"fingerprint", "options"}
    )


@dataclass(frozen=True, kw_only=True)
class DrawnEntry(StreamEntry):
    """Images whose classes come one after the other; `make(plan, options)` gives their `Stream`.

    Attributes:
        protocol: the settings that it is learned under unless you say otherwise.
    """

    protocol: Mapping[str, Any] = field(default_factory=dict)
    reserved: ClassVar[frozenset[str]] = DrawingEntry.reserved


GENERATION_METHODS: Registry[DrawingEntry] = Registry("method of generation", DrawingEntry)
"""Every method of generation, from the ceiling to the floor."""

GENERATION_STREAMS: Registry[DrawnEntry] = Registry("stream", DrawnEntry)

register_generation_method = GENERATION_METHODS.register
register_generation_stream = GENERATION_STREAMS.register

# minutes on one core; that of MNIST is Wu et al. 2018 (arXiv 1809.02058), as the settings' own defaults are
_DIGITS = {"iterations": 200, "lr": 1e-3, "latent": 16, "width": 16, "images": 300, "alignment": 0.3}


@register_generation_stream("generation", summary="data of your own (--data) to draw, a class a task", scenario="class")
@register_generation_stream("mnist-generation", summary="MNIST to draw, a class a task", data="mnist", scenario="class")
@register_generation_stream(
    "digits-generation",
    summary="embedded 8x8 digits to draw, a class a task",
    data="digits",
    scenario="class",
    protocol=_DIGITS,
)
def class_by_class(plan: StreamPlan) -> Stream:
    """A class a task."""
    return split(plan.data, 1, num_tasks=plan.num_tasks, scenario="class", name=plan.name)
