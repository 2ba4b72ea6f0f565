"""Convolutions: the weight gradient of each example, from the library or as a product over unfolded positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from holdfast.moments.gradients import Phi
from holdfast.moments.kernels.contribution import add_blocks


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
        for b in range(len(self.inputs)):
            add_blocks(total, self.dense(b, b + 1), phi)

    def dense(self, start: int, stop: int) -> Tensor:
        """[b, *weight]: g_b."""
        pairs = zip(self.gradients[start:stop], self.inputs[start:stop])
        return torch.stack(
            [self._geometry.weight_gradient(g.unsqueeze(0), x.unsqueeze(0), self._weight) for g, x in pairs]
        )
