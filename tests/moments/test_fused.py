"""The CUDA kernel for products of sequences is the torch route, tile by tile.

On a CUDA device, or on the CPU by Triton's interpreter (`tests/conftest.py`).
"""

from __future__ import annotations

import os

import pytest
import torch

from holdfast.moments.kernels.linear import Products, add_products

SHAPES = [(3, 5, 70, 40), (7, 33, 64, 129), (2, 1, 3, 2), (16, 128, 768, 256)]
PHIS = pytest.mark.parametrize("phi", ["square", "abs"])


def drawn(shape):
    """G, A with time first, and a total to be added to."""
    size, length, width, depth = shape
    return (
        torch.randn(size, length, width),
        torch.randn(length, size, depth).transpose(0, 1),
        torch.rand(width, depth),
    )


def check(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.max()))


@pytest.mark.gpu
@PHIS
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_torch_route(shape: tuple[int, int, int, int], phi: str):
    G, A, expected = drawn(shape)
    found = torch.zeros(expected.T.shape, device="cuda").T
    found.copy_(expected)
    add_products(expected, G, A, phi)
    Products(A.cuda(), G.cuda()).add_to(found, phi)
    check(found.cpu(), expected)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="there is a device for the test above")
@PHIS
@pytest.mark.parametrize("shape", [*SHAPES[:3], (5, 40, 130, 65)])
def test_interpreted_it_is_the_torch_route(shape: tuple[int, int, int, int], phi: str):
    pytest.importorskip("triton", reason="Triton is not installed")
    from holdfast.moments.kernels import fused

    G, A, expected = drawn(shape)
    for found in (expected.clone(), expected.T.clone().T):  # rows or columns as one stretch of memory
        fused.add_products(found, G, A, phi)
        check(found, expected + torch.einsum("bpo,bpi->boi", G, A).pow(2 if phi == "square" else 1).abs().sum(0))
