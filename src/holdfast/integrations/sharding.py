"""Importances of models that `fully_shard` or `DistributedDataParallel` spread over processes.

`hf.fisher`, `mas`, `taylor` and `signal` measure a model under `fully_shard` as it is. For Kronecker factors every
process measures on its own share of the data, on whole weights, and the results are joined; so is everything under
`DistributedDataParallel`:

    with whole_weights(model):
        importance = over_processes(hf.kfac(model, own_share_of_the_data))
    keeper.retain(importance)

Keepers need nothing more: on a sharded model every process holds what belongs to its own shards, and the few sums of a
step are taken over all of them. `keeper.save` and `load` speak of the whole model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from holdfast.curvature.factored import AnyImportance
from holdfast.errors import OptionError, ParameterMismatchError, StateError
from holdfast.records import ImportanceInfo
from holdfast.replicas import kept_whole
from holdfast.retention.replicas import digest, form_of, gathered, importance_with, tensors_of
from holdfast.tensors import is_sharded

Joined = TypeVar("Joined", bound=AnyImportance)


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
        with kept_whole(model):
            yield model
    finally:
        for hooks, before in kept:
            hooks.clear()
            hooks.update(before)  # in their order
        for module in sharded:
            module.reshard()


def over_processes(importance: Joined, *, group: Any = None) -> Joined:
    """The importance on all processes' data together: the mean of theirs, weighted by their numbers of targets.

    Exact for what is a mean over targets: Fisher importances (all but `kind="batched"`), MAS, signal and Taylor, and
    of `kfac` each factor, A and G, which are means each by itself: of matched factors G over the traces, of the others
    A over examples. `nats_per_unit`, where it was measured, becomes the mean of what the processes found, and `scatter`
    the largest of theirs.

    Args:
        importance: this process's, measured with the same options as the others', of the same parameters.
        group: a process group; None for all processes.

    Returns:
        The same in every process; its `num_examples` and `num_targets` are those of all data. What was measured on
        shards is of all data already, and comes back as it is.

    Raises:
        OptionError: an importance that is no mean over targets, or whose number of targets nobody knows.
        ParameterMismatchError: kinds, names or shapes differ between processes; in all of them.
        StateError: no process group is initialised.

    Cost: an all-gather of five numbers, and one all-reduce of each tensor.
    """
    if not torch.distributed.is_initialized():
        raise StateError("over_processes: no process group. Run under torchrun and call init_process_group() first.")
    info, tensors = importance.info, tensors_of(importance)
    if any(map(is_sharded, tensors.values())):
        return importance
    if info.kind in _NO_MEANS:
        raise OptionError(f"over_processes: {info.kind!r} {_NO_MEANS[info.kind]}")
    joint = _of_all(info, tensors, group)
    weights = _weights(importance, tensors)
    joined = {name: value * weight for (name, value), weight in zip(tensors.items(), weights)}
    torch.distributed.all_reduce(weights, group=group)
    for value, total in zip(joined.values(), weights):
        torch.distributed.all_reduce(value, group=group)
        value.div_(total.where(total > 0, 1.0))
    found: Any = importance_with(importance, joined, joint)
    return found


_NO_MEANS = {
    "fisher-batched": "is a mean over batches, which differ between processes. Use another kind.",
    "mas-batched": "is of each process's data at once, and no mean. Measure without batched=True.",
    "si": "is no mean over targets, and needs none: SynapticIntelligence under DistributedDataParallel finds the same "
    "in every process. Retain it as it is.",
}


def _weights(importance: AnyImportance, tensors: Mapping[str, Tensor]) -> Tensor:
    """[len(tensors)] float64: over how many targets, examples or units of trace each of the tensors is a mean here."""
    info = importance.info
    weights: dict[str, Tensor | int] = dict.fromkeys(tensors, info.num_targets)
    by_name = str(info.details.get("matched", "")).split(", ")
    for name in importance.layers:
        inputs, outputs = f"factors/{name}/inputs", f"factors/{name}/outputs"
        if info.details.get("factors") == "matched" or name in by_name:
            weights[outputs] = info.num_targets * tensors[inputs].trace()
        else:
            weights[inputs] = info.num_examples
    device = next(iter(tensors.values())).device
    return torch.tensor([float(weight) for weight in weights.values()], dtype=torch.float64, device=device)


def _of_all(info: ImportanceInfo, tensors: Mapping[str, Tensor], group: Any) -> ImportanceInfo:
    """With the examples, targets and mean nats per unit of all processes; raises unless they measured the same."""
    nats = info.nats_per_unit
    form = (info.kind, info.unit, nats is None, info.calibration, info.calibrated_at, info.scatter is None)
    numbers = [info.num_examples, info.num_targets, 0.0 if nats is None else nats, info.scatter or 0.0]
    own, numbers = digest((*form, form_of(tensors))), torch.tensor(numbers, dtype=torch.float64)
    mine = torch.cat([torch.tensor([own]), numbers.view(torch.int64)]).to(next(iter(tensors.values())).device)
    digests, *rows = gathered(mine, group)
    examples, targets, factors, scatters = (row.view(torch.float64) for row in rows)
    if (digests != digests[0]).any():
        raise ParameterMismatchError(
            "over_processes: kind, unit, calibration, names or shapes differ between processes; in this one "
            f"{info.kind}, {info.unit}, {len(tensors)} tensors. In all of them, measure the same parameters with the "
            "same options."
        )
    counts = {"num_examples": int(examples.sum()), "num_targets": int(targets.sum())}
    if unknown := [name for name, count in counts.items() if not count]:
        raise OptionError(
            f"over_processes: {' and '.join(unknown)} of this importance ({info.kind}) is 0 in all processes, and it "
            f"weights the mean. Say it of each: importance.with_info({', '.join(f'{name}=...' for name in unknown)})."
        )
    mean = None if nats is None else float(targets @ factors / counts["num_targets"])
    scatter = None if info.scatter is None else float(scatters.max())
    return replace(info, **counts, nats_per_unit=mean, scatter=scatter)


def _is_of_fsdp(hook: Any) -> bool:
    owner = getattr(hook, "__self__", None)
    return owner is not None and type(owner).__module__.startswith("torch.distributed.fsdp")
