"""The variational autoencoder, plain and conditional on the class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from holdfast.errors import BatchError
from holdfast.replay.generators import HoldablePart, check_range, drawn_classes

HELD_BATCH = 128


class VAE(nn.Module):
    """A generator of inputs in 0..1: z ~ N(0, I), x_j ~ Bernoulli(decoder(z)_j).

    Trained on the negative evidence bound, in nats per example,

        -log p(x|z) + KL(q(z|x) || N(0, I)),  z ~ q(z|x) = N(mean(x), exp(log_variance(x))).

    Encoder and decoder are ReLU networks of the same hidden layers. With classes, the decoder is told which it is
    (p(x|z, c), one-hot beside z) and the encoder too, so that z carries what the class leaves open.

    Args:
        shape: of one input.
        num_classes: of a conditional VAE; None: a plain one.
        hidden: units of each hidden layer of the encoder; the decoder has them in reverse.
        latent: length of z.
        lr: of Adam.
        seed: of the weights; the global random state is left alone.

    Source: Kingma & Welling 2013 (arXiv 1312.6114); sizes, Adam and its rate as the replay of van de Ven & Tolias 2019
    (arXiv 1904.07734), who divide the bound by the number of pixels, which under Adam changes nothing.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        num_classes: int | None = None,
        hidden: Sequence[int] = (400, 400),
        latent: int = 100,
        lr: float = 1e-3,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.shape, self.num_classes, self.latent, self.lr = tuple(shape), num_classes, latent, lr
        self._seen = False
        told, pixels = num_classes or 0, math.prod(shape)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encoder = _relu_net([pixels + told, *hidden, 2 * latent])
            self.decoder = _relu_net([latent + told, *reversed(hidden), pixels])

    def optimizers(self) -> tuple[Optimizer, ...]:
        """Adam with torch's own constants."""
        self._seen = False
        return (Adam(self.parameters(), lr=self.lr, fused=True),)

    def negative_bound(self, inputs: Tensor, classes: Tensor | None = None) -> Tensor:
        """[B]: the negative evidence bound of each example, in nats, at one draw of z."""
        flat = inputs.flatten(1)
        mean, log_variance = self.encoder(self._told(flat, classes)).chunk(2, dim=1)
        z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        logits = self.decoder(self._told(z, classes))
        reconstruction = F.binary_cross_entropy_with_logits(logits, flat, reduction="none").sum(1)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
        return reconstruction + divergence

    def fit(
        self,
        inputs: Tensor,
        classes: Tensor | None = None,
        *,
        weights: Tensor | None = None,
        optimizers: Sequence[Optimizer],
    ) -> Tensor:
        """One step on the weighted mean of the bound; see `Generator.fit`. Returns it, in nats per example.

        Raises:
            BatchError: inputs outside 0..1; looked at in the first batch of a task alone.
        """
        if not self._seen:
            check_range(inputs, where="VAE")
            self._seen = True
        self.train()
        bound = self.negative_bound(inputs, classes)
        loss = bound.mean() if weights is None else weights @ bound
        optimizers[0].zero_grad()
        loss.backward()
        optimizers[0].step()
        return loss.detach()

    @torch.no_grad()
    def sample(self, n: int, *, classes: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """[n, *shape]: the means of the pixels, in 0..1, at z drawn from N(0, I); see `Generator.sample`."""
        z = self._latents(n, generator)
        return self.decoder(self._told(z, classes)).sigmoid().view(n, *self.shape)

    def holdable_part(self, n: int, *, classes: Sequence[int], seed: int) -> HoldablePart:
        """The decoder, measured by the Fisher information of p(x|z) with z and classes drawn as in `sample`."""

        def batches():
            random = torch.Generator().manual_seed(seed)
            for start in range(0, n, HELD_BATCH):
                size = min(HELD_BATCH, n - start)
                asked = drawn_classes(size, classes, device=self._device, generator=random)
                latents = self._told(self._latents(size, random), asked)
                yield latents, latents.new_zeros(size)  # the sampled Fisher draws its own pixels

        return HoldablePart(self.decoder, _Again(batches), "bernoulli", "sampled")

    @property
    def _device(self) -> torch.device:
        return next(self.parameters()).device

    def _latents(self, n: int, generator: torch.Generator | None) -> Tensor:
        return torch.randn(n, self.latent, generator=generator).to(self._device)

    def _told(self, values: Tensor, classes: Tensor | None) -> Tensor:
        """Values [B, D] with the class as one-hot columns behind them, where the VAE is conditional."""
        if self.num_classes is None:
            return values
        if classes is None:
            raise BatchError(
                f"VAE: found no classes, and this one is conditional on {self.num_classes}. Pass classes, int64 [B]."
            )
        return torch.cat([values, F.one_hot(classes, self.num_classes).to(values)], dim=1)


class _Again:
    """An iterable that starts its iterator anew each time."""

    def __init__(self, start) -> None:
        self._start = start

    def __iter__(self):
        return self._start()


def _relu_net(sizes: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
