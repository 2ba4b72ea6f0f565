"""Convolutions: the weight gradient of each example, from the library or as a product over unfolded positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.moments.gradients import Phi
from holdfast.moments.kernels.contribution import add_blocks
from holdfast.moments.kernels.linear import add_products


@dataclass(frozen=True)
class Geometry:
    """How a convolution moves over its input, one number for each spatial axis."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution."""
        return torch.convolution(x, weight, bias, *self._options())

    def input_gradient(self, g: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Gradient at x, from the gradient g at the output."""
        return self._backward(g, x, weight, [True, False, False])[0]

    def weight_gradient(self, g: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Gradient at the weight, summed over the examples of x and g."""
        return self._backward(g, x, weight, [False, True, False])[1]

    def _backward(self, g: Tensor, x: Tensor, weight: Tensor, mask: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
        return torch.ops.aten.convolution_backward(g, x, weight, None, *self._options(), mask)

    def _options(self) -> tuple[Any, ...]:
        return (self.stride, self.padding, self.dilation, self.transposed, self.output_padding, self.groups)


_UNFOLDED_BYTES = 2**21
"""Unfolded examples that go together; above twice as many for a single one the library is faster."""


class Kernels:
    """Per-example gradients of a convolution's weight.

    Args:
        geometry: of the convolution.
        inputs: [B, channels, ...].
        gradients: [B, out, ...], at the output.
        weight: whose gradient it is.
    """

    def __init__(self, geometry: Geometry, inputs: Tensor, gradients: Tensor, weight: Tensor) -> None:
        self._geometry, self._weight = geometry, weight
        self.inputs, self.gradients = inputs, gradients

    def __len__(self) -> int:
        """B."""
        return len(self.inputs)

    def add_to(self, total: Tensor, phi: Phi) -> None:
        """Add sum_b phi(g_b) to `total`."""
        if phi == "signed":
            total += self._geometry.weight_gradient(self.gradients, self.inputs, self._weight)
            return
        chunk = max(1, _UNFOLDED_BYTES // self._unfolded_bytes())
        flat = self._geometry.groups == 1 and not self._geometry.transposed and total.is_contiguous()
        for start in range(0, len(self), chunk):
            if flat and self._unfolds():
                G = self.gradients[start : start + chunk].flatten(2).mT
                add_products(total.flatten(1), G, self._unfolded(start, start + chunk).mT, phi)
            else:
                add_blocks(total, self.dense(start, start + chunk), phi)

    def dense(self, start: int, stop: int) -> Tensor:
        """[b, *weight]: g_b."""
        G, groups = self.gradients[start:stop], self._geometry.groups
        if self._unfolds():
            U = self._unfolded(start, stop).unflatten(1, (groups, -1))
            product = G.flatten(2).unflatten(1, (groups, -1)) @ U.mT
            return product.reshape(len(G), *self._weight.shape)
        gradient = self._geometry.weight_gradient
        pairs = zip(G.split(1), self.inputs[start:stop].split(1))
        return torch.stack([gradient(g, x, self._weight) for g, x in pairs])

    def _unfolds(self) -> bool:
        return not self._geometry.transposed and self._unfolded_bytes() <= 2 * _UNFOLDED_BYTES

    def _unfolded_bytes(self) -> int:
        taps = self.inputs.shape[1] * self._weight.shape[2:].numel()
        return taps * self.gradients.shape[2:].numel() * self.inputs.element_size()

    def _unfolded(self, start: int, stop: int) -> Tensor:
        """[b, channels * taps, positions]: for each output position the inputs under the kernel."""
        geometry = self._geometry
        x = F.pad(self.inputs[start:stop], [n for padding in reversed(geometry.padding) for n in (padding, padding)])
        steps = x.stride()[2:]
        taps = [step * apart for step, apart in zip(steps, geometry.dilation)]
        moves = [step * apart for step, apart in zip(steps, geometry.stride)]
        size = (*x.shape[:2], *self._weight.shape[2:], *self.gradients.shape[2:])
        windows = x.as_strided(size, (*x.stride()[:2], *taps, *moves))
        return windows.reshape(len(x), -1, self.gradients.shape[2:].numel())
