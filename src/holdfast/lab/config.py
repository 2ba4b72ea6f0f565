"""Everything that decides the figures of a run, in one frozen record."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from holdfast.errors import OptionError, UnknownNameError
from holdfast.lab.methods import MethodOptions, method_named
from holdfast.lab.protocols import defaults_of
from holdfast.lab.training import NetName, OptimizerName, Schedule
from holdfast.likelihoods.masks import Mask, Scenario


@dataclass(frozen=True, kw_only=True)
class RunConfig(MethodOptions):
    """One run: a stream, a method, a seed, and every setting. Make one with `configure`.

    Attributes, beside those of `MethodOptions`:
        stream: name of the task stream.
        method: name of the method.
        scenario: what is to be told at test time: "task", "domain" or "class"; None: the stream's own.
        num_tasks: how many tasks; None: the stream's own number.
        fraction: share of the pixels that a permuted stream permutes, 0..1.
        net: "mlp", "convolution" or "attention"; see `holdfast.lab.training.nets`.
        hidden: units of each hidden layer of an mlp.
        slope: of the leaky ReLU of an mlp for negative inputs; 0 is ReLU.
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
        importance_data: importances are measured on "validation" or "train" examples.
        importance_examples: on so many of them; None: all.
    """

    stream: str
    method: str
    scenario: Scenario | None = None
    num_tasks: int | None = None
    fraction: float = 1.0
    net: NetName = "mlp"
    hidden: tuple[int, ...] = (300, 150)
    slope: float = 0.0
    optimizer: OptimizerName = "sgd"
    lr: float = 0.1
    weight_decay: float = 0.0
    schedule: Schedule = "constant"
    fresh_optimizer: bool = True
    epochs: int = 4
    iterations: int | None = None
    batch_size: int = 100
    clip: float | None = None
    mask: Mask | None = None
    importance_data: Literal["validation", "train"] = "validation"
    importance_examples: int | None = None

    def __post_init__(self) -> None:
        for name, kind, low, high in _RANGES:
            value = getattr(self, name)
            if value is None and name in _OPTIONAL:
                continue
            if not (isinstance(value, int | kind) and low <= value <= high):
                number = "whole number" if kind is int else "number"
                raise OptionError(f"{name} is {value!r}; expected a {number} from {low:g} to {high:g}.")
            object.__setattr__(self, name, kind(value))  # 15 and 15.0 are one configuration, with one hash
        if not self.hidden or not all(isinstance(units, int) and units > 0 for units in self.hidden):
            raise OptionError(
                f"hidden is {self.hidden!r}; expected the units of each hidden layer, such as (300, 150)."
            )
        super().__post_init__()
        if method_named(self.method).holds_weights and (self.strength is None) == (self.budget is None):
            raise OptionError(
                f"method {self.method!r} needs a strength or a budget, one of them; found strength {self.strength!r} "
                f"and budget {self.budget!r}."
            )

    @property
    def hash(self) -> str:
        """Eight hexadecimal digits that stand for every setting that is not its field's default."""
        return settings_hash(self)

    @property
    def name(self) -> str:
        """Name of the run's folder: stream-method-seed-hash."""
        return f"{self.stream}-{self.method}-{self.seed}-{self.hash}"

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "hidden": list(self.hidden)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> RunConfig:
        """From JSON values; settings that this version does not know are an error.

        Raises:
            OptionError: an unknown setting, or a value out of its range.
        """
        known = {entry.name for entry in fields(cls)}
        for name in content:
            if name not in known:
                raise UnknownNameError("setting", name, known)
        return cls(**{**content, "hidden": tuple(content.get("hidden", (300, 150)))})


def settings_hash(config: Any) -> str:
    """Eight hexadecimal digits that stand for every setting of a record that is not its field's default.

    So that a setting which a later version adds leaves the names of older runs as they are.
    """
    usual = {entry.name for entry in fields(config) if getattr(config, entry.name) == entry.default}
    chosen = {name: value for name, value in config.to_dict().items() if name not in usual}
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:8]


def configure(stream: str, method: str, **settings: Any) -> RunConfig:
    """A run's configuration: the protocol of the stream, the method's own settings on it, and yours above both.

    Args:
        stream: name of the stream.
        method: name of the method.
        settings: any field of `RunConfig`; None leaves the protocol's value. A budget takes the strength's place, and
            is kept at each step.

    Raises:
        UnknownNameError: an unknown stream, method or setting; the message offers the nearest.
        OptionError: a value out of its range.
    """
    method_named(method)
    given = {name: value for name, value in settings.items() if value is not None}
    if "budget" in given and "strength" not in given:
        given = {"pull_every": 1, **given, "strength": None}
    return RunConfig.from_dict({**defaults_of(stream, method), **given, "stream": stream, "method": method})


_RANGES = (
    ("seed", int, 0, 2**31 - 1),
    ("num_tasks", int, 1, 1000),
    ("fraction", float, 0, 1),
    ("slope", float, 0, 1),
    ("lr", float, 0, 1e6),
    ("weight_decay", float, 0, 1e6),
    ("epochs", int, 1, 10**6),
    ("iterations", int, 1, 10**9),
    ("batch_size", int, 1, 10**9),
    ("clip", float, 1e-12, math.inf),
    ("strength", float, 0, math.inf),
    ("budget", float, 1e-12, math.inf),
    ("damping", float, 1e-12, math.inf),
    ("importance_examples", int, 1, 10**9),
    ("pull_every", int, 1, 10**9),
    ("buffer_size", int, 1, 10**9),
    ("der_alpha", float, 0, 1e6),
    ("der_beta", float, 0, 1e6),
    ("temperature", float, 1e-3, 1e3),
    ("l2_transfer", float, 0, 1e6),
    ("hat_scale", float, 1, 1e6),
    ("hat_sparsity", float, 0, 1e6),
    ("sfa_share", float, 0, 1),
    ("sfa_period", float, 0, 1),
    ("generator_units", int, 1, 10**6),
    ("generator_latent", int, 1, 10**6),
    ("generator_lr", float, 0, 1e6),
    ("new_share", float, 0, 1),
    ("generator_strength", float, 0, math.inf),
)
_OPTIONAL = {entry.name for entry in fields(RunConfig) if entry.default is None}
