"""The Wasserstein GAN with gradient penalty; with classes, an auxiliary-classifier GAN: the parts of a MeRGAN.

One convention for all scales, in which losses are means over examples, and pixels are in -1..1 where the networks
meet them (`fit` takes and `sample` gives 0..1):

    critic:     E D(G(z, c)) - E D(x) + 10 E (|grad D(x^)| - 1)^2 + E CE(D_class(x), c)
    generator:  -E D(G(z, c)) + E CE(D_class(G(z, c)), c)
    alignment:  weight E |G(z, c) - G_old(z, c)|^2, the square summed over the pixels of an image

The authors' paper writes the last so, with weight 1e-3; their program takes half the sum over a whole batch of 64, less
the further the more tasks there were, by which its 1e-3 is 0.032 / (number of past classes) in the convention above.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from holdfast.choices import check_choice
from holdfast.errors import BatchError
from holdfast.replay.generators import HoldablePart, check_range, drawn_classes
from holdfast.replay.images import ImageCritic, ImageGenerator

HELD_BATCH = 64

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Alignment:
    """What a generator's images of past classes are to stay near: those that it gave before, of the same z and class.

    Attributes:
        previous: the frozen generator of the tasks so far.
        classes: those of past tasks, drawn with equal chances.
        weight: of the mean over images of the squared distance, pixels in -1..1.
    """

    previous: WGAN
    classes: Sequence[int]
    weight: float


class WGAN(nn.Module):
    """WGAN-GP of small images, as a `Generator`; with `num_classes` an AC-GAN whose images are of the class asked for.

    Args:
        shape: (channels, side, side) of an image.
        num_classes: None: images of no class in particular.
        latent: length of z ~ N(0, I).
        width: channels at the fine end of generator and critic.
        lr: of Adam with betas (0, 0.9), for both.
        critic_steps: the critic's steps before each of the generator's; a batch is dealt out to them.
        penalty: weight of the gradient penalty.
        precision: "bfloat16" runs the networks under autocast, all but the gradient penalty.
        seed: of the weights; the global random state is left alone.

    Raises:
        UnknownNameError: no such precision.

    Source: Gulrajani et al. 2017 (arXiv 1704.00028), Odena et al. 2017 (arXiv 1610.09585), Wu et al. 2018 (arXiv
    1809.02058). Departure: the penalty differentiates the interpolates' critic value alone, as in the first.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        num_classes: int | None = None,
        latent: int = 128,
        width: int = 32,
        lr: float = 1e-4,
        critic_steps: int = 5,
        penalty: float = 10.0,
        precision: Precision = "float32",
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_choice("precision", precision, get_args(Precision))
        self.num_classes, self.latent = num_classes, latent
        self._seen = False
        self.lr, self.critic_steps, self.penalty, self.precision = lr, critic_steps, penalty, precision
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.generator = ImageGenerator(shape, num_classes=num_classes, latent=latent, width=width)
            self.critic = ImageCritic(shape, num_classes=num_classes, width=width)

    def optimizers(self) -> tuple[Optimizer, ...]:
        """Adam of the generator, and of the critic."""
        self._seen = False
        parts = self.generator, self.critic
        return tuple(Adam(part.parameters(), lr=self.lr, betas=(0.0, 0.9), fused=True) for part in parts)

    def compile_networks(self, backend: str = "inductor") -> None:
        """Let `torch.compile` have both networks; the gradient penalty, which it cannot differentiate, goes without."""
        self.generator.compile(backend=backend)
        self.critic.compile(backend=backend)

    def fit(
        self,
        inputs: Tensor,
        classes: Tensor | None = None,
        *,
        weights: Tensor | None = None,
        optimizers: Sequence[Optimizer],
        alignment: Alignment | None = None,
    ) -> Tensor:
        """One iteration: `critic_steps` steps of the critic, the batch dealt out to them, then one of the generator.

        See `Generator.fit`. With an alignment, what it asks for is added to the generator's loss.

        Returns:
            The critic's estimate of the Wasserstein distance, E D(x) - E D(G(z)), over its steps; scalar.

        Raises:
            BatchError: inputs outside 0..1, looked at in the first batch of a task alone; no classes, where the GAN is
                conditional.
        """
        if not self._seen:
            check_range(inputs, where="WGAN")
            self._seen = True
        self.train()
        order = torch.randperm(len(inputs)).to(inputs.device)
        distances = []
        for part in order.chunk(self.critic_steps):
            chosen = None if classes is None else classes[part]
            share = None if weights is None else weights[part] / weights[part].sum()
            distances.append(self._critic_step(2 * inputs[part] - 1, chosen, share, optimizers[1]))
        last = order[: -(-len(order) // self.critic_steps)]
        self._generator_step(len(last), None if classes is None else classes[last], optimizers[0], alignment)
        return torch.stack(distances).mean()

    @torch.no_grad()
    def sample(self, n: int, *, classes: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """[n, *shape]: images in 0..1; see `Generator.sample`."""
        z = self._latents(n, generator)
        training = self.generator.training
        self.generator.eval()
        with self._autocast():
            images = self.generator(z, self._asked(classes))
        self.generator.train(training)
        return (images.float() + 1) / 2

    def holdable_part(self, n: int, *, classes: Sequence[int], seed: int) -> HoldablePart:
        """G, measured by the squared gradients of its loss, -D(G(z, c)) + CE(D_class(G(z, c)), c), image by image."""
        critic, generator = self.critic, self.generator

        def loss(images: Tensor, batch: tuple) -> Tensor:
            value, logits = critic.forward(images)
            return -value if logits is None else F.cross_entropy(logits, batch[1], reduction="none") - value

        random = torch.Generator().manual_seed(seed)
        batches = []
        for start in range(0, n, HELD_BATCH):
            size = min(HELD_BATCH, n - start)
            asked = drawn_classes(size, classes, device=self._device, generator=random)
            batches.append(((self._latents(size, random), asked), asked))
        return HoldablePart(generator, batches, loss, "empirical")

    def _critic_step(
        self, real: Tensor, classes: Tensor | None, weights: Tensor | None, optimizer: Optimizer
    ) -> Tensor:
        asked = self._asked(classes)
        with self._autocast():
            with torch.no_grad():
                made = self.generator(self._latents(len(real), None), asked)
            value_real, logits = self.critic(real)
            value_made, _ = self.critic(made)
        value_real = value_real.float()
        distance = (value_real.mean() if weights is None else weights @ value_real) - value_made.float().mean()
        loss = self.penalty * self._gradient_penalty(real, made.float()) - distance
        if logits is not None and asked is not None:
            entropy = F.cross_entropy(logits.float(), asked, reduction="none")
            loss = loss + (entropy.mean() if weights is None else weights @ entropy)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return distance.detach()

    def _gradient_penalty(self, real: Tensor, made: Tensor) -> Tensor:
        """E (|grad D(x^)| - 1)^2, x^ evenly drawn between a real image and one that was made."""
        share = torch.rand(len(real), 1, 1, 1).to(real.device)
        between = real.lerp(made, share).requires_grad_()
        value, _ = self.critic.forward(between)  # forward: never the compiled one
        (gradient,) = torch.autograd.grad(value.sum(), between, create_graph=True)
        return (gradient.flatten(1).norm(dim=1) - 1).square().mean()

    def _generator_step(
        self, n: int, classes: Tensor | None, optimizer: Optimizer, alignment: Alignment | None
    ) -> None:
        z, asked = self._latents(n, None), self._asked(classes)
        self.critic.requires_grad_(False)
        with self._autocast():
            value, logits = self.critic(self.generator(z, asked))
        loss = -value.float().mean()
        if logits is not None and asked is not None:
            loss = loss + F.cross_entropy(logits.float(), asked)
        if alignment is not None:
            loss = loss + alignment.weight * self._misalignment(n, alignment)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        self.critic.requires_grad_(True)

    def _misalignment(self, n: int, alignment: Alignment) -> Tensor:
        """E |G(z, c) - G_old(z, c)|^2 over n latents of past classes."""
        z = self._latents(n, None)
        asked = drawn_classes(n, alignment.classes, device=self._device, generator=None)
        with self._autocast():
            with torch.no_grad():
                before = alignment.previous.generator(z, asked)
            now = self.generator(z, asked)
        return (now.float() - before.float()).square().flatten(1).sum(1).mean()

    @property
    def _device(self) -> torch.device:
        return next(self.parameters()).device

    def _latents(self, n: int, generator: torch.Generator | None) -> Tensor:
        return torch.randn(n, self.latent, generator=generator).to(self._device)

    def _asked(self, classes: Tensor | None) -> Tensor | None:
        """The classes, for a GAN that is conditional; None for one that is not."""
        if self.num_classes is None:
            return None
        if classes is None:
            raise BatchError(
                f"WGAN: found no classes, and this one is conditional on {self.num_classes}. Pass classes, int64 [B]."
            )
        return classes

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self.precision == "bfloat16")
