"""Deep Generative Replay in a run: a solver, and a generator that learns to draw what the solver must not forget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, assert_never

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from holdfast.errors import OptionError
from holdfast.files.optimizers import load_optimizer_states, optimizer_states
from holdfast.files.typed import Within
from holdfast.importance import fisher
from holdfast.lab.methods.distillation import DistillationOptions
from holdfast.lab.methods.learner import Learner, Setting
from holdfast.lab.methods.registry import COLOURS, METHODS, register_method
from holdfast.lab.options import OneOf
from holdfast.lab.registry import Entry, Registry
from holdfast.lab.streams import Examples
from holdfast.lab.training import Losses
from holdfast.likelihoods.masks import active_classes
from holdfast.replay import (
    VAE,
    WGAN,
    Generator,
    Holdable,
    Replay,
    ReplaySource,
    Scholar,
    check_alive,
    frozen,
    mixed,
    replay_heads,
    replay_loss,
)
from holdfast.retention import EWC, WVA
from holdfast.tensors import prefixed, under

HELD_LATENTS = 1000
"""So many latents does the Fisher information of a generator take."""


GENERATORS: Registry[Entry] = Registry("generator", Entry)
"""What draws the past; `make(input_shape, num_classes, seed, options)` gives a `holdfast.replay.Generator`."""

register_generator = GENERATORS.register


@dataclass(frozen=True, kw_only=True)
class CriticOptions:
    """Of a Wasserstein GAN with gradient penalty.

    Attributes:
        generator_lr: of the generator's Adam; None: 1e-4.
    """

    generator_lr: Annotated[float, Within(0, 1e6)] | None = None


@dataclass(frozen=True, kw_only=True)
class VaeOptions:
    """Of a variational autoencoder.

    Attributes:
        generator_units: of each of the two hidden layers of encoder and decoder.
        generator_latent: length of the latent.
        generator_lr: of the generator's Adam; None: 1e-3.
    """

    generator_units: Annotated[int, Within(1, 10**6)] = 400
    generator_latent: Annotated[int, Within(1, 10**6)] = 100
    generator_lr: Annotated[float, Within(0, 1e6)] | None = None


@register_generator("vae", label="VAE", summary="a variational autoencoder", options=VaeOptions)
def build_vae(shape: tuple[int, ...], num_classes: int, seed: int, options: VaeOptions) -> VAE:
    """A VAE that knows no classes."""
    return _vae(shape, None, seed, options)


@register_generator("cvae", label="conditional VAE", summary="one that is told the class", options=VaeOptions)
def build_conditional_vae(shape: tuple[int, ...], num_classes: int, seed: int, options: VaeOptions) -> VAE:
    """A VAE that is told the class."""
    return _vae(shape, num_classes, seed, options)


def _vae(shape: tuple[int, ...], num_classes: int | None, seed: int, options: VaeOptions) -> VAE:
    units, latent, lr = options.generator_units, options.generator_latent, _rate(options)
    return VAE(shape, num_classes=num_classes, hidden=(units, units), latent=latent, seed=seed, **lr)


@register_generator("wgan-gp", label="WGAN-GP", summary="a Wasserstein GAN", options=CriticOptions)
def build_wgan(shape: tuple[int, ...], num_classes: int, seed: int, options: CriticOptions) -> WGAN:
    """A WGAN with gradient penalty."""
    return WGAN(shape, seed=seed, **_rate(options))


def _rate(options: VaeOptions | CriticOptions) -> dict[str, Any]:
    return {} if options.generator_lr is None else {"lr": options.generator_lr}


@dataclass(frozen=True, kw_only=True)
class ReplayOptions:
    """Of deep generative replay.

    Attributes:
        replay: where replayed inputs come from: "generative", or of the controls "exact", "noise", "none".
        generator: "vae", "cvae" (conditional on the class) or "wgan-gp".
        new_share: share of the new task in the loss, 0..1; None: 1/t at the t-th task.
        hold: the method that holds the solver besides, such as "ewc-fisher".
        hold_generator: "ewc" or "wva" holds the generator besides, by its Fisher information.
        generator_strength: strength of the EWC or WVA that holds the generator.
    """

    replay: ReplaySource = "generative"
    generator: Annotated[str, OneOf(GENERATORS)] = "vae"
    new_share: Annotated[float, Within(0, 1)] | None = None
    hold: Annotated[str, OneOf(METHODS)] | None = None
    hold_generator: Literal["ewc", "wva"] | None = None
    generator_strength: Annotated[float, Within(0, float("inf"))] | None = None


@dataclass(frozen=True, kw_only=True)
class DistilledReplayOptions(ReplayOptions, DistillationOptions):
    """Of deep generative replay with the old solver's odds."""


