"""The operations through which parameters act, each with its gradients: at its input, and of each example."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.moments.gradients import accumulator_dtype
from holdfast.moments.kernels.contribution import Contribution, DenseContribution, reduced
from holdfast.moments.kernels.convolution import Geometry, Kernels
from holdfast.moments.kernels.embedding import Lookups
from holdfast.moments.kernels.linear import Products
from holdfast.moments.layout import Layout

Weights = Sequence[Tensor | None]


class Operation(Protocol):
    """A differentiable function of one input and its weights, any of which may be missing.

    Attributes:
        name: which operation it is, whatever its options.
        same_layout: whether input and output hold the examples on the same axis; else only the output must.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def same_layout(self) -> bool: ...  # noqa: D102

    def forward(self, x: Tensor, *weights: Tensor | None) -> Tensor:
        """The output, which shares no memory with the input."""
        ...

    def input_gradient(self, g: Tensor, x: Tensor, *weights: Tensor | None) -> Tensor:
        """Gradient at x, from the gradient g at the output."""
        ...

    def contributions(
        self, g: Tensor, x: Tensor, weights: Weights, wanted: Sequence[bool], layout: Layout, size: int
    ) -> list[Contribution | None]:
        """For each wanted weight the gradients of the B = size examples."""
        ...


@dataclass(frozen=True)
class Linear:
    """x W^T + b, with any number of axes for positions."""

    name = "linear"
    same_layout = True

    def forward(self, x: Tensor, *weights: Tensor | None) -> Tensor:
        """[..., out]."""
        weight, bias = _pair(weights)
        assert weight is not None
        if x.ndim == 2:
            return F.linear(x, weight, bias)
        flat = F.linear(x.reshape(-1, x.shape[-1]), weight, bias)
        # a view made inside an autograd.Function could not be changed in place, as by nn.ReLU(inplace=True)
        return torch.ops.aten._unsafe_view(flat, [*x.shape[:-1], len(weight)])

    def input_gradient(self, g: Tensor, x: Tensor, *weights: Tensor | None) -> Tensor:
        """[..., in]: g W."""
        weight = weights[0]
        assert weight is not None
        if g.ndim == 2:
            return torch.mm(g, weight.to(g.dtype)).to(x.dtype)
        return torch.mm(g.reshape(-1, g.shape[-1]), weight.to(g.dtype)).view(x.shape).to(x.dtype)

    def contributions(
        self, g: Tensor, x: Tensor, weights: Weights, wanted: Sequence[bool], layout: Layout, size: int
    ) -> list[Contribution | None]:
        """Products over positions, and sums over them."""
        G = positions(g, layout, size)
        products = Products(positions(x, layout, size), G) if wanted[0] else None
        return [products, DenseContribution(G[:, 0] if G.shape[1] == 1 else G.sum(dim=1)) if wanted[1] else None]


@dataclass(frozen=True)
class Convolution:
    """A convolution or transposed convolution; bias along axis 1."""

    geometry: Geometry
    name = "convolution"
    same_layout = True

    def forward(self, x: Tensor, *weights: Tensor | None) -> Tensor:
        """[B, out, ...]."""
        weight, bias = _pair(weights)
        assert weight is not None
        return self.geometry.forward(x, weight, bias)

    def input_gradient(self, g: Tensor, x: Tensor, *weights: Tensor | None) -> Tensor:
        """Of x's shape."""
        weight = weights[0]
        assert weight is not None
        return self.geometry.input_gradient(g, x.to(g.dtype), weight.to(g.dtype)).to(x.dtype)

    def contributions(
        self, g: Tensor, x: Tensor, weights: Weights, wanted: Sequence[bool], layout: Layout, size: int
    ) -> list[Contribution | None]:
        """Weight gradients, and sums over positions."""
        G, weight = wide(g), weights[0]
        assert weight is not None
        kernels = Kernels(self.geometry, wide(x), G, wide(weight)) if wanted[0] else None
        return [kernels, DenseContribution(G.flatten(2).sum(dim=2)) if wanted[1] else None]


@dataclass(frozen=True)
class Embedding:
    """Rows of a table; the input holds their numbers."""

    padding: int = -1
    name = "embedding"
    same_layout = True

    def forward(self, x: Tensor, *weights: Tensor | None) -> Tensor:
        """[..., D]."""
        table = weights[0]
        assert table is not None
        return torch.embedding(table, x, self.padding)

    def input_gradient(self, g: Tensor, x: Tensor, *weights: Tensor | None) -> Tensor:
        """Never asked for: numbers of rows have no gradient."""
        raise AssertionError

    def contributions(
        self, g: Tensor, x: Tensor, weights: Weights, wanted: Sequence[bool], layout: Layout, size: int
    ) -> list[Contribution | None]:
        """The rows that were looked up."""
        table = weights[0]
        if not wanted[0]:
            return [None]
        assert table is not None
        tokens = positions(x.unsqueeze(-1), layout, size).squeeze(-1)
        return [Lookups(tokens, positions(g, layout, size), len(table), self.padding)]


