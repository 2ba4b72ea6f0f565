from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import holdfast as hf


def drawn(n: int, d: int, c: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.arange(c), torch.randint(c, (n - c,), generator=generator)])
    means = torch.randn(c, d, generator=generator, dtype=torch.float64)
    return means[labels] + torch.randn(n, d, generator=generator, dtype=torch.float64), labels


def densities(features: Tensor, labels: Tensor, asked: Tensor, shrinkage: float) -> Tensor:
    """Log densities under a Gaussian a class with one covariance, an example at a time."""
    c, d = int(labels.max()) + 1, features.shape[1]
    mu = torch.stack([features[labels == k].mean(0) for k in range(c)])
    Sigma = torch.zeros(d, d, dtype=torch.float64)
    for x, k in zip(features, labels):
        Sigma += torch.outer(x - mu[k], x - mu[k]) / len(features)
    Sigma = (1 - shrinkage) * Sigma + shrinkage * Sigma.trace() / d * torch.eye(d, dtype=torch.float64)
    return torch.stack(
        [torch.distributions.MultivariateNormal(own, Sigma).log_prob(asked) for own in mu],
        dim=1,
    )


def centred(scores: Tensor) -> Tensor:
    """Without what is the same for all classes."""
    return scores - scores.mean(1, keepdim=True)


@given(
    n=st.integers(12, 60),
    d=st.integers(1, 6),
    c=st.integers(2, 4),
    seed=st.integers(0, 99),
    shrinkage=st.floats(0.01, 1),
)
def test_scores_are_log_densities_of_gaussians_with_one_covariance(n, d, c, seed, shrinkage):
    features, labels = drawn(n, d, c, seed)
    asked = drawn(9, d, c, seed + 1)[0]
    head = hf.AnalyticHead("slda", shrinkage=shrinkage).fit(features, labels)
    expected = densities(features, labels, asked, shrinkage)
    assert torch.allclose(centred(head(asked)), centred(expected), rtol=1e-6, atol=1e-8)


@given(n=st.integers(4, 60), d=st.integers(1, 6), c=st.integers(2, 4), seed=st.integers(0, 99))
def test_the_nearest_mean(n, d, c, seed):
    features, labels = drawn(n, d, c, seed)
    mu = torch.stack([features[labels == k].mean(0) for k in range(c)])
    head = hf.AnalyticHead("means").fit(features, labels)
    distances = (features[:, None] - mu).square().sum(2)
    assert torch.allclose(centred(head(features)), centred(-0.5 * distances), atol=1e-9)
    assert torch.equal(head.predict(features), distances.argmin(1))


def test_the_unit_of_the_features_does_not_matter():
    features, labels = drawn(50, 4, 3, 0)
    one, other = (hf.AnalyticHead("slda", shrinkage=0.3).fit(k * features, labels)(k * features) for k in (1.0, 1e4))
    assert torch.allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_features_far_from_zero(offset):
    """Sums of squares less squares of sums: float64 has the digits for a mean of a thousand deviations."""
    features, labels = drawn(300, 4, 3, 0)
    head = hf.AnalyticHead("slda").fit(features + offset, labels)
    expected = densities(features, labels, features, 1e-4)
    assert torch.allclose(centred(head(features + offset)), centred(expected), atol=1e-4)
