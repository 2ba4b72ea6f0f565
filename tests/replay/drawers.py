"""Data, and a generator that cannot learn, for tests of what is done with generators."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

_SHAPES = (torch.rand(6, 64, generator=torch.Generator().manual_seed(1)) > 0.5).float()


def patterns(n: int, *, classes: Sequence[int] = (0, 1), seed: int = 0) -> tuple[Tensor, Tensor]:
    """8x8 images [n, 1, 8, 8] in 0..1 and their classes: class c has bright pixels in places of its own, more or less
    bright from image to image.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor(classes)[torch.randint(len(classes), (n,), generator=generator)]
    light = 0.4 + 0.6 * torch.rand(n, 1, generator=generator)
    noise = 0.1 * torch.rand(n, 64, generator=generator)
    return (0.9 * light * _SHAPES[labels] + noise).view(n, 1, 8, 8), labels


def class_of(images: Tensor) -> Tensor:
    """The class whose places are brightest, beside the others, in each image."""
    centred = _SHAPES - _SHAPES.mean(1, keepdim=True)
    return (images.flatten(1) @ (centred / centred.norm(dim=1, keepdim=True)).T).argmax(1)


class Stuck(nn.Module):
    """Draws `spread` times noise around one image, another of each class where it heeds them; of class 3 always it."""

    num_classes: int | None = None

    def __init__(self, spread: float = 1.0, *, num_classes: int | None = None, heeds: float = 0.1) -> None:
        super().__init__()
        self.spread, self.num_classes, self.heeds = spread, num_classes, heeds
        self.weight = nn.Parameter(torch.zeros(2, 2))

    def optimizers(self) -> tuple[Optimizer, ...]:
        return (SGD(self.parameters(), lr=0.1),)

    def fit(
        self,
        inputs: Tensor,
        classes: Tensor | None = None,
        *,
        weights: Tensor | None = None,
        optimizers: Sequence[Optimizer],
    ) -> Tensor:
        return torch.zeros(())

    def sample(self, n: int, *, classes: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        spread, middle = torch.full((n,), self.spread), torch.full((n, 1, 1, 1), 0.5)
        if classes is not None:
            spread[classes == 3] = 0.0
            middle = middle + self.heeds * classes[:, None, None, None]
        return middle + spread[:, None, None, None] * torch.rand(n, 1, 2, 2, generator=generator)
