"""What a sweep compares."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from typing import Any, Literal

from holdfast.choices import check_choices
from holdfast.errors import OptionError
from holdfast.lab.config import RunConfig, configure
from holdfast.lab.configured import foreign_option, owners

Sampler = Literal["grid", "tpe"]

_CHOSEN = ("strength", "optimizer", "lr", "seed")


@dataclass(frozen=True)
class SweepChoice:
    """What a trial tries, beside what is the same in all of them.

    Attributes:
        optimizer: by name.
        lr: learning rate.
        strength: None for a method that has none.
    """

    optimizer: str
    lr: float
    strength: float | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """As fields of a run's configuration."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def text(self) -> str:
        """As people read it."""
        held = () if self.strength is None else (f"strength {self.strength:g}",)
        return ", ".join((*held, self.optimizer, f"lr {self.lr:g}"))


@dataclass(frozen=True, kw_only=True)
class Space:
    """Methods x strengths x optimizers x learning rates, each over the same seeds.

    Attributes:
        stream: name of the task stream.
        methods: names; each finds settings of its own.
        strengths: of the methods that have one; above 0, finite. Empty: the protocol's.
        optimizers: names. Empty: the protocol's.
        lrs: learning rates, each with each optimizer. Empty: the protocol's.
        seeds: what each setting is judged over.
        settings: of runs, the same in all of those that have them, above the protocol's.
        sampler: "grid": all combinations; "tpe": Optuna's tree-structured Parzen estimator, between the smallest and
            the largest of strengths and lrs.
        trials: how many settings of each method "tpe" tries.
        refine: go on next to the best strength of a grid, by half decades and less, until that gains less than the
            noise.
        prune: give up a setting that is hopeless in the middle of a run.
        data_dir: where data by name are; see `holdfast.lab.load_data`.

    Raises:
        UnknownNameError: the sampler is none.
        OptionError: an empty or unusable choice.
    """

    stream: str
    methods: tuple[str, ...]
    strengths: tuple[float, ...] = ()
    optimizers: tuple[str, ...] = ()
    lrs: tuple[float, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    settings: Mapping[str, Any] = field(default_factory=dict)
    sampler: Sampler = "grid"
    trials: int | None = None
    refine: bool = False
    prune: bool = True
    data_dir: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("methods", "seeds"):
            if not getattr(self, name):
                raise OptionError(f"sweep: no {name}. Give one or more.")
        for name in ("methods", "seeds", "strengths", "optimizers", "lrs"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise OptionError(f"sweep: {name} are {' '.join(map(str, values))}; give each once.")
        for name in ("strengths", "lrs"):
            if not all(0 < value < math.inf for value in getattr(self, name)):
                raise OptionError(
                    f"sweep: {name} are {' '.join(map(str, getattr(self, name)))}; expected numbers above 0, for they "
                    "are compared by their ratios. What no strength does is method none."
                )
        if "budget" in self.settings:
            raise OptionError("sweep: budget takes the strength's place, which a sweep is to find. Use holdfast run.")
        if (self.sampler == "tpe") != (self.trials is not None):
            raise OptionError("sweep: trials belong to sampler tpe, which needs them. Give both or neither.")
        if self.sampler == "tpe" and self.refine:
            raise OptionError(
                "sweep: refine goes on next to the best strength of a grid, and sampler tpe looks for the best itself, "
                "in as many trials as it is given. Leave refine out, and give more trials."
            )
        own = {name for method in self.methods for name in self._own(method)}
        for name in self.settings:
            if name not in own:
                here = {"stream": self.stream, "net": str(self.settings.get("net", "mlp"))}
                raise foreign_option(name, owners(name, RunConfig.registries), here, self.methods, own)
        for method in self.methods:
            for choice in self.grid(method):
                self.config(method, choice, seed=self.seeds[0])  # raises on what no run can be made of

    def grid(self, method: str) -> list[SweepChoice]:
        """All combinations for one method."""
        strengths: Sequence[float | None] = ()
        if "strength" in RunConfig.settings_of(self.stream, method, self.settings):
            strengths = self.strengths
        first = {"strength": strengths[0]} if strengths else {}
        usual = self._configured(method, first)
        strengths = strengths or (usual.strength,)
        optimizers, lrs = self.optimizers or (usual.optimizer,), self.lrs or (usual.lr,)
        return [SweepChoice(*values) for values in product(optimizers, map(float, lrs), strengths)]

    def refines(self, method: str) -> bool:
        """Whether strengths next to the best of a method are tried, too."""
        return self.refine and any(choice.strength for choice in self.grid(method))

    def config(self, method: str, choice: SweepChoice, *, seed: int) -> RunConfig:
        """One run."""
        return self._configured(method, {**choice.settings, "seed": seed})

    def _configured(self, method: str, own: Mapping[str, Any]) -> RunConfig:
        return configure(self.stream, method, data_dir=self.data_dir, **{**self._own(method), **own})

    def _own(self, method: str) -> dict[str, Any]:
        """Those of the settings that the method's runs have."""
        has = RunConfig.settings_of(self.stream, method, self.settings)
        return {name: value for name, value in self.settings.items() if name in has}

    def study_name(self, method: str) -> str:
        """Of the study of one method: the same for all sweeps whose trials may be compared."""
        config = self.config(method, self.grid(method)[0], seed=self.seeds[0])
        same = {name: value for name, value in config.to_dict().items() if name not in _CHOSEN}
        drawn = ["tpe", sorted(self.optimizers)] if self.sampler == "tpe" else ["grid"]
        told = json.dumps([same, sorted(self.seeds), drawn], sort_keys=True)
        return f"{self.stream}-{method}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"
