"""How good drawn images are, in the eyes of the judge."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from holdfast.lab.generation.judge import features, train_judge
from holdfast.lab.streams import Examples
from holdfast.lab.training import accuracy

_CHUNK = 2000


def asked_accuracy(judge: nn.Sequential, drawn: Tensor) -> list[float]:
    """Share of the images of each class on which the judge sees that class.

    Args:
        judge: the classifier of real images.
        drawn: [K, n, ...]: n images that were asked to be of class 0, of class 1, ...

    Returns:
        K fractions. Their mean over the first five and over all ten classes is the A5 and A10 of Wu et al. 2018.
    """
    return [
        accuracy(judge, Examples(images, torch.full((len(images),), label, device=images.device)))
        for label, images in enumerate(drawn)
    ]


def reverse_accuracy(drawn: Tensor, test: Examples, *, epochs: int, num_classes: int, seed: int) -> float:
    """Accuracy on real images of a classifier that has seen drawn ones alone, [K, n, ...], as class 0, 1, ..."""
    labels = torch.arange(len(drawn), device=drawn.device).repeat_interleave(drawn.shape[1])
    made = Examples(drawn.flatten(0, 1), labels)
    return accuracy(train_judge(made, epochs=epochs, num_classes=num_classes, seed=seed), test)


@torch.no_grad()
def frechet_distance_of(judge: nn.Sequential, drawn: Tensor, real: Tensor) -> float:
    """The Fréchet distance between drawn and real images, over the judge's features."""
    first, second = (
        torch.cat([features(judge, part) for part in images.split(_CHUNK)]).double() for images in (drawn, real)
    )
    return frechet_distance(first.mean(0), first.T.cov(), second.mean(0), second.T.cov())


def frechet_distance(mean1: Tensor, covariance1: Tensor, mean2: Tensor, covariance2: Tensor) -> float:
    """The Fréchet distance between two normal distributions, squared.

        |m1 - m2|^2 + tr(C1 + C2 - 2 (C1^{1/2} C2 C1^{1/2})^{1/2}).

    The trace of the last root is the sum of the roots of the eigenvalues of a symmetric matrix.

    Args:
        mean1: [D], float64.
        covariance1: [D, D], symmetric and positive semidefinite.
        mean2: likewise.
        covariance2: likewise.

    Returns:
        >= 0, in squared units of the features.

    Source: Heusel et al. 2017 (arXiv 1706.08500), whose features are those of another network.
    """
    values, vectors = torch.linalg.eigh(covariance1)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    shared = torch.linalg.eigvalsh(root @ covariance2 @ root).clamp(min=0).sqrt().sum()
    distance = (mean1 - mean2).square().sum() + covariance1.trace() + covariance2.trace() - 2 * shared
    return max(float(distance), 0.0)


def real_of(examples: Examples, classes: Sequence[int]) -> Examples:
    """The examples of some classes."""
    chosen = torch.isin(examples.targets, torch.tensor(classes, device=examples.targets.device))
    return examples.select(chosen.nonzero().squeeze(1))
