"""Uses whose rows are no reshape of the batch: each row has an example of its own, and they may have any number."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from holdfast.moments.gradients import Phi
from holdfast.moments.kernels.contribution import Contribution, DenseContribution, add_blocks
from holdfast.moments.kernels.embedding import Lookups
from holdfast.moments.kernels.linear import Products
from holdfast.moments.layout import Layout
from holdfast.moments.operations import Affine, Embedding, Linear, Operation, Weights, wide

_DENSE_BYTES = 2**24
"""Gradients of single rows that are written out at once."""


def row_axes(operation: Operation, ndim: int, weights: Weights) -> int:
    """How many of the first axes of an output hold rows that share all weights; 0 where none does."""
    if isinstance(operation, Linear | Embedding):
        return ndim - 1
    if not isinstance(operation, Affine):
        return 1
    return ndim - max(_own_axes(operation, weight) for weight in weights if weight is not None)


def row_examples(layout: Layout, axes: Sequence[int], size: int) -> Tensor:
    """[rows]: the example of each row where a layout says so, the axes of the rows being of these lengths."""
    numbers = torch.arange(axes[layout.axis])
    numbers = numbers % size if layout.order == "minor" else numbers // (axes[layout.axis] // size)
    return numbers.reshape(-1, *[1] * (len(axes) - 1 - layout.axis)).expand(tuple(axes)).flatten()


def ragged_contributions(
    operation: Operation,
    g: Tensor,
    x: Tensor,
    weights: Weights,
    wanted: Sequence[bool],
    *,
    examples: Tensor,
    size: int,
) -> list[Contribution | None]:
    """For each wanted weight the gradients of the B = size examples.

    Args:
        operation: what was used.
        g: at its output.
        x: its input.
        weights: its weights.
        wanted: for each whether its gradient is asked for.
        examples: [rows], the example of each row of the output; -1 for a row that does not count.
        size: B.
    """
    if not any(wanted):
        return [None] * len(weights)
    if isinstance(operation, Embedding):
        x = x.unsqueeze(-1)
    if isinstance(operation, Affine):
        x = x.expand_as(g)
    axes = row_axes(operation, g.ndim, weights)
    G, A = g.flatten(0, axes - 1), x.flatten(0, axes - 1)
    order = examples.argsort(stable=True)
    order = order[int((examples < 0).sum()) :]
    if len(order) < len(G) or not bool((order[1:] > order[:-1]).all()):
        G, A, examples = G[order], A[order], examples[order]
    if isinstance(operation, Linear):
        products = RaggedProducts(wide(A), wide(G), examples, size) if wanted[0] else None
        return [products, _summed(wide(G), examples, size) if wanted[1] else None]
    if isinstance(operation, Embedding):
        table = weights[0]
        assert table is not None
        return [Lookups(A.squeeze(-1), wide(G), len(table), operation.padding, examples=examples, size=size)]
    narrow = [None if weight is None else _without_ones(weight) for weight in weights]
    found = operation.contributions(G, A, narrow, wanted, Layout(0), len(G))
    return [
        None if each is None or weight is None else _gathered(each, examples, size, tuple(weight.shape))
        for each, weight in zip(found, weights)
    ]


class RaggedProducts:
    """Per-example gradients G_b^T A_b of a weight [out, in], the examples having any number of rows.

    Args:
        inputs: A [rows, in].
        gradients: G [rows, out], at the layer's output.
        examples: [rows], ascending.
        size: B.
    """

    def __init__(self, inputs: Tensor, gradients: Tensor, examples: Tensor, size: int) -> None:
        self.inputs, self.gradients, self.examples, self._size = inputs, gradients, examples, size

    def __len__(self) -> int:
        """B."""
        return self._size

    def add_to(self, total: Tensor, phi: Phi) -> None:
        """Add sum_b phi(G_b^T A_b) to `total` [out, in]; examples of about as many rows go together."""
        if phi == "signed":
            total += self.gradients.mT @ self.inputs
            return
        counts = torch.bincount(self.examples, minlength=self._size)
        magnitude = counts.clamp(min=1).log2().ceil()
        for each in magnitude[counts > 0].unique():
            self.padded(((magnitude == each) & (counts > 0)).nonzero().squeeze(1)).add_to(total, phi)

    def dense(self, start: int, stop: int) -> Tensor:
        """[b, out, in]: G_b^T A_b."""
        return self.padded(torch.arange(start, stop, device=self.examples.device)).dense(0, stop - start)

    def padded(self, chosen: Tensor | None = None) -> Products:
        """The products of the chosen examples (all, by default) with as many rows each, of zeros where it has fewer."""
        chosen = torch.arange(self._size, device=self.examples.device) if chosen is None else chosen
        counts = torch.bincount(self.examples, minlength=self._size)
        starts = counts.cumsum(0) - counts
        length = int(counts[chosen].max()) if len(chosen) else 0
        rows = starts[chosen].unsqueeze(1) + torch.arange(max(1, length), device=chosen.device)
        there = torch.arange(max(1, length), device=chosen.device) < counts[chosen].unsqueeze(1)
        rows = rows.where(there, 0)
        if not len(self.examples):
            empty = self.inputs.new_zeros(len(chosen), 1, self.inputs.shape[1])
            return Products(empty, self.gradients.new_zeros(len(chosen), 1, self.gradients.shape[1]))
        gradients = self.gradients[rows].masked_fill(~there.unsqueeze(-1), 0.0)
        return Products(self.inputs[rows].masked_fill(~there.unsqueeze(-1), 0.0), gradients)


def joined_products(products: Sequence[Products | RaggedProducts]) -> Products:
    """Products of one weight as one with more positions."""
    if any(isinstance(item, RaggedProducts) for item in products):
        parts = [item if isinstance(item, RaggedProducts) else _apart(item) for item in products]
        examples = torch.cat([item.examples for item in parts])
        order = examples.argsort(stable=True)
        inputs, gradients = (torch.cat([getattr(p, name) for p in parts])[order] for name in ("inputs", "gradients"))
        return RaggedProducts(inputs, gradients, examples[order], len(products[0])).padded()
    if len(products) == 1:
        return products[0]  # pyright: ignore[reportReturnType]
    inputs, gradients = [item.inputs for item in products], [item.gradients for item in products]
    return Products(torch.cat(inputs, dim=1), torch.cat(gradients, dim=1))


def _apart(products: Products) -> RaggedProducts:
    size, length = products.inputs.shape[:2]
    examples = torch.arange(size, device=products.inputs.device).repeat_interleave(length)
    return RaggedProducts(products.inputs.flatten(0, 1), products.gradients.flatten(0, 1), examples, size)


class _Gathered:
    """Gradients of single rows, in ascending order of their examples, as those of the examples."""

    def __init__(self, rows: Contribution, examples: Tensor, size: int, num_bytes: int) -> None:
        self._rows, self._size = rows, size
        self._chunk = max(1, _DENSE_BYTES // max(1, num_bytes))
        self._bounds = [0, *torch.bincount(examples, minlength=size).cumsum(0).tolist()]

    def __len__(self) -> int:
        """B."""
        return self._size

    def add_to(self, total: Tensor, phi: Phi) -> None:
        """Add sum_b phi(g_b) to `total`."""
        if phi == "signed":
            self._rows.add_to(total, phi)
            return
        for b in range(self._size):
            if self._bounds[b] < self._bounds[b + 1]:
                add_blocks(total, self.dense(b, b + 1), phi)

    def dense(self, start: int, stop: int) -> Tensor:
        """[b, *shape]: g_b."""
        return torch.stack([self._one(b) for b in range(start, stop)])

    def _one(self, b: int) -> Tensor:
        low, high = self._bounds[b : b + 2]
        found = self._rows.dense(low, min(high, low + self._chunk)).sum(dim=0) if low < high else None
        if found is None:
            return torch.zeros_like(self._rows.dense(0, 1)[0])
        for row in range(low + self._chunk, high, self._chunk):
            found += self._rows.dense(row, min(high, row + self._chunk)).sum(dim=0)
        return found


def _gathered(rows: Contribution, examples: Tensor, size: int, shape: tuple[int, ...]) -> Contribution:
    if isinstance(rows, DenseContribution):
        return DenseContribution(_summed(rows.values, examples, size).values.reshape(size, *shape))
    if not len(rows):
        return DenseContribution(torch.zeros(size, *shape, dtype=torch.float32, device=examples.device))
    return _Gathered(rows, examples, size, 4 * torch.Size(shape).numel())


def _summed(values: Tensor, examples: Tensor, size: int) -> DenseContribution:
    return DenseContribution(values.new_zeros(size, *values.shape[1:]).index_add_(0, examples, values))


def _own_axes(operation: Affine, weight: Tensor) -> int:
    return _without_ones(weight).ndim + operation.trailing


def _without_ones(weight: Tensor) -> Tensor:
    """The weight without the first axes that have one entry."""
    shape = list(weight.shape)
    while shape and shape[0] == 1:
        del shape[0]
    return weight.reshape(shape)
