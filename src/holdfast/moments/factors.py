"""Rules by which a layer's inputs a [B, T, n] and output gradients g [B, T, m] make the two factors of its block.

The block of the Fisher is F = E sum_k vec(M) vec(M)^T with M = sum_t g_kt a_t^T, the gradient of one example for the
matrix of weight and bias, T positions to an example and k the rows of the scores. The rules differ where T > 1.

    expand     A = E sum_t a_t a_t^T                    G = E sum_k 1/T sum_t g_kt g_kt^T
    reduce     A = E a a^T, a = 1/T sum_t a_t           G = E sum_k g_k g_k^T, g_k = sum_t g_kt
    matched    A = E sum_k M^T M                        G = E sum_k M M^T / tr A
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from holdfast.moments.symmetric import SymmetricSum

SharingRule = Literal["expand", "reduce", "matched"]


def add_partial_traces(inputs: SymmetricSum, outputs: SymmetricSum, a: Tensor, g: Tensor) -> None:
    """Add sum_b M_b^T M_b [n, n] and sum_b M_b M_b^T [m, m], with M_b = g_b^T a_b: the sums of the rule "matched".

    Args:
        inputs: of [n, n].
        outputs: of [m, m].
        a: [B, T, n].
        g: [B, T, m].

    Cost: products of B m n (T + n/2 + m/2), or of B T (n^2 + m^2)/2 and 2 B T^2 (n + m), by the size of n, m and T, and
    less where the sums are of blocks; memory as `partial_trace_size` says.
    """
    if _is_written_out(inputs, outputs, a, g):
        M = g.mT @ a
        down, across = M.flatten(0, 1), M.mT.flatten(0, 1)
        inputs.add(down, down)
        outputs.add(across, across)
    else:
        inputs.add(a.flatten(0, 1), ((g @ g.mT) @ a).flatten(0, 1))
        outputs.add(g.flatten(0, 1), ((a @ a.mT) @ g).flatten(0, 1))


def partial_trace_size(inputs: SymmetricSum, outputs: SymmetricSum, a: Tensor, g: Tensor) -> int:
    """Numbers that `add_partial_traces` writes for each example."""
    (_, T, n), m = a.shape, g.shape[-1]
    return 2 * m * n if _is_written_out(inputs, outputs, a, g) else 2 * T * T + T * (n + m)


def _is_written_out(inputs: SymmetricSum, outputs: SymmetricSum, a: Tensor, g: Tensor) -> bool:
    """Whether the gradients of the examples cost less than products between their positions."""
    (_, T, n), m = a.shape, g.shape[-1]
    across, down = inputs.width, outputs.width
    return m * n * (T + across + down) < 2 * T * T * (n + m) + T * (n * across + m * down)
