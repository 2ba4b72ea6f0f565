"""Every way of learning on that is compared, and what each adds to plain fine-tuning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from holdfast.curvature.factored import FactoredImportance
from holdfast.errors import OptionError
from holdfast.experiments.language.batches import Example
from holdfast.experiments.language.calibration import NUM_EXAMPLES, calibrate
from holdfast.experiments.language.elephants.trial import MessageCallback
from holdfast.experiments.language.learning import Old, Pace, learn
from holdfast.experiments.language.models import LanguageModel
from holdfast.importance import uniform
from holdfast.records import Importance
from holdfast.retention import EWC, WVA
from holdfast.tensors import all_parameters, copies


@dataclass(frozen=True)
class StoryMethod:
    """A way of learning on.

    Attributes:
        name: as it is typed.
        label: as it is read.
        settings: values that are tried, the one chosen on validation data; a single one is not tuned.
        what: what the setting is.
        of_gpt: the values for the GPT; none: the same. Strengths of likelihoods and budgets are of nats a token; in
            nats a block, as the published table has them, they are 127 times smaller and larger.
        like: a method whose choice it takes over; it has no values of its own.
        stories: in which it takes part.
    """

    name: str
    label: str
    settings: tuple[float, ...]
    what: str
    of_gpt: tuple[float, ...] = ()
    like: str = ""
    stories: tuple[str, ...] = ("encoder", "gpt")

    def settings_for(self, story: str) -> tuple[float, ...]:
        """The values that a story tries."""
        return self.of_gpt if story == "gpt" and self.of_gpt else self.settings


STORY_METHODS: dict[str, StoryMethod] = {
    method.name: method
    for method in (
        StoryMethod("plain", "plain fine-tuning", (0.0,), ""),
        StoryMethod("frozen", "base frozen, head alone", (0.0,), "", stories=("encoder",)),  # a GPT's head is its own
        StoryMethod("l2", "L2 to the start", (1e-3, 1e-2, 1e-1), "strength", of_gpt=(1e-4, 1e-3, 1e-2, 1e-1)),
        StoryMethod("lora", "LoRA, rank 8", (1e-3, 3e-3), "learning rate", of_gpt=(1e-3, 3e-3, 1e-2)),
        StoryMethod("replay-1", "replay, 1% old data", (0.01,), "share"),
        StoryMethod("replay-10", "replay, 10% old data", (0.1,), "share"),
        StoryMethod("average", "average with the old model", (0.25, 0.5, 0.75), "share of the new", of_gpt=(0.5, 0.9)),
        StoryMethod("ewc", "EWC, Fisher", (300.0, 1e3, 3e3, 5e3, 1e4), "strength", of_gpt=(0.381, 1.27, 3.81)),
        StoryMethod("ewc-8bit", "EWC, 8-bit importances, bfloat16 anchors", (), "strength", like="ewc"),
        StoryMethod("ewc-kfac", "EWC, Kronecker factors", (0.381, 1.27, 1.905), "strength", stories=("gpt",)),
        StoryMethod("ewc-budget", "EWC, budget", (0.05,), "nats", of_gpt=(64 / 127,)),
        StoryMethod("wva", "WVA, Fisher", (1e5, 3e5, 1e6, 3e6), "strength", of_gpt=(1270.0, 12700.0, 127e3)),
    )
}

HOLDING = ("ewc", "ewc-8bit", "ewc-kfac", "ewc-budget", "wva")
"""The methods that hold what an importance says."""


_KFAC_EVERY = 4
"""Steps between pulls of whole layers, which cost several times a pull of single weights."""


@dataclass(frozen=True)
class Start:
    """Where a method begins.

    Attributes:
        model: to be trained.
        held: importances of what is to be kept, each with the weights it was measured at.
        old: makes old data to mix in at a share, None where there is nothing old.
        factors: gives the Kronecker factors of what is to be kept, measured at the weights of `model`.
    """

    model: LanguageModel
    held: tuple[tuple[Importance, Mapping[str, Tensor]], ...]
    old: Callable[[float], Old] | None = None
    factors: Callable[[], FactoredImportance] | None = None


@dataclass(frozen=True)
class Learned:
    """What a method found besides the weights.

    Attributes:
        predicted_rise: of the old loss in nats a target, by the quadratic model of the importances, or of the
            Kronecker factors where they are held; None without any.
    """

    predicted_rise: float | None


def learn_with(method: str, setting: float, start: Start, stream: Any, pace: Pace, *, on_step: Any = None) -> Learned:
    """Train `start.model` with a method, in place."""
    model = start.model
    before = copies(all_parameters(model.base))
    keeper: EWC | WVA | None = None
    old: Old | None = None
    if method == "frozen":
        model.base.requires_grad_(False)
    elif method == "l2":
        keeper = EWC(model.base, strength=setting, log_every=0)
        keeper.retain(uniform(model.base))
    elif method == "lora":
        _learn_adapters(model, stream, replace(pace, lr=setting), on_step)
        return Learned(predicted_rise(start.held, model))
    elif method.startswith("replay"):
        if start.old is None:
            raise OptionError(f"{method}: there are no old data.")
        old = start.old(setting)
    elif method in ("ewc", "ewc-8bit"):
        forms: dict[str, Any] = {"importance_dtype": "int8", "anchor_dtype": "bfloat16"} if method == "ewc-8bit" else {}
        keeper = _retained(EWC(model.base, strength=setting, accumulate="per_task", log_every=0, **forms), start)
    elif method == "ewc-kfac":
        if start.factors is None:
            raise OptionError(f"{method}: there are no Kronecker factors.")
        keeper = EWC(model.base, strength=setting, every=_KFAC_EVERY, log_every=0).retain(start.factors())
    elif method == "ewc-budget":
        keeper = _retained(EWC(model.base, budget=setting, accumulate="per_task", log_every=0), start)
    elif method == "wva":
        keeper = _retained(WVA(model.base, strength=setting, log_every=0), start)
    learn(model, stream, pace, keeper=keeper, old=old, on_step=on_step)
    model.base.requires_grad_(True)
    if method == "average":
        with torch.no_grad():
            for name, parameter in all_parameters(model.base).items():
                parameter.lerp_(before[name], 1 - setting)
    if method == "ewc-kfac" and keeper is not None:
        return Learned(keeper.predicted_rise())
    return Learned(predicted_rise(start.held, model))


def calibrated(
    story: str,
    model: LanguageModel,
    importance: Importance,
    data: Sequence[Example],
    pace: Pace,
    *,
    on_message: MessageCallback,
) -> Importance:
    """The importance with the factor that made-up lessons show at this pace, under the budget that the story tries."""
    (budget,) = STORY_METHODS["ewc-budget"].settings_for(story)
    some = data[: NUM_EXAMPLES[model.task]]
    found = calibrate(model, importance, some, budget=budget, steps=min(60, pace.steps), lr=pace.lr)
    on_message(f"calibration: rise predicted {found.predicted:.3g}, measured {found.measured:.3g} nats a target")
    return found.applied_to(importance)


def predicted_rise(held: tuple[tuple[Importance, Mapping[str, Tensor]], ...], model: LanguageModel) -> float | None:
    """1/2 sum Omega d^2 of the first importance, from the weights it was measured at."""
    if not held:
        return None
    importance, anchors = held[0]
    now = all_parameters(model.base)
    rise = sum(
        float((omega * (now[name].detach() - anchors[name]).square()).sum()) for name, omega in importance.items()
    )
    return 0.5 * rise * (importance.info.nats_per_unit or 1.0)


@torch.no_grad()
def _retained(keeper: Any, start: Start) -> Any:
    """The keeper with every importance retained at its own weights; the model ends where it was."""
    parameters = all_parameters(start.model.base)
    now = copies(parameters)
    for importance, anchors in start.held:
        for name, parameter in parameters.items():
            parameter.copy_(anchors[name])
        keeper.retain(importance)
    for name, parameter in parameters.items():
        parameter.copy_(now[name])
    return keeper


def _learn_adapters(model: LanguageModel, stream: Any, pace: Pace, on_step: Any) -> None:
    """LoRA on every linear layer, merged into the weights at the end.

    Raises:
        OptionError: peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.tuners_utils import BaseTunerLayer
    except ImportError as error:
        raise OptionError("lora: peft is not installed: pip install peft") from error
    bare: Any = model.base
    inject_adapter_in_model(LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"), bare)
    for name, parameter in bare.named_parameters():
        parameter.requires_grad_("lora_" in name)
    learn(model, stream, pace, on_step=on_step)
    for name, layer in list(bare.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            parent, _, own = name.rpartition(".")
            setattr(bare.get_submodule(parent), own, layer.get_base_layer())
    bare.requires_grad_(True)