@dataclass(frozen=True)
class Affine:
    """x * scale + sign * shift, as after every normalisation, and wherever a parameter is broadcast over the examples.

    Attributes:
        trailing: axes of x after the last axis of scale and shift, as the positions after the channels.
        sign: of the shift.
    """

    trailing: int = 0
    sign: int = 1
    same_layout = False

    @property
    def name(self) -> str:
        """With the number of trailing axes."""
        return f"affine{self.trailing}"

    def forward(self, x: Tensor, *weights: Tensor | None) -> Tensor:
        """Of the shape that x and the weights broadcast to."""
        scale, shift = (None if weight is None else self._aligned(weight) for weight in _pair(weights))
        if shift is None:
            assert scale is not None
            return x * scale
        if scale is not None and self.sign == 1 and scale.dtype == shift.dtype == x.dtype:
            return torch.addcmul(shift, x, scale)
        return torch.add(x if scale is None else x * scale, shift, alpha=self.sign)

    def input_gradient(self, g: Tensor, x: Tensor, *weights: Tensor | None) -> Tensor:
        """G * scale, of x's shape."""
        scale = weights[0]
        gradient = g if scale is None else g * self._aligned(scale)
        return gradient.sum_to_size(x.shape).to(x.dtype)

    def contributions(
        self, g: Tensor, x: Tensor, weights: Weights, wanted: Sequence[bool], layout: Layout, size: int
    ) -> list[Contribution | None]:
        """Sums over the axes that broadcasting gave to the weights."""
        G = layout.split(wide(g), size)
        found: list[Contribution | None] = [None, None]
        if wanted[0]:
            found[0] = self._rows(G * layout.split(wide(x).expand_as(g), size), weights[0])
        if wanted[1]:
            found[1] = self._rows(G if self.sign == 1 else -G, weights[1])
        return found

    def _rows(self, values: Tensor, weight: Tensor | None) -> DenseContribution:
        assert weight is not None
        return DenseContribution(reduced(values, self._aligned(weight).shape).reshape(len(values), *weight.shape))

    def _aligned(self, weight: Tensor) -> Tensor:
        return weight.reshape(*weight.shape, *[1] * self.trailing) if self.trailing else weight


@dataclass(frozen=True, eq=False)
class BatchNorm:
    """(x - mean) / sqrt(variance + eps) * scale + shift, channels on axis 1, by statistics that are given.

    As one operation rather than an `Affine` of what is normalised: on residual networks that saves a sixth of the time.
    """

    mean: Tensor
    variance: Tensor
    eps: float
    name = "batch norm"
    same_layout = True

    def forward(self, x: Tensor, *weights: Tensor | None) -> Tensor:
        """Of x's shape."""
        return F.batch_norm(x, self.mean, self.variance, *_pair(weights), eps=self.eps)

    def input_gradient(self, g: Tensor, x: Tensor, *weights: Tensor | None) -> Tensor:
        """G * scale / sqrt(variance + eps)."""
        scale = (self.variance.to(g.dtype) + self.eps).rsqrt()
        if weights[0] is not None:
            scale = scale * weights[0]
        return (g * self._affine(x)._aligned(scale)).to(x.dtype)

    def contributions(
        self, g: Tensor, x: Tensor, weights: Weights, wanted: Sequence[bool], layout: Layout, size: int
    ) -> list[Contribution | None]:
        """Sums over positions."""
        normal = F.batch_norm(wide(x), wide(self.mean), wide(self.variance), eps=self.eps) if wanted[0] else x
        return self._affine(x).contributions(g, normal, weights, wanted, layout, size)

    def _affine(self, x: Tensor) -> Affine:
        return Affine(trailing=x.ndim - 2)


def positions(tensor: Tensor, layout: Layout, size: int) -> Tensor:
    """[B, P, features] in the accumulators' dtype: all axes but the examples' and the last are positions."""
    if tensor.ndim == 2 and layout.order == "alone":
        return wide(tensor).unsqueeze(1)
    split = layout.split(tensor, size)
    return wide(split).reshape(size, math.prod(split.shape[1:-1]), split.shape[-1])


def by_token(
    operation: Operation, g: Tensor, x: Tensor, weights: Weights, layout: Layout, size: int
) -> tuple[Tensor, Tensor] | None:
    """Gradient and input of a use with every position as an example of its own, on the first axis; None if it has none.

    Linear layers, embeddings, and scales and shifts of the last axis have positions.
    """
    if isinstance(operation, Embedding):
        x = x.unsqueeze(-1)
    elif isinstance(operation, Affine):
        if operation.trailing or any(weight is not None and weight.ndim != 1 for weight in weights):
            return None
        x = x.expand_as(g)
    elif not isinstance(operation, Linear):
        return None
    G, A = (positions(tensor, layout, size).flatten(0, 1) for tensor in (g, x))
    return G, A.squeeze(-1) if isinstance(operation, Embedding) else A


def wide(tensor: Tensor) -> Tensor:
    """The tensor in the dtype of the accumulators; integers stay."""
    return tensor.to(accumulator_dtype(tensor)) if tensor.is_floating_point() else tensor


def _pair(weights: Weights) -> tuple[Tensor | None, Tensor | None]:
    first, second = weights
    return first, second
