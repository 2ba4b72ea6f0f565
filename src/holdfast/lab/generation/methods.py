"""What learns to draw class after class: a Memory Replay GAN, with EWC or without, or a scholar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer

from holdfast.errors import OptionError
from holdfast.files.typed import Within
from holdfast.importance import fisher
from holdfast.lab.generation.judge import judge_net, learn_classes
from holdfast.lab.generation.registry import GENERATION_METHODS, DrawingPlan, register_generation_method
from holdfast.lab.registry import chosen
from holdfast.replay import MemoryReplayGAN, Scholar, frozen, replay_heads
from holdfast.replay.mergan import num_new
from holdfast.retention import EWC
from holdfast.tensors import prefixed, under

_POOL = 2
"""A scholar looks for the images of a class among so many times as many as are wanted of all classes."""

State = tuple[dict[str, Tensor], dict[str, Any]]


class Drawing:
    """What a generation run trains, and the moments in which it may act. Here: a GAN, with what its memory rehearses.

    The order is: `open_task`; `fit` at every iteration; `close_task`; `draw` at every measurement. What must survive a
    kill goes through `state` and `load_state`. What draws at random in `fit` draws from torch's global state, which
    every iteration seeds: so a run that goes on draws the same.

    A method of your own is a function of a `DrawingPlan` (and its options) that returns one, or a subclass that is
    made so; see `register_generation_method`.

    Attributes:
        memory: the GAN, and how it rehearses.
        gan: its generator and critic.
    """

    def __init__(self, memory: MemoryReplayGAN) -> None:
        self.memory, self.gan = memory, memory.gan

    @property
    def all_optimizers(self) -> Sequence[Optimizer]:
        """Those of the task at hand, whose states a checkpoint holds: the generator's and the critic's."""
        return self.memory.optimizers

    def open_task(self, classes: Sequence[int]) -> None:
        """Begin a task with new optimizers."""
        self.memory.open_task(classes)

    def fit(self, images: Tensor, classes: Tensor) -> Tensor:
        """One iteration; the critic's estimate of the distance. See `MemoryReplayGAN.fit`."""
        return self.memory.fit(images, classes)

    def close_task(self, task: int) -> None:
        """Keep what must be kept; raises where the generator has diverged or collapsed."""
        self.memory.close_task()

    def draw(self, n: int, classes: Sequence[int], *, seed: int) -> Tensor:
        """[K, n, ...]: n images of each class, in 0..1, each class of the same latents."""
        drawn = []
        for label in classes:
            random = torch.Generator().manual_seed(seed)
            asked = torch.full((n,), label, device=next(self.gan.parameters()).device)
            drawn.append(self.gan.sample(n, classes=asked, generator=random))
        return torch.stack(drawn)

    def state(self) -> State:
        """All but the optimizers' states."""
        return self.memory.state()

    def load_state(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Go on from what `state` gave, with new optimizers."""
        self.memory.load_state(tensors, notes)


def build_drawing(method: str, plan: DrawingPlan, settings: Mapping[str, Any]) -> Drawing:
    """What a method trains.

    Raises:
        OptionError: it makes no `Drawing`.
    """
    made = chosen(GENERATION_METHODS.named(method), settings)(plan)
    if not isinstance(made, Drawing):
        raise OptionError(
            f"method {method}: made a {type(made).__name__}; expected a subclass of holdfast.lab.generation.Drawing."
        )
    return made


@register_generation_method(
    "joint",
    summary="goes on training on the real data of all classes so far (the ceiling)",
    past_data=True,
    place="ceiling",
)
@register_generation_method(
    "none", label="plain", summary="plain fine-tuning: nothing holds the old classes (the floor)", place="floor"
)
def plain(plan: DrawingPlan) -> Drawing:
    """Trained on what comes."""
    return Drawing(MemoryReplayGAN(plan.gan()))


@dataclass(frozen=True, kw_only=True)
class AlignmentOptions:
    """Of replay alignment.

    Attributes:
        alignment: weight of replay alignment; see `holdfast.replay.wgan` for its scale.
    """

    alignment: Annotated[float, Within(0, 1e9)] = 0.03


@register_generation_method(
    "mergan-jtr-ra", label="MeRGAN JTR+RA", summary="both of the next two", options=AlignmentOptions
)
def retrained_and_aligned(plan: DrawingPlan, options: AlignmentOptions) -> Drawing:
    """Joint retraining and replay alignment."""
    return Drawing(MemoryReplayGAN(plan.gan(), retraining=True, alignment=options.alignment))


@register_generation_method("mergan-jtr", label="MeRGAN JTR", summary="joint retraining with replayed images")
def retrained(plan: DrawingPlan) -> Drawing:
    """Joint retraining."""
    return Drawing(MemoryReplayGAN(plan.gan(), retraining=True))


@register_generation_method(
    "mergan-ra",
    label="MeRGAN RA",
    summary="aligns its images of past classes with its frozen self's",
    options=AlignmentOptions,
)
def aligned(plan: DrawingPlan, options: AlignmentOptions) -> Drawing:
    """Replay alignment."""
    return Drawing(MemoryReplayGAN(plan.gan(), alignment=options.alignment))


@register_generation_method(
    "dgr", label="DGR", summary="replays a generator without classes; its solver tells the classes"
)
class Scholarly(Drawing):
    """Deep Generative Replay: a WGAN-GP without classes, and a solver that tells them.

    Every batch is dealt out to new images and replayed ones, each class so far having the same share; the old solver
    answers the replayed ones. Images of a class are those on which the solver, looking through a pool, sees it; where
    these are too few, those that come nearest.

    Source: Shin et al. 2017 (arXiv 1705.08690).
    """

    def __init__(self, plan: DrawingPlan) -> None:
        super().__init__(MemoryReplayGAN(plan.gan(conditional=False)))
        self.solver = judge_net(plan.shape, plan.num_classes, seed=plan.seed).to(plan.device)
        self._batch = plan.settings.batch_size
        self._optimizer: Optimizer = self._new_optimizer()
        self._scholar: Scholar | None = None

    @property
    def all_optimizers(self) -> Sequence[Optimizer]:
        """The generator's, the critic's and the solver's."""
        return (*self.memory.optimizers, self._optimizer)

    def open_task(self, classes: Sequence[int]) -> None:
        """New optimizers."""
        super().open_task(classes)
        self._optimizer = self._new_optimizer()

    def fit(self, images: Tensor, classes: Tensor) -> Tensor:
        """One iteration of the generator on the whole batch, and a step of the solver on a part of it."""
        new, past = self.memory.classes, self.memory.past
        if self._scholar is not None:
            keep = num_new(len(images), new=len(new), past=len(past))
            replay = self._scholar.replay(len(images) - keep, replay_heads("seen", (past, new), 1))
            images = torch.cat([images[:keep], replay.inputs])
            classes = torch.cat([classes[:keep], replay.classes])
        distance = super().fit(images, classes)
        part = torch.randperm(len(images))[: self._batch].to(images.device)
        learn_classes(self.solver, self._optimizer, [(images[part], classes[part])])
        return distance

    def close_task(self, task: int) -> None:
        """Freeze the scholar."""
        self.memory.close_task(where="DGR")
        self._freeze()

    @torch.no_grad()
    def draw(self, n: int, classes: Sequence[int], *, seed: int) -> Tensor:
        """The images of a pool that the solver takes for each class."""
        random = torch.Generator().manual_seed(seed)
        pool = torch.cat([self.gan.sample(n, generator=random) for _ in range(_POOL * len(classes))])
        odds = torch.cat([self.solver(part).softmax(1) for part in pool.split(1000)])
        answers = odds.argmax(1)
        drawn = []
        for label in classes:
            rank = (answers == label).float() * 2 + odds[:, label] * (answers != label)
            drawn.append(pool[rank.sort(descending=True, stable=True).indices[:n]])
        return torch.stack(drawn)

    def state(self) -> State:
        """Of generator and solver, and of the frozen ones."""
        tensors, notes = super().state()
        tensors |= prefixed("solver", self.solver.state_dict())
        if self._scholar is not None:
            tensors |= prefixed("old-solver", self._scholar.solver.state_dict())
        return tensors, notes

    def load_state(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        super().load_state(tensors, notes)
        if self.memory.past:
            self._freeze().solver.load_state_dict(under("old-solver", tensors))
        self.solver.load_state_dict(under("solver", tensors))
        self._optimizer = self._new_optimizer()

    def _new_optimizer(self) -> Optimizer:
        return Adam(self.solver.parameters(), lr=1e-3, fused=True)

    def _freeze(self) -> Scholar:
        self._scholar = Scholar(frozen(self.solver), self.memory.previous)
        return self._scholar


@dataclass(frozen=True, kw_only=True)
class HeldOptions:
    """Of EWC that holds the generator.

    Attributes:
        strength: of EWC.
        importance_examples: latents that the Fisher information is measured on, each task.
    """

    strength: Annotated[float, Within(0, float("inf"))] = 1e3
    importance_examples: Annotated[int, Within(1, 10**9)] = 1000


@register_generation_method(
    "ewc-fisher",
    label="EWC Fisher",
    summary="pulls the generator's weights elastically to their anchors",
    options=HeldOptions,
)
class Held(Drawing):
    """A generator that EWC holds, by the Fisher information of its own loss."""

    def __init__(self, plan: DrawingPlan, options: HeldOptions) -> None:
        super().__init__(MemoryReplayGAN(plan.gan()))
        self._num_latents = options.importance_examples
        # norms keep statistics of each class, and those of a class that is not trained stay
        self._keeper = EWC(self.gan.generator, strength=options.strength, statistics="free", log_every=0)

    def open_task(self, classes: Sequence[int]) -> None:
        """New optimizers, of which the generator's is held."""
        super().open_task(classes)
        self._attach()

    def close_task(self, task: int) -> None:
        """Measure what the class of the task needs."""
        classes = self.memory.classes
        super().close_task(task)
        held = self.gan.holdable_part(self._num_latents, classes=classes, seed=task)
        self._keeper.retain(fisher(held.module, held.batches, kind=held.kind, loss=held.loss))

    def state(self) -> State:
        """Of the generators and the keeper."""
        tensors, notes = super().state()
        held, notes["keeper"] = self._keeper.state()
        return tensors | prefixed("keeper", held), notes

    def load_state(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        super().load_state(tensors, notes)
        self._keeper.load_state(under("keeper", tensors), notes["keeper"])
        self._attach()

    def _attach(self) -> None:
        self._keeper.detach().attach(self.memory.optimizers[0])
