"""The CUDA kernel for products of sequences is the torch route, tile by tile."""

from __future__ import annotations

import pytest
import torch

from holdfast.moments.kernels.linear import Products, add_products

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("phi", ["square", "abs"])
@pytest.mark.parametrize("shape", [(3, 5, 70, 40), (7, 33, 64, 129), (2, 1, 3, 2), (16, 128, 768, 256)])
def test_it_is_the_torch_route(shape: tuple[int, int, int, int], phi: str):
    size, length, width, depth = shape
    G = torch.randn(size, length, width)
    A = torch.randn(length, size, depth).transpose(0, 1)  # time first
    expected, found = torch.rand(width, depth), torch.zeros(depth, width, device="cuda").T
    found.copy_(expected)
    add_products(expected, G, A, phi)
    Products(A.cuda(), G.cuda()).add_to(found, phi)
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-4 * float(expected.max()))
