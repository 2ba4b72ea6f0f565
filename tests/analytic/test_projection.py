from __future__ import annotations

import torch

from holdfast.analytic.projection import RandomProjection


def test_the_bits_of_a_seed_are_the_same_for_ever():
    """Files hold the seed and this digest: other bits would make them unreadable."""
    projection = RandomProjection(3, 5, seed=7)
    assert projection.digest == "b2ee11cf0b00705349af2009953d6579ead3344b52f1f501a77970124a7c57f3"
    whole = projection.W * 65536 * 2
    assert torch.equal(whole, whole.round())


def test_its_entries_are_near_normal_and_independent():
    W = RandomProjection(200, 300, seed=0).W
    assert W.dtype == torch.float64
    assert W.shape == (200, 300)
    assert abs(float(W.mean())) < 0.02
    assert abs(float(W.square().mean()) - 1) < 0.02
    assert abs(float(W.pow(4).mean()) - 2.9) < 0.1  # 3 of a normal one, less 1.2 / 12
    products = W @ W.T / 300
    assert (products - products.diagonal().diag()).abs().max() < 6 / 300**0.5


def test_seeds_and_widths():
    one = RandomProjection(4, 6, seed=0)
    assert torch.equal(one.W, RandomProjection(4, 6, seed=0).W)
    assert not torch.equal(one.W, RandomProjection(4, 6, seed=1).W)
    assert torch.equal(one.W[:2], RandomProjection(2, 6, seed=0).W)


def test_the_features_are_a_relu_of_the_projection():
    projection = RandomProjection(4, 6, seed=0)
    features = torch.randn(5, 4, dtype=torch.float64)
    expected = torch.tensor([[max(0.0, float(f @ w)) for w in projection.W.T] for f in features], dtype=torch.float64)
    assert torch.allclose(projection(features), expected, atol=1e-12)
