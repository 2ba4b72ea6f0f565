"""Importances of models that `fully_shard` or `DistributedDataParallel` spread over processes.

Every process measures on its own share of the data, on whole weights, and the results are joined:

    with whole_weights(model):
        importance = over_processes(hf.fisher(model, own_share_of_the_data))
    keeper.retain(importance)

Keepers need nothing more: on a sharded model every process holds what belongs to its own shards, and the few sums of a
step are taken over all of them. `keeper.save` and `load` speak of the whole model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from holdfast.errors import OptionError, StateError
from holdfast.records import Importance


@contextmanager
def whole_weights(model: nn.Module) -> Iterator[nn.Module]:
    """Make a model that `fully_shard` spread over processes a plain one for a while, with whole weights in each.

    The estimators look at every use of a parameter, which the hooks of `fully_shard` would hide from them. Inside,
    those hooks are gone and the parameters are plain tensors, of `MixedPrecisionPolicy`'s dtype; they are not to be
    changed there. Other models are left as they are.

    Yields:
        The same model.

    Cost: the whole weights in every process, and for an estimator its sums in float32.
    """
    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
    kept: list[tuple[dict[int, Any], dict[int, Any]]] = []
    try:
        for module in sharded:
            module.unshard()
            for hooks in (module._forward_pre_hooks, module._forward_hooks):
                kept.append((hooks, dict(hooks)))
                for key in [key for key, hook in hooks.items() if _is_of_fsdp(hook)]:
                    del hooks[key]
        yield model
    finally:
        for hooks, before in kept:
            hooks.clear()
            hooks.update(before)  # in their order
        for module in sharded:
            module.reshard()


def over_processes(importance: Importance, *, group: Any = None) -> Importance:
    """The importance on all processes' data together: the mean of theirs, weighted by their numbers of examples.

    Exact for what is a mean over examples: Fisher importances (all but `kind="batched"`), MAS, signal and Taylor.

    Args:
        importance: this process's, measured with the same options as the others', of the same parameters.
        group: a process group; None for all processes.

    Returns:
        The same in every process; its `num_examples` is that of all data.

    Raises:
        OptionError: an importance that is no mean over examples.
        StateError: no process group is initialised.

    Cost: one all-reduce of each tensor.
    """
    if not torch.distributed.is_initialized():
        raise StateError("over_processes: no process group. Run under torchrun and call init_process_group() first.")
    if importance.info.kind == "fisher-batched":
        raise OptionError(
            "over_processes: 'fisher-batched' is a mean over batches, which differ between processes. Use another kind."
        )
    values = {name: value * importance.info.num_examples for name, value in importance.items()}
    some = next(iter(values.values()))
    examples = torch.tensor(importance.info.num_examples, dtype=torch.int64, device=some.device)
    for tensor in (*values.values(), examples):
        torch.distributed.all_reduce(tensor, group=group)
    total = int(examples)
    return Importance(
        {name: _divided(value, total) for name, value in values.items()}, replace(importance.info, num_examples=total)
    )


def _divided(total: Tensor, count: int) -> Tensor:
    return total.div_(count)


def _is_of_fsdp(hook: Any) -> bool:
    owner = getattr(hook, "__self__", None)
    return owner is not None and type(owner).__module__.startswith("torch.distributed.fsdp")
