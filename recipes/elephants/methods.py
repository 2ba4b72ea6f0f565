"""Every way of learning on that is compared: what it holds, what it rehearses, and how it goes back at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from holdfast.curvature import AnyImportance
from holdfast.errors import OptionError
from holdfast.importance import uniform
from holdfast.language.models import LanguageModel
from holdfast.likelihoods import Similarity
from holdfast.probes import Probes
from holdfast.replay import Rehearsal
from holdfast.retention import EWC, WVA
from holdfast.tensors import all_parameters, copies
from recipes.elephants.learning import Pace, learn

PastSource = Literal["old", "new", "free"]
"""Old data; the old answers to new inputs; or what needs neither: a GPT's dreams, sentences of an open corpus."""

HeldForm = Literal["diagonal", "kronecker"]

SHARE = 0.1
"""Of the batches, that are rehearsed: the extra work of every method that rehearses."""
_RARE, _OFTEN = 0.01, 0.2

PARTS = 8
"""Into which a batch that is rehearsed is cut, so that some of it is in nearly every step."""

_WEIGHT = 3.0
"""Of what is rehearsed beside a hold."""


@dataclass(frozen=True)
class StorySetting:
    """What is tuned.

    Attributes:
        lr: times the learning rate of plain training, of plain itself times that of the pace.
        value: of what the method has to be set; None: nothing.
    """

    lr: float = 1.0
    value: float | None = None


def _rates(*factors: float) -> tuple[StorySetting, ...]:
    return tuple(StorySetting(lr=factor) for factor in factors)


def _values(*values: float) -> tuple[StorySetting, ...]:
    return tuple(StorySetting(value=value) for value in values)


@dataclass(frozen=True)
class StoryMethod:
    """A way of learning on.

    Attributes:
        name: as it is typed.
        label: as it is read.
        encoder: the settings that the story of the encoder tries, four of each method but those with nothing to set;
            the one chosen on validation data is reported.
        gpt: those that the story of the GPT tries; a story whose settings are empty leaves the method out.
        what: what the value of a setting is.
        holds: the mechanism that holds the old weights; empty: none.
        form: of the importance that it holds.
        rehearses: what is rehearsed; None: nothing. The importance is then measured on that, too.
        share: of the batches that are rehearsed; the weight of the past in them is what is tuned where nothing is held.
        gpt_share: of the GPT's; None: the same.
        back: how the weights that plain training left are taken back; empty: it trains itself.
        rank: of adapters.
    """

    name: str
    label: str
    encoder: tuple[StorySetting, ...] = ()
    gpt: tuple[StorySetting, ...] = ()
    what: str = ""
    holds: Literal["", "frozen", "l2", "lora", "ewc", "wva", "budget"] = ""
    form: HeldForm = "kronecker"
    rehearses: PastSource | None = None
    share: float = SHARE
    gpt_share: float | None = None
    back: Literal["", "average", "rewind"] = ""
    rank: int = 0

    def settings_for(self, story: str) -> tuple[StorySetting, ...]:
        """The settings that a story tries."""
        return self.gpt if story == "gpt" else self.encoder

    def share_for(self, story: str) -> float:
        """The share that a story rehearses."""
        return self.gpt_share if story == "gpt" and self.gpt_share is not None else self.share

    @property
    def source(self) -> PastSource:
        """What its importance is measured on: what it rehearses, else old data."""
        return "old" if self.rehearses in (None, "new") else self.rehearses


_WEIGHTS, _HEAVY = _values(0.3, 1.0, 3.0, 10.0), _values(1.0, 3.0, 10.0, 30.0)

