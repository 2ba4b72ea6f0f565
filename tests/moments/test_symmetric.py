"""Sums of symmetric products, against the plain products."""

from __future__ import annotations

import pytest
import torch

from holdfast.curvature.blocks import blocks_of, reblocked
from holdfast.moments.symmetric import SymmetricSum


@pytest.mark.parametrize("size", [1, 7, 256, 257, 600])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_the_sum_of_the_plain_products(size: int, dtype: torch.dtype):
    found = SymmetricSum(size, like=torch.empty(0, dtype=dtype))
    expected = torch.zeros(size, size, dtype=torch.float64)
    for seed, factor in enumerate((1.0, 0.25)):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(11, size, dtype=dtype, generator=generator)
        weights = torch.rand(11, 1, dtype=dtype, generator=generator)
        found.add(x, weights * x, factor=factor)
        expected += factor * x.double().T @ (weights * x).double()
    value = found.taken()
    assert value.dtype == dtype
    assert torch.equal(value, value.T)
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-4 if dtype == torch.float32 else 1e-9)


def test_it_is_as_precise_under_autocast():
    x = torch.randn(9, 20)
    found = SymmetricSum(20, like=x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found.add(x, x)
    torch.testing.assert_close(found.taken(), x.T @ x)


@pytest.mark.parametrize(("size", "width"), [(7, 4), (600, 300), (700, 234)])
def test_of_blocks_alone(size: int, width: int):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(11, size, dtype=torch.float64, generator=generator)
    found, whole = (SymmetricSum(size, like=x, width=each) for each in (width, None))
    for total in (found, whole):
        total.add(x, x)
        total.add(x, x, factor=0.5)
    value = found.taken()
    assert value.shape == (size, width)
    torch.testing.assert_close(value, reblocked(whole.taken(), width))
    assert all(torch.equal(block, block.T) for block in blocks_of(value))
