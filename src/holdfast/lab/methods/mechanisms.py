"""The mechanisms that hold weights: elastic weight consolidation and weight velocity attenuation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from torch import nn

from holdfast.curvature import Accumulate, Decayed, Weighting
from holdfast.curvature.factored import AnyImportance
from holdfast.errors import OptionError
from holdfast.files.typed import Within
from holdfast.importance import uniform
from holdfast.lab.methods.columns import importance_of_columns
from holdfast.lab.methods.estimator import ClosedTask
from holdfast.lab.methods.importances import KfacOptions
from holdfast.lab.methods.pairs import HeldMethod, register_mechanism
from holdfast.lab.methods.registry import COLOURS, MECHANISMS, METHODS, ImportanceEntry, MethodEntry
from holdfast.retention import EWC, WVA, Keeper

Strength = Annotated[float, Within(0, math.inf)]

_EWC_STYLE = {"linestyle": "-", "marker": "o"}
_WVA_STYLE = {"linestyle": (0, (7, 1.6, 1.4, 1.6)), "marker": "^"}


@dataclass(frozen=True, kw_only=True)
class HoldingOptions:
    """Of every mechanism that holds weights.

    Attributes:
        accumulate: "sum", "mean", "max", "per_task" or "decayed:GAMMA".
        weighting: "task" or "examples", which weighs by targets.
    """

    accumulate: str = "sum"
    weighting: Weighting = "task"

    def __post_init__(self) -> None:
        accumulation(self.accumulate)


@dataclass(frozen=True, kw_only=True)
class EwcOptions(HoldingOptions):
    """Of elastic weight consolidation.

    Attributes:
        strength: of the pull, where no budget is kept.
        budget: nats per target, in place of the strength.
        pull: "implicit", "gradient" or "penalty".
        pull_every: steps from one implicit pull to the next, each as strong as that many pulls together.
    """

    strength: Strength | None = None
    budget: Annotated[float, Within(1e-12, math.inf)] | None = None
    pull: Literal["implicit", "gradient", "penalty"] = "implicit"
    pull_every: Annotated[int, Within(1, 10**9)] = 1


@dataclass(frozen=True, kw_only=True)
class WvaOptions(HoldingOptions):
    """Of weight velocity attenuation.

    Attributes:
        strength: of the attenuation.
        attenuation: "hyperbolic" or "exponential".
        attenuate: "increments" or "gradients".
    """

    strength: Strength | None = None
    attenuation: Literal["hyperbolic", "exponential"] = "hyperbolic"
    attenuate: Literal["increments", "gradients"] = "increments"


def accumulation(text: str) -> Accumulate:
    """The rule that a text names: "sum", "mean", "max", "per_task" or "decayed:GAMMA".

    Raises:
        OptionError: it names none.
    """
    match text.split(":"):
        case ["sum" | "mean" | "max" | "per_task" as rule]:
            return rule
        case ["decayed", number]:
            try:
                gamma = float(number)
            except ValueError as error:
                raise OptionError(f"accumulate: {text!r} names no decay; expected such as 'decayed:0.9'.") from error
            return Decayed(gamma)
        case _:
            raise OptionError(f"accumulate is {text!r}; expected sum, mean, max, per_task or decayed:GAMMA.")


@register_mechanism(
    "ewc",
    label="EWC",
    options=EwcOptions,
    style=_EWC_STYLE,
    factored=True,
    verb="pulls weights elastically to their anchors",
)
def build_ewc(model: nn.Module, options: EwcOptions) -> Keeper:
    """Elastic weight consolidation.

    Raises:
        OptionError: options that the keeper would refuse after the first task, or not at all.
    """
    if options.budget is not None and options.pull_every != 1:
        raise OptionError(
            f"ewc: pull_every is {options.pull_every}, and a budget is kept at each step. Leave it out, or give a "
            "strength."
        )
    if isinstance(options, KfacOptions) and options.pull == "gradient":
        raise OptionError("ewc: pull is 'gradient'; with Kronecker factors it is implicit or penalty.")
    if isinstance(options, KfacOptions) and options.accumulate == "max":
        raise OptionError("ewc: accumulate is 'max', a rule that Kronecker factors do not have. Use sum.")
    return EWC(
        model,
        strength=options.strength,
        budget=options.budget,
        pull=options.pull,
        every=options.pull_every,
        accumulate=accumulation(options.accumulate),
        weighting=options.weighting,
    )


@register_mechanism("wva", label="WVA", options=WvaOptions, style=_WVA_STYLE, verb="makes weights slow")
def build_wva(model: nn.Module, options: WvaOptions) -> Keeper:
    """Weight velocity attenuation."""
    return WVA(
        model,
        strength=options.strength,
        attenuation=options.attenuation,
        on=options.attenuate,
        accumulate=accumulation(options.accumulate),
        weighting=options.weighting,
    )


def all_alike(model: nn.Module, task: ClosedTask) -> AnyImportance:
    """One for every weight that took part."""
    return importance_of_columns(uniform(model), task.classes)


METHODS.add(
    MethodEntry(
        name="l2",
        make=HeldMethod("l2", MECHANISMS["ewc"], ImportanceEntry(name="uniform", make=all_alike, on_examples=False)),
        label="L2",
        summary="elastic pull on every weight alike: EWC with a uniform importance",
        options=EwcOptions,
        place="floor",
        style={**_EWC_STYLE, "color": COLOURS["uniform"]},
        mechanism="ewc",
        importance="uniform",
        batches=False,
    )
)