STORY_METHODS: dict[str, StoryMethod] = {
    method.name: method
    for method in (
        StoryMethod("plain", "plain fine-tuning", _rates(0.05, 0.2, 0.5, 1.0), _rates(0.25, 0.5, 1.0, 2.0)),
        StoryMethod("frozen", "base frozen, head alone", _rates(1.0), holds="frozen"),  # a GPT's head is its own
        StoryMethod(
            "average",
            "average with the old model",
            _values(0.25, 0.5, 0.75, 0.9),
            _values(0.5, 0.7, 0.8, 0.9),
            what="share of the new",
            back="average",
        ),
        StoryMethod(
            "rewind",
            "rewind of plain fine-tuning",
            _values(0.02, 0.05, 0.1, 0.2),
            _values(0.25, 0.5, 1.0, 1.5),
            what="nats",
            back="rewind",
        ),
        StoryMethod(
            "l2",
            "L2 to the start",
            _values(1e-3, 1e-2, 3e-2, 1e-1),
            _values(1e-4, 1e-3, 1e-2, 1e-1),
            what="strength",
            holds="l2",
        ),
        StoryMethod(
            "lora-8",
            "LoRA, rank 8",
            _rates(0.5, 1.0, 2.0, 6.0),
            _rates(0.3, 1.0, 3.0, 10.0),
            holds="lora",
            rank=8,
        ),
        StoryMethod(
            "lora-64",
            "LoRA, rank 64",
            _rates(0.5, 1.0, 2.0, 6.0),
            _rates(0.3, 1.0, 3.0, 10.0),
            holds="lora",
            rank=64,
        ),
        StoryMethod("distil", "old answers to new texts", _HEAVY, _HEAVY, what="weight", rehearses="new"),
        StoryMethod("replay-1", "replay, 1% old data", _HEAVY, _HEAVY, what="weight", rehearses="old", share=_RARE),
        StoryMethod("replay-10", "replay, 10% old data", _WEIGHTS, _WEIGHTS, what="weight", rehearses="old"),
        StoryMethod("replay-20", "replay, 20% old data", (), _WEIGHTS, what="weight", rehearses="old", share=_OFTEN),
        StoryMethod(
            "ewc",
            "EWC, Fisher",
            _values(300.0, 1e3, 3e3, 1e4),
            _values(0.381, 1.27, 3.81, 12.7),
            what="strength",
            holds="ewc",
            form="diagonal",
        ),
        StoryMethod(
            "ewc-kfac",
            "EWC, Kronecker factors",
            _values(30.0, 100.0, 300.0, 1e3),
            _values(0.381, 1.27, 3.81, 12.7),
            what="strength",
            holds="ewc",
        ),
        StoryMethod(
            "budget",
            "EWC, a budget, Kronecker factors",
            _values(0.01, 0.02, 0.05, 0.1),
            what="nats",
            holds="budget",
        ),
        StoryMethod(
            "wva",
            "WVA, Fisher",
            _values(1e5, 3e5, 1e6, 3e6),
            _values(1270.0, 12.7e3, 127e3, 1.27e6),
            what="strength",
            holds="wva",
            form="diagonal",
        ),
        StoryMethod("dreams", "old answers to free texts", _WEIGHTS, _WEIGHTS, what="weight", rehearses="free"),
        StoryMethod(
            "dreams-20", "old answers to free texts, 20%", (), _WEIGHTS, what="weight", rehearses="free", share=_OFTEN
        ),
        StoryMethod(
            "dreams-ewc",
            "free texts and EWC, Fisher",
            _values(300.0, 1e3, 3e3, 1e4),
            _values(0.127, 0.381, 1.27, 3.81),
            what="strength",
            holds="ewc",
            form="diagonal",
            rehearses="free",
            gpt_share=_OFTEN,
        ),
        StoryMethod(
            "dreams-kfac",
            "free texts and EWC, Kronecker factors",
            _values(30.0, 100.0, 300.0, 1e3),
            _values(0.06, 0.127, 0.2, 0.3),
            what="strength",
            holds="ewc",
            rehearses="free",
            gpt_share=_OFTEN,
        ),
        StoryMethod(
            "dreams-wva",
            "free texts and WVA, Fisher",
            _values(1e5, 3e5, 1e6, 3e6),
            _values(127.0, 1270.0, 12.7e3, 127e3),
            what="strength",
            holds="wva",
            form="diagonal",
            rehearses="free",
            gpt_share=_OFTEN,
        ),
        StoryMethod(
            "dreams-budget",
            "free texts and a budget, Kronecker factors",
            _values(0.01, 0.02, 0.05, 0.1),
            _values(0.4, 0.6, 0.9, 1.3),
            what="nats",
            holds="budget",
            rehearses="free",
            gpt_share=_OFTEN,
        ),
    )
}

_PULLS = 4
"""Steps between pulls of whole layers, which cost several times a pull of single weights."""


@dataclass(frozen=True)
class Start:
    """Where a method begins.

    Attributes:
        model: to be trained.
        old: the old skill over the same base: its inputs are those of the past.
        held: (form, source) -> the importance of the old skill, with probes, measured at the weights of `old`.
        past: (source, share) -> what is rehearsed: probes, or batches of old data.
        share: of the batches that are rehearsed.
        loss: of old data, as a `Likelihood`; None for classes.
        trained: makes the base what plain training makes of it, for methods that go back.
    """

    model: LanguageModel
    old: nn.Module
    held: Callable[[HeldForm, PastSource], AnyImportance]
    past: Callable[[PastSource, float], Any]
    share: float = SHARE
    loss: Any = None
    trained: Callable[[], None] | None = None


