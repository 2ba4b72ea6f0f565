"""On CUDA: per-example products squared where they are made, in registers, and never written to memory.

Imported only where Triton is at hand, which comes with torch's CUDA builds on Linux.
"""

from __future__ import annotations

from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

from holdfast.moments.gradients import Phi

_TILE = 64
_POSITIONS = 32
_PROGRAMS = 512
"""Examples are split among programs until there are so many: a few for each multiprocessor of a large GPU."""


@triton.jit
def _add_products(
    G,
    A,
    total,
    size,
    length,
    width,
    depth,
    g_example,
    g_position,
    g_unit,
    a_example,
    a_position,
    a_unit,
    t_row,
    t_column,
    examples_each,
    SQUARE: tl.constexpr,
    TILE: tl.constexpr,
    POSITIONS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    columns = tl.program_id(1).to(tl.int64) * TILE + tl.arange(0, TILE)
    first = tl.program_id(2).to(tl.int64) * examples_each
    running = tl.zeros((TILE, TILE), dtype=tl.float32)
    for b in range(first, tl.minimum(first + examples_each, size)):
        product = tl.zeros((TILE, TILE), dtype=tl.float32)
        for start in range(0, length, POSITIONS):
            p = start + tl.arange(0, POSITIONS)
            g = tl.load(
                G + b * g_example + p[None, :] * g_position + rows[:, None] * g_unit,
                mask=(rows[:, None] < width) & (p[None, :] < length),
                other=0.0,
            )
            a = tl.load(
                A + b * a_example + p[:, None] * a_position + columns[None, :] * a_unit,
                mask=(p[:, None] < length) & (columns[None, :] < depth),
                other=0.0,
            )
            product = tl.dot(g, a, product, input_precision=PRECISION)
        running += product * product if SQUARE else tl.abs(product)
    places = total + rows[:, None] * t_row + columns[None, :] * t_column
    tl.atomic_add(places, running, mask=(rows[:, None] < width) & (columns[None, :] < depth))


def add_products(total: Tensor, G: Tensor, A: Tensor, phi: Phi) -> None:
    """Add sum_b phi(G_b^T A_b) to `total`, tile by tile.

    Args:
        total: [out, in], float32, of any strides.
        G: [B, P, out], float32.
        A: [B, P, in], float32.
        phi: "square" or "abs".

    The order in which programs add their share is not fixed, and with it the last bit.
    """
    (size, length, width), depth = G.shape, A.shape[2]
    tiles = triton.cdiv(width, _TILE) * triton.cdiv(depth, _TILE)
    splits = max(1, min(size, _PROGRAMS // tiles))
    precision = "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"
    grid = (triton.cdiv(width, _TILE), triton.cdiv(depth, _TILE), splits)
    kernel: Any = _add_products  # Triton's stubs want what only the compiler makes
    kernel[grid](
        G,
        A,
        total,
        size,
        length,
        width,
        depth,
        *G.stride(),
        *A.stride(),
        *total.stride(),
        triton.cdiv(size, splits),
        SQUARE=phi == "square",
        TILE=_TILE,
        POSITIONS=_POSITIONS,
        PRECISION=precision,
    )
