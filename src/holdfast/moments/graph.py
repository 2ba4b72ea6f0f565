"""The graph that autograd has built."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

_REENTRANT = "CheckpointFunctionBackward"


def leaves_of(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The leaves that tensors depend on, as far as a graph was built."""
    variables = (getattr(node, "variable", None) for node in nodes_of(tensors))
    return [variable for variable in variables if variable is not None]


def is_reentrant(tensors: Iterable[Tensor]) -> bool:
    """Whether reentrant checkpoints hide a part of the graph, so that only `backward` reaches what lies in there.

    `torch.autograd.grad` refuses them where it meets one, but finds nothing where all that is asked for lies inside.
    """
    return _REENTRANT in [type(node).__name__ for node in nodes_of(tensors)]


def nodes_of(tensors: Iterable[Tensor]) -> list[Any]:
    """Every node of the graph once."""
    nodes: list[Any] = list({tensor.grad_fn for tensor in tensors} - {None})
    visited = set(nodes)
    for node in nodes:  # which become more
        for following, _ in node.next_functions:
            if following is not None and following not in visited:
                visited.add(following)
                nodes.append(following)
    return nodes