@register_method(
    "dgr",
    label="DGR",
    summary="replays a generator's samples, with the old solver's answers",
    options=ReplayOptions,
    style={"color": COLOURS["generator"], "linestyle": "-", "marker": "s"},
    classes_only=True,
)
@register_method(
    "dgr-distilled",
    label="DGR distilled",
    summary="replays a generator's samples, with the old solver's odds",
    options=DistilledReplayOptions,
    style={"color": COLOURS["odds"], "linestyle": "-", "marker": "s"},
    classes_only=True,
)
class DGR(Learner):
    """Scholar t learns the new task, and from scholar t - 1 the old ones; neither needs their data.

    The solver's loss is share * (new) + (1 - share) * (replayed), share = 1/t at the t-th task or fixed; as many inputs
    are replayed at each step as there are new ones, and scholar t - 1 answers them. The generator learns, in the same
    iterations, the same mixture of new and replayed inputs. So a step costs the same however many tasks there were.

    Args:
        model: the solver.
        setting: of the stream, with the generator, and what holds the solver besides, among its parts.
        options: source of replayed inputs, share, and what holds the generator. Those with a temperature have the
            solver learn the old one's probabilities at that, not its most probable class.

    Source: Shin et al. 2017 (arXiv 1705.08690); shares, sizes and iterations as van de Ven & Tolias 2019 (1904.07734).
    Departures: a new optimizer of the generator for each task.
    """

    def __init__(self, model: nn.Module, setting: Setting, options: ReplayOptions) -> None:
        super().__init__(model, setting)
        self.options = options
        self.temperature = options.temperature if isinstance(options, DistilledReplayOptions) else None
        self._device = next(model.parameters()).device
        self.holding = _holding(model, setting)
        self.generator: Generator | None = None
        self.keeper: EWC | WVA | None = None
        if options.replay == "generative":
            num_classes = 1 + max(column for classes in setting.task_classes for column in classes)
            generator: Any = setting.parts["generator"](setting.input_shape, num_classes, setting.seed)
            self.generator = generator.to(self._device)
            self.keeper = _generator_keeper(generator, options)
        self.optimizers: Sequence[Optimizer] = ()
        self.scholar: Scholar | None = None
        self._task = 0
        self._past: list[Examples] = []
        self._fitted = torch.zeros(())

    def attach(self, optimizer: Optimizer) -> None:
        """Hold the solver, where that was asked for."""
        self.holding.attach(optimizer)

    def open_task(self, task: int, examples: Examples) -> None:
        """New optimizers for the generator."""
        self._start(task)

    def loss(self, inputs: Tensor, targets: Tensor, columns: Tensor | None) -> Losses:
        """The solver's loss on new and replayed inputs, after one iteration of the generator on the same ones."""
        own, penalty = self.holding.loss(inputs, targets, columns)
        replay, share = self._replay(len(inputs)), self._new_share
        if self.generator is not None:
            batch, classes, weights = mixed(
                (inputs, targets), None if replay is None else (replay.inputs, replay.classes), new_share=share
            )
            self._fitted = self.generator.fit(batch, classes, weights=weights, optimizers=self.optimizers)
        if replay is None:
            return own, penalty
        logits = self.model(replay.inputs)
        replayed = replay_loss(logits, replay, self._heads, temperature=self.temperature)
        added = (1 - share) * (replayed - own)
        return own, added if penalty is None else added + penalty

    def after_step(self, inputs: Tensor, targets: Tensor, columns: Tensor | None) -> None:
        """For what holds the solver; the replayed inputs of the step do not come again."""
        self.holding.after_step(inputs, targets, columns)

    @property
    def steadier(self) -> str:
        """That of what holds the solver."""
        return self.holding.steadier

    def close_task(self, examples: Examples, *, classes: tuple[int, ...] | None, task: int) -> None:
        """Freeze the scholar; measure what solver and generator must keep, where they are held.

        Raises:
            NotFiniteError, CollapseError: the generator has diverged or collapsed; see `check_alive`.
        """
        self.holding.close_task(examples, classes=classes, task=task)
        if self.generator is not None:
            known = active_classes("seen", self.setting.task_classes, task) or ()
            check_alive(self.generator, classes=known, where=f"DGR, task {task + 1}")
            self._hold_generator(task)
        self._freeze()

    def report(self) -> str:
        """What is replayed, how well the generator fits, and what the keepers say."""
        source = self.options.generator if self.generator is not None else self.options.replay
        told = [f"DGR: replays {source}, tasks so far {self._task + 1}"]
        if self.generator is not None:
            told.append(f"generator's loss {float(self._fitted):.1f}")
        if self.keeper is not None:
            told.append(str(self.keeper.report()))
        return "; ".join([*told, *filter(None, [self.holding.report()])])

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Of the generator and its optimizers, of the frozen scholar, and of what holds them."""
        notes: dict[str, Any] = {"task": self._task, "frozen": self.scholar is not None}
        held, notes["holding"] = self.holding.state()
        tensors = prefixed("holding", held)
        if self.generator is not None:
            found, notes["optimizers"] = optimizer_states(self.optimizers)
            tensors |= {**prefixed("generator", self.generator.state_dict()), **found, "fitted": self._fitted}
        if self.scholar is not None:
            tensors |= prefixed("old-solver", self.scholar.solver.state_dict())
            if self.scholar.generator is not None:
                tensors |= prefixed("old-generator", self.scholar.generator.state_dict())
        if self.keeper is not None:
            found, notes["keeper"] = self.keeper.state()
            tensors |= prefixed("keeper", found)
        return tensors, notes

    def load_state(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.holding.load_state(under("holding", tensors), notes["holding"])
        if notes["frozen"]:
            self._freeze()
            assert self.scholar is not None
            self.scholar.solver.load_state_dict(under("old-solver", tensors))
            if self.scholar.generator is not None:
                self.scholar.generator.load_state_dict(under("old-generator", tensors))
        self._start(notes["task"])
        if self.keeper is not None:
            self.keeper.load_state(under("keeper", tensors), notes["keeper"])
        if self.generator is not None:
            self.generator.load_state_dict(under("generator", tensors))
            load_optimizer_states(self.optimizers, tensors, notes["optimizers"])
            self._fitted = tensors["fitted"]

    @property
    def _new_share(self) -> float:
        given = self.options.new_share
        return 1 / (self._task + 1) if given is None else given

    def _start(self, task: int) -> None:
        """What a task begins with, also when a killed run goes on in its midst."""
        self._task, self._past = task, []
        self._heads = replay_heads(self.setting.mask, self.setting.task_classes, task) if task else ()
        if self.generator is not None:
            self.optimizers = self.generator.optimizers()
            if self.keeper is not None:
                self.keeper.detach().attach(self.optimizers[0])

    def _freeze(self) -> None:
        self.scholar = Scholar(frozen(self.model), None if self.generator is None else frozen(self.generator))

    def _replay(self, n: int) -> Replay | None:
        """As many replayed inputs as there are new ones, answered; None in the first task, and with replay "none"."""
        if self.scholar is None or self.options.replay == "none":
            return None
        match self.options.replay:
            case "generative":
                return self.scholar.replay(n, self._heads)
            case "noise":
                noise = torch.rand(n, *self.setting.input_shape)
                return self.scholar.answer(noise.to(self._device), self._heads)
            case "exact":
                return self.scholar.answer(self._past_inputs(n), self._heads)
            case _:
                assert_never(self.options.replay)

    def _past_inputs(self, n: int) -> Tensor:
        """Real inputs of earlier tasks, each task alike often."""
        if not self._past:
            assert self.setting.past is not None
            self._past = [self.setting.past(k) for k in range(self._task)]
        counts = torch.randint(len(self._past), (n,)).bincount(minlength=len(self._past)).tolist()
        drawn = [
            each.at(torch.randint(len(each), (count,)).to(self._device)) for each, count in zip(self._past, counts)
        ]
        return torch.cat(drawn)

    def _hold_generator(self, task: int) -> None:
        if self.keeper is None:
            return
        assert isinstance(self.generator, Holdable)
        held = self.generator.holdable_part(HELD_LATENTS, classes=self.setting.task_classes[task], seed=task)
        self.keeper.retain(fisher(held.module, held.batches, kind=held.kind, loss=held.loss, seed=task))


def _holding(model: nn.Module, setting: Setting) -> Learner:
    """What holds the solver besides: a learner of its own, which may do nothing."""
    held = setting.parts.get("hold")
    if held is None:
        return Learner(model, setting)
    if not held.entry.holds_weights:
        known = ", ".join(name for name, each in METHODS.items() if each.holds_weights)
        raise OptionError(f"dgr: hold is {held.entry.name!r}; expected a method that holds weights: {known}.")
    return held(model, setting)


def _generator_keeper(generator: Generator, options: ReplayOptions) -> EWC | WVA | None:
    if options.hold_generator is None:
        return None
    if options.generator_strength is None:
        raise OptionError(
            f"dgr: hold_generator={options.hold_generator!r} needs generator_strength; found None. Give one."
        )
    assert isinstance(generator, Holdable)
    module = generator.holdable_part(0, classes=(0,), seed=0).module
    kind = {"ewc": EWC, "wva": WVA}[options.hold_generator]
    return kind(module, strength=options.generator_strength)
