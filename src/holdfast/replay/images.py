"""The convolutional generator and critic of small images, as Memory Replay GANs have them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.errors import OptionError

STAGES = 3
"""At most so many doublings of the side: 28 pixels come from 4, 8 from 2."""


class ConditionalBatchNorm(nn.Module):
    """Batch norm of each class by itself: its own mean and variance, scale and shift.

        y = scale_c (x - mean_c) / sqrt(variance_c + eps) + shift_c

    In training mean and variance are over the examples of class c in the batch and their positions, and running ones
    are kept for each class; evaluation takes these. So a class that is not trained keeps what it has, and a batch of
    many classes is treated as the single-class batches of the authors' program.

    Args:
        num_classes: how many; 1 is ordinary batch norm.
        channels: of the input.
        momentum: of the running statistics.
        eps: added to the variance.

    Source: Dumoulin et al. 2017 (arXiv 1610.07629) for scale and shift by class.
    """

    running_mean: Tensor
    running_variance: Tensor

    def __init__(self, num_classes: int, channels: int, *, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.scale = nn.Parameter(torch.ones(num_classes, channels))
        self.shift = nn.Parameter(torch.zeros(num_classes, channels))
        self.register_buffer("running_mean", torch.zeros(num_classes, channels))
        self.register_buffer("running_variance", torch.ones(num_classes, channels))

    def forward(self, x: Tensor, members: Tensor) -> Tensor:
        """Normalise x [B, C, H, W], of classes given one-hot in `members` [B, K]; in float32, as norms are."""
        with torch.autocast(x.device.type, enabled=False):
            return self._normalised(x.float(), members)

    def _normalised(self, x: Tensor, members: Tensor) -> Tensor:
        if self.training:
            mean, variance = self._statistics(x, members)
        else:
            mean, variance = self.running_mean, self.running_variance
        gain = self.scale * (variance + self.eps).rsqrt()
        offset = self.shift - mean * gain
        return x * (members @ gain)[..., None, None] + (members @ offset)[..., None, None]

    def _statistics(self, x: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
        share = members / members.sum(0).clamp(min=1)
        mean = share.T @ x.mean((2, 3))
        centred = x - (members @ mean)[..., None, None]
        variance = share.T @ centred.square().mean((2, 3))
        with torch.no_grad():
            rate = self.momentum * (members.sum(0) > 0).to(mean).unsqueeze(1)
            self.running_mean.lerp_(mean.detach(), rate)
            self.running_variance.lerp_(variance.detach(), rate)
        return mean, variance


class ImageGenerator(nn.Module):
    """G(z, c): a linear layer, then 5x5 transposed convolutions of stride 2, to images [B, C, H, H] in -1..1.

    For 28 pixels: linear to 4x4x128, to 7x7x64, 14x14x32, 28x28xC; ReLU after each norm, tanh at the end.

    Args:
        shape: (channels, side, side) of an image.
        num_classes: of the conditional norms; None: one for all.
        latent: length of z.
        width: channels before the last layer; they double at each stage below.

    Source: Wu et al. 2018 (arXiv 1809.02058), who pad MNIST to 32 pixels; here it stays at 28.
    """

    def __init__(self, shape: Sequence[int], *, num_classes: int | None, latent: int, width: int) -> None:
        super().__init__()
        self.num_classes, self.latent = num_classes, latent
        sides = _sides(shape)[::-1]
        channels = [width * 2**k for k in reversed(range(len(sides) - 1))]
        self._first = (channels[0], sides[0], sides[0])
        self.linear = nn.Linear(latent, channels[0] * sides[0] ** 2)
        self.norms = nn.ModuleList(ConditionalBatchNorm(num_classes or 1, width) for width in channels)
        self.convolutions = nn.ModuleList(
            nn.ConvTranspose2d(n, m, 5, stride=2, padding=2, output_padding=after - (2 * before - 1))
            for (n, m), (before, after) in zip(pairwise([*channels, shape[0]]), pairwise(sides))
        )

    def forward(self, z: Tensor, classes: Tensor | None = None) -> Tensor:
        """Latents [B, latent] and classes int64 [B] -> images in -1..1."""
        if self.num_classes is None or classes is None:
            members = z.new_ones(len(z), 1)
        else:
            # F.one_hot looks at values, which vmap forbids
            members = (classes[:, None] == torch.arange(self.num_classes, device=classes.device)).to(z)
        x = self.linear(z).view(-1, *self._first)
        for norm, convolution in zip(self.norms, self.convolutions):
            x = convolution(F.relu(norm(x, members)))
        return x.tanh()


class ImageCritic(nn.Module):
    """D(x): 5x5 convolutions of stride 2 and leaky ReLU (0.2) without norm, then a critic and a class head.

    Args:
        shape: (channels, side, side) of an image.
        num_classes: of the class head; None: no such head.
        width: channels of the first layer; they double at each stage.

    Source: Wu et al. 2018 (arXiv 1809.02058).
    """

    def __init__(self, shape: Sequence[int], *, num_classes: int | None, width: int) -> None:
        super().__init__()
        sides = _sides(shape)
        channels = [shape[0], *(width * 2**k for k in range(len(sides) - 1))]
        self.convolutions = nn.ModuleList(nn.Conv2d(n, m, 5, stride=2, padding=2) for n, m in pairwise(channels))
        features = channels[-1] * sides[-1] ** 2
        self.critic = nn.Linear(features, 1, bias=False)  # a constant cancels out of the losses
        self.classes = nn.Linear(features, num_classes) if num_classes else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images in -1..1 -> the critic's value [B], and class logits [B, K] or None."""
        for convolution in self.convolutions:
            x = F.leaky_relu(convolution(x), 0.2)
        x = x.flatten(1)
        return self.critic(x).squeeze(1), None if self.classes is None else self.classes(x)


def _sides(shape: Sequence[int]) -> list[int]:
    """The sides of the images from the full one down, halved and rounded up while they stay at 2 or more."""
    if len(shape) != 3 or shape[1] != shape[2] or shape[1] < 4:
        raise OptionError(
            f"images of shape {tuple(shape)}: expected (channels, side, side) with a side of at least 4. "
            "For other inputs take a VAE, or a generator of your own."
        )
    sides = [shape[1]]
    while len(sides) <= STAGES and sides[-1] >= 4:
        sides.append(-(-sides[-1] // 2))
    return sides
