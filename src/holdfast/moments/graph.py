"""The graph that autograd has built."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor


def leaves_of(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The leaves that tensors depend on, as far as a graph was built."""
    stack = [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None]
    visited, leaves = set(stack), []
    while stack:
        node = stack.pop()
        if (leaf := getattr(node, "variable", None)) is not None:
            leaves.append(leaf)
        for following, _ in node.next_functions:
            if following is not None and following not in visited:
                visited.add(following)
                stack.append(following)
    return leaves