def learn_with(
    method: StoryMethod,
    value: float | None,
    start: Start,
    stream: Any,
    pace: Pace,
    *,
    judge: Callable[[], float] | None = None,
    on_step: Any = None,
) -> int:
    """Train `start.model` with a method, in place; the step at which the weights are.

    Args:
        method: which.
        value: of its setting.
        start: where it begins.
        stream: of new batches.
        pace: with the learning rate of the setting.
        judge: the loss on new validation data, by which it is stopped early.
        on_step: called every 50 steps with (step, loss).

    Raises:
        OptionError: the method goes back, and there are no trained weights.
    """
    model = start.model
    if method.back:
        return _taken_back(method, value, start)
    if method.holds == "lora":
        return _learn_adapters(model, stream, pace, rank=method.rank, judge=judge, on_step=on_step)
    keeper = _keeper(method, value, start)
    rehearsal = None
    if method.rehearses is not None:
        past = start.past(method.rehearses, start.share)
        loss = None if isinstance(past, Probes) else start.loss
        weight = _WEIGHT if method.holds else value
        assert weight is not None
        whole = isinstance(past, Probes) and isinstance(past.loss, Similarity)  # which compares the examples of a batch
        parts = 1 if whole else PARTS
        rehearsal = Rehearsal(start.old, past, share=start.share, weight=weight, parts=parts, loss=loss)
    if method.holds == "frozen":
        model.base.requires_grad_(False)
    step = learn(model, stream, pace, keeper=keeper, rehearsal=rehearsal, judge=judge, on_step=on_step)
    if method.holds == "budget" and keeper is not None:
        keeper.close()
    model.base.requires_grad_(True)
    return step


def _keeper(method: StoryMethod, value: float | None, start: Start) -> EWC | WVA | None:
    base, importance = start.old, partial(start.held, method.form, method.source)
    quiet: dict[str, Any] = {"log_every": 0, "new_parameters": "free"}
    if method.holds == "l2":
        return EWC(base, strength=value, **quiet).retain(uniform(base))
    if method.holds == "wva":
        return WVA(base, strength=value, **quiet).retain(importance())
    if method.holds in ("ewc", "budget"):
        every = _PULLS if method.form == "kronecker" else 1
        aim = {"strength": value} if method.holds == "ewc" else {"budget": value}
        return EWC(base, every=every, **aim, **quiet).retain(importance())
    return None


def _taken_back(method: StoryMethod, value: float | None, start: Start) -> int:
    if start.trained is None:
        raise OptionError(f"{method.name}: there are no trained weights to go back from.")
    assert value is not None
    base = start.old
    before = copies(all_parameters(base))
    keeper = EWC(base, strength=1.0, log_every=0) if method.back == "rewind" else None
    if keeper is not None:
        keeper.retain(start.held(method.form, method.source))
    start.trained()
    if keeper is None:
        with torch.no_grad():
            for name, parameter in all_parameters(base).items():
                parameter.lerp_(before[name], 1 - value)
    else:
        keeper.rewind(value)
    return 0


def _learn_adapters(
    model: LanguageModel, stream: Any, pace: Pace, *, rank: int, judge: Callable[[], float] | None, on_step: Any
) -> int:
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
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"), bare)
    for name, parameter in bare.named_parameters():
        parameter.requires_grad_("lora_" in name)
    step = learn(model, stream, pace, judge=judge, on_step=on_step)
    for name, layer in list(bare.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            parent, _, own = name.rpartition(".")
            setattr(bare.get_submodule(parent), own, layer.get_base_layer())
    bare.requires_grad_(True)
    return step


HOLDING = tuple(name for name, method in STORY_METHODS.items() if method.holds in ("ewc", "wva", "budget"))
"""The methods that hold what an importance says."""

CENTRAL = ("plain", "replay-10", "replay-20", "dreams", "dreams-kfac", "dreams-budget", "budget")
"""The methods that the stories are about; the others may be reported under fewer seeds."""


def trial_settings(method: StoryMethod, story: str, plain: float | None) -> tuple[tuple[float, float | None], ...]:
    """Learning rate, as a factor of that of the pace, and value of each setting.

    Args:
        method: which.
        story: "encoder" or "gpt".
        plain: the factor that was chosen for plain training; None for plain itself.
    """
    return tuple(((plain or 1.0) * setting.lr, setting.value) for setting in method.settings_for(story))
