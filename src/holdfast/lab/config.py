"""Everything that decides the figures of a run, in one frozen record."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from holdfast.files.typed import Within
from holdfast.lab.configured import Configured, GivenSettings
from holdfast.lab.methods import GENERATORS, METHODS
from holdfast.lab.methods.pairs import check_strength
from holdfast.lab.options import OneOf
from holdfast.lab.protocols import defaults_of
from holdfast.lab.registry import Registry
from holdfast.lab.streams import STREAMS
from holdfast.lab.training import NETS, Augmentation, OptimizerName, Schedule, known_augmentations
from holdfast.likelihoods.masks import Mask, Scenario

BUDGET = 0.05
"""Nats, of methods that can keep a budget, where neither you nor the protocol has a strength."""


@dataclass(frozen=True, kw_only=True)
class RunSettings(GivenSettings):
    """What every run is to be told, whatever its stream, network and method; see `GivenSettings`, too.

    Attributes:
        augment: pictures are seen otherwise in each epoch: "crop" moves them by up to an eighth of their side, "flip"
            mirrors half of them.
        scenario: what is to be told at test time: "task", "domain" or "class"; None: the stream's own.
        num_tasks: how many tasks; None: the stream's own number.
        net: name of the network, or module:function of (input_shape, outputs).
        optimizer: "sgd", "momentum" (0.9), "nesterov" (0.9), "adam" or "adamw".
        lr: learning rate.
        weight_decay: as the optimizer has it.
        schedule: of the learning rate within a task: "constant" or "cosine" (down to zero).
        fresh_optimizer: a new optimizer for every task, or one for all.
        epochs: passes over a task's training data; ignored where iterations is given.
        iterations: optimizer steps a task, in place of epochs.
        batch_size: examples a step.
        clip: gradients are scaled down to this norm; None: they are not.
        mask: output columns in the loss: "task" (those of the task: one head a task), "seen", or "all".
        importance_data: a task is closed, and its importance measured, on "validation" or "train" examples.
        importance_examples: on so many of them; None: all.
    """

    stream: Annotated[str, OneOf(STREAMS)]
    method: Annotated[str, OneOf(METHODS)]
    scenario: Scenario | None = None
    num_tasks: Annotated[int, Within(1, 1000)] | None = None
    augment: tuple[Augmentation, ...] = ()
    net: Annotated[str, OneOf(NETS)] = "mlp"
    optimizer: OptimizerName = "sgd"
    lr: Annotated[float, Within(0, 1e6)] = 0.1
    weight_decay: Annotated[float, Within(0, 1e6)] = 0.0
    schedule: Schedule = "constant"
    fresh_optimizer: bool = True
    epochs: Annotated[int, Within(1, 10**6)] = 4
    iterations: Annotated[int, Within(1, 10**9)] | None = None
    batch_size: Annotated[int, Within(1, 10**9)] = 100
    clip: Annotated[float, Within(1e-12, math.inf)] | None = None
    mask: Mask | None = None
    importance_data: Literal["validation", "train"] = "validation"
    importance_examples: Annotated[int, Within(1, 10**9)] | None = None


@dataclass(frozen=True, kw_only=True)
class RunConfig(Configured, RunSettings):
    """One run: a stream, a method, a seed, and every setting. Make one with `configure`; see `Configured`."""

    record: ClassVar[type] = RunSettings
    registries: ClassVar[tuple[Registry[Any], ...]] = (METHODS, NETS, STREAMS, GENERATORS)

    __hash__ = Configured.__hash__

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "augment", known_augmentations(self.augment))
        if METHODS.named(self.options.get("hold") or self.method).holds_weights:
            check_strength(self.method, self.options)

    @classmethod
    def protocol(cls, stream: str, method: str) -> Mapping[str, Any]:
        """See `Configured`."""
        return defaults_of(stream, method)

    @classmethod
    def usual(cls, stream: str, method: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """The protocol's settings; of a method that can keep a budget one, where nobody has a strength."""
        found = super().usual(stream, method, given)
        has = cls.settings_of(stream, method, {**found, **given})
        if "budget" not in has or given.get("strength") is not None:
            return found
        if "budget" in given or found.get("strength") is None:  # a budget is kept at each step
            found |= {"strength": None, "budget": BUDGET, "pull_every": 1}
        return found


def configure(
    stream: str, method: str, *, data_dir: str | os.PathLike[str] | None = None, **settings: Any
) -> RunConfig:
    """A run's configuration: the protocol of the stream, the method's own settings on it, and yours above both.

    Args:
        stream: name of the stream.
        method: name of the method.
        data_dir: where data by name are; see `holdfast.lab.load_data`.
        settings: those of `RunSettings`, and options of the stream, the net and the method; None leaves the protocol's
            value. A budget takes the strength's place, and is kept at each step. `data` are read, for their
            fingerprint.

    Raises:
        UnknownNameError: an unknown stream, method or setting; the message offers the nearest.
        OptionError: a value out of its range, or a setting that belongs to something else.
        DataFileError: the data cannot be read.
    """
    return RunConfig.configured(stream, method, data_dir=data_dir, **settings)
