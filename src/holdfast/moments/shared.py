"""Parameters that are used several times: an example's gradient is the sum over the uses, before phi."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from holdfast.moments.gradients import PHI, Phi
from holdfast.moments.intercept import Place
from holdfast.moments.kernels.contribution import Contribution, add_blocks
from holdfast.moments.kernels.embedding import Lookups
from holdfast.moments.kernels.linear import Products
from holdfast.moments.ragged import RaggedProducts, joined_products

PlacedContribution = tuple[Place, Contribution]


def add_shared(total: Tensor, parts: Sequence[PlacedContribution], *, phi: Phi, chunk_bytes: int) -> None:
    """Add sum_b phi(sum over uses of g_b) to `total`.

    Args:
        total: of the parameter's shape.
        parts: for each use the part of the parameter that it sees, and its gradients.
        phi: what is summed.
        chunk_bytes: bound on the per-example gradients that are written out, where nothing better is known.

    Cost: Linear layers as one with more positions; tied to an embedding, besides, the rows that were looked up; other
    mixtures one gradient an example, written out.
    """
    places = {place for place, _ in parts}
    contributions = [contribution for _, contribution in parts]
    products = [item for item in contributions if isinstance(item, Products | RaggedProducts)]
    lookups = [item for item in contributions if isinstance(item, Lookups)]
    if len(places) > 1 or len(products) + len(lookups) < len(parts):
        _add_written_out(total, parts, phi, max(1, chunk_bytes // (3 * total.nbytes)))
    elif not products:
        _joined(lookups).add_to(places.pop().of(total), phi)
    else:
        target = places.pop().of(total)
        joint = joined_products(products)
        joint.add_to(target, phi)
        if lookups:
            _add_looked_up(target, joint, _joined(lookups), phi)


def _add_looked_up(total: Tensor, products: Products, lookups: Lookups, phi: Phi) -> None:
    """Add phi(D + E) - phi(D) on the rows that an example looked up: D its product, which was added, E its lookups."""
    examples, rows, E = lookups.segments()
    counts = torch.bincount(examples, minlength=len(lookups)).tolist()
    G, A = products.gradients, products.inputs
    D = torch.cat([G[b][:, some].mT @ A[b] for b, some in enumerate(rows.split(counts))])
    total.index_add_(0, rows, PHI[phi](D + E) - PHI[phi](D))
    if phi != "signed":
        total.clamp_(min=0)  # rounding, where both cancel


def _joined(lookups: Sequence[Lookups]) -> Lookups:
    """Lookups of one table as one; their padding has no gradient any more."""
    first = lookups[0]
    tokens, gradients, examples = (
        torch.cat([getattr(item, name) for item in lookups]) for name in ("tokens", "gradients", "examples")
    )
    return Lookups(tokens, gradients, first.num_rows, examples=examples, size=len(first))


def _add_written_out(total: Tensor, parts: Sequence[PlacedContribution], phi: Phi, chunk: int) -> None:
    size = len(parts[0][1])
    for start in range(0, size, chunk):
        number = min(chunk, size - start)
        flat = total.new_zeros(number * total.numel())
        for place, contribution in parts:
            view = flat.as_strided((number, *place.size), (total.numel(), *place.stride), place.offset)
            view += contribution.dense(start, start + number)
        add_blocks(total, flat.as_strided((number, *total.shape), (total.numel(), *total.stride())), phi)


def overlap(places: Sequence[Place], total: Tensor) -> bool:
    """Whether two of several parts of a parameter share an element."""
    marks = torch.zeros_like(total, dtype=torch.int16)
    for place in places:
        place.of(marks).add_(1)
    return bool((marks > 1).any())
