"""Models that `fully_shard` spread over processes, measured where their shards lie.

The weights of a group of layers come before its forward or backward pass and go after it, as in training. Here a
follower of the forward pass is told of those that have come, and of the groups that the backward pass has left, so that
what belongs to their parameters can be added up over the processes and scattered to the shards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook
from torch.distributed.fsdp import FSDPModule
from torch.utils._pytree import tree_leaves

from holdfast.moments.company import Follower, Leave
from holdfast.tensors import canonical_name, is_sharded, unwrap


def dtypes_of(model: nn.Module) -> frozenset[torch.dtype]:
    """The dtypes of the weights as they come, which `MixedPrecisionPolicy` may have chosen."""
    found: set[torch.dtype] = set()
    for module in unwrap(model).modules():
        if isinstance(module, FSDPModule):
            module.unshard()
            found |= {parameter.dtype for parameter in module.parameters() if not is_sharded(parameter)}
            module.reshard()
    return frozenset(found)


@contextmanager
def following(
    model: nn.Module, follower: Follower, leave: Leave | None = None, *, tracks: bool = True
) -> Iterator[None]:
    """Tell a follower of the weights that come, and hide from it what `fully_shard` does to bring them.

    Args:
        model: any; nothing is done about one that is not sharded.
        follower: of a forward pass.
        leave: called in the backward pass, in all processes in the same order.
        tracks: whether the follower is told of weights.
    """
    bare = unwrap(model)
    groups: list[tuple[str, Any]] = [
        (n, module) for n, module in bare.named_modules() if isinstance(module, FSDPModule)
    ]
    with ExitStack() as stack:
        for prefix, module in groups:
            for handle in _hooked(module, _own_names(prefix, module), prefix, follower, leave, tracks):
                stack.callback(handle.remove)
        yield


def _hooked(
    module: Any, names: Sequence[str], prefix: str, follower: Follower, leave: Leave | None, tracks: bool
) -> Iterator[Any]:
    """Hooks before and after those of `fully_shard`, which stand first before and last after the forward pass."""

    def pause(*_: Any) -> None:
        follower.paused += 1

    def came(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for name, parameter in module.named_parameters(prefix) if tracks else ():
            if parameter.requires_grad and not is_sharded(parameter):
                follower.track(canonical_name(name), parameter)
        reached = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.requires_grad]
        if leave is not None and reached:
            register_multi_grad_hook(reached, partial(_leave, leave, names))
        follower.paused -= 1

    def went(*_: Any) -> None:
        follower.paused -= 1

    yield module.register_forward_pre_hook(pause, prepend=True)
    yield module.register_forward_pre_hook(came, with_kwargs=True)
    yield module.register_forward_hook(pause, prepend=True)
    yield module.register_forward_hook(went)


def _leave(leave: Leave, names: Sequence[str], _: Any) -> None:
    leave(names)


def _own_names(prefix: str, module: nn.Module) -> list[str]:
    """Canonical names of the trainable parameters of a group, without those of groups inside it."""
    inside = [
        f"{name}."
        for name, each in module.named_modules(prefix=prefix)
        if isinstance(each, FSDPModule) and each is not module
    ]
    names = [name for name, parameter in module.named_parameters(prefix) if parameter.requires_grad]
    return [canonical_name(name) for name in names if not name.startswith(tuple(inside))]
