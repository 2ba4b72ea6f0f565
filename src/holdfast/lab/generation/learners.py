"""What learns to draw class after class: a Memory Replay GAN, with EWC or without, or a scholar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from holdfast.importance import fisher
from holdfast.lab.generation.config import GENERATION_METHODS, GenerationConfig
from holdfast.lab.generation.judge import judge_net
from holdfast.replay import WGAN, MemoryReplayGAN, Scholar, check_alive, frozen, replay_heads
from holdfast.replay.mergan import num_new
from holdfast.retention import EWC
from holdfast.tensors import prefixed, under

_POOL = 2
"""A scholar looks for the images of a class among so many times as many as are wanted of all classes."""

State = tuple[dict[str, Tensor], dict[str, Any]]


class Drawing(Protocol):
    """What a generation run trains."""

    gan: WGAN

    @property
    def all_optimizers(self) -> Sequence[Optimizer]:
        """Those of the task at hand, whose states a checkpoint holds."""
        ...

    def open_task(self, classes: Sequence[int]) -> None:
        """Begin a task."""
        ...

    def fit(self, images: Tensor, classes: Tensor) -> Tensor:
        """One iteration; the critic's estimate of the distance."""
        ...

    def close_task(self, task: int) -> None:
        """Keep what must be kept; raises where the generator has diverged or collapsed."""
        ...

    def draw(self, n: int, classes: Sequence[int], *, seed: int) -> Tensor:
        """[K, n, ...]: n images of each class, in 0..1."""
        ...

    def state(self) -> State:
        """All but the optimizers' states."""
        ...

    def load_state(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Go on from what `state` gave, with new optimizers."""
        ...


def build_drawing(config: GenerationConfig, shape: Sequence[int], num_classes: int, *, device: torch.device) -> Drawing:
    """What the method of a configuration trains."""
    method = GENERATION_METHODS[config.method]
    gan = WGAN(
        shape,
        num_classes=None if method.scholar else num_classes,
        latent=config.latent,
        width=config.width,
        lr=config.lr,
        critic_steps=config.critic_steps,
        penalty=config.penalty,
        precision=config.precision,
        seed=config.seed,
    ).to(device)
    if config.compile:
        gan.compile_networks()
    if method.scholar:
        return Scholarly(gan, judge_net(shape[-1], num_classes, seed=config.seed).to(device), batch=config.batch_size)
    memory = MemoryReplayGAN(
        gan, retraining=method.retraining, alignment=config.alignment if method.alignment else None
    )
    return Conditional(memory, config, ewc=method.ewc)


class Conditional:
    """A Memory Replay GAN; EWC holds its generator where that was asked for."""

    def __init__(self, memory: MemoryReplayGAN, config: GenerationConfig, *, ewc: bool) -> None:
        self.gan, self.memory, self._config = memory.gan, memory, config
        # norms keep statistics of each class, and those of a class that is not trained stay
        options = {"strength": config.strength, "statistics": "free", "log_every": 0}
        self._keeper = EWC(self.gan.generator, **options) if ewc else None

    @property
    def all_optimizers(self) -> Sequence[Optimizer]:
        """The generator's and the critic's."""
        return self.memory.optimizers

    def open_task(self, classes: Sequence[int]) -> None:
        """New optimizers, held where something is held."""
        self.memory.open_task(classes)
        if self._keeper is not None:
            self._keeper.detach().attach(self.memory.optimizers[0])

    def fit(self, images: Tensor, classes: Tensor) -> Tensor:
        """See `MemoryReplayGAN.fit`."""
        return self.memory.fit(images, classes)

    def close_task(self, task: int) -> None:
        """Freeze the generator; for EWC, measure what its own class needs."""
        classes = self.memory.classes
        self.memory.close_task()
        if self._keeper is not None:
            held = self.gan.holdable_part(self._config.importance_examples, classes=classes, seed=task)
            self._keeper.retain(fisher(held.module, held.batches, kind=held.kind, loss=held.loss))

    def draw(self, n: int, classes: Sequence[int], *, seed: int) -> Tensor:
        """Each class asked for, of the same latents."""
        drawn = []
        for label in classes:
            random = torch.Generator().manual_seed(seed)
            asked = torch.full((n,), label, device=next(self.gan.parameters()).device)
            drawn.append(self.gan.sample(n, classes=asked, generator=random))
        return torch.stack(drawn)

    def state(self) -> State:
        """Of the generators and the keeper."""
        tensors, notes = self.memory.state()
        if self._keeper is not None:
            held, notes["keeper"] = self._keeper.state()
            tensors |= prefixed("keeper", held)
        return tensors, notes

    def load_state(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.memory.load_state(tensors, notes)
        if self._keeper is not None:
            self._keeper.load_state(under("keeper", tensors), notes["keeper"])
            self._keeper.detach().attach(self.memory.optimizers[0])


class Scholarly:
    """Deep Generative Replay: a WGAN-GP without classes, and a solver that tells them.

    Every batch is dealt out to new images and replayed ones, each class so far having the same share; the old solver
    answers the replayed ones. Images of a class are those on which the solver, looking through a pool, sees it; where
    these are too few, those that come nearest.

    Source: Shin et al. 2017 (arXiv 1705.08690).
    """

    def __init__(self, gan: WGAN, solver: nn.Sequential, *, batch: int) -> None:
        self.gan, self.solver, self._batch = gan, solver, batch
        self.optimizers: Sequence[Optimizer] = ()
        self._solver_optimizer: Optimizer | None = None
        self._classes: tuple[int, ...] = ()
        self._past: tuple[int, ...] = ()
        self._scholar: Scholar | None = None

    @property
    def all_optimizers(self) -> Sequence[Optimizer]:
        """The generator's, the critic's and the solver's."""
        return () if self._solver_optimizer is None else (*self.optimizers, self._solver_optimizer)

    def open_task(self, classes: Sequence[int]) -> None:
        """New optimizers."""
        self._classes = tuple(classes)
        self.optimizers = self.gan.optimizers()
        self._solver_optimizer = Adam(self.solver.parameters(), lr=1e-3, fused=True)

    def fit(self, images: Tensor, classes: Tensor) -> Tensor:
        """One iteration of the generator on the whole batch, and a step of the solver on a part of it."""
        if self._scholar is not None:
            keep = num_new(len(images), new=len(self._classes), past=len(self._past))
            heads = replay_heads("seen", (self._past, self._classes), 1)
            replay = self._scholar.replay(len(images) - keep, heads)
            images = torch.cat([images[:keep], replay.inputs])
            classes = torch.cat([classes[:keep], replay.classes])
        distance = self.gan.fit(images, optimizers=self.optimizers)
        part = torch.randperm(len(images))[: self._batch].to(images.device)
        assert self._solver_optimizer is not None
        self._solver_optimizer.zero_grad()
        F.cross_entropy(self.solver(images[part]), classes[part]).backward()
        self._solver_optimizer.step()
        return distance

    def close_task(self, task: int) -> None:
        """Freeze the scholar."""
        check_alive(self.gan, where=f"DGR, task {task + 1}")
        self._past, self._classes = (*self._past, *self._classes), ()
        self._scholar = Scholar(frozen(self.solver), frozen(self.gan))

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
        parts = {"gan": self.gan, "solver": self.solver}
        if self._scholar is not None:
            parts |= {"old-gan": self._scholar.generator, "old-solver": self._scholar.solver}
        tensors = {name: t for part, module in parts.items() for name, t in prefixed(part, module.state_dict()).items()}
        return tensors, {"classes": self._classes, "past": self._past}

    def load_state(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self._past = tuple(notes["past"])
        if self._past:
            self._scholar = Scholar(frozen(self.solver), generator := frozen(self.gan))
            self._scholar.solver.load_state_dict(under("old-solver", tensors))
            generator.load_state_dict(under("old-gan", tensors))
        self.gan.load_state_dict(under("gan", tensors))
        self.solver.load_state_dict(under("solver", tensors))
        self.open_task(notes["classes"])
