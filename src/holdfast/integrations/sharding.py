"""Models that `fully_shard` or `DistributedDataParallel` spread over processes: their importances, and checkpoints.

The estimators measure such a model by themselves: each process gives its share of the data, and gets the importance on
all of them, of Kronecker factors those of its own layers. For a program of one's own that needs whole weights every
process measures on its own, and the results are joined:

    with whole_weights(model):
        importance = over_processes(hf.kfac(model, own_share_of_the_data))
    keeper.retain(importance)

Keepers need nothing more: on a sharded model every process holds what belongs to its own shards, and the few sums of a
step are taken over all of them. `keeper.save` and `load` speak of the whole model.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.fsdp import FSDPModule

from holdfast.curvature.joining import Joined, is_joined, joined, tensors_of
from holdfast.errors import FileFormatError, StateError
from holdfast.replicas import kept_whole, rest
from holdfast.tensors import all_parameters, is_sharded, local, placed


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


def room_for(holder: Any, checkpoint_id: str | os.PathLike[str], *, key: str = "keeper") -> dict[str, Any]:
    """Room for what a checkpoint of `torch.distributed.checkpoint` holds of a keeper or of synaptic intelligence.

        dcp.save({"model": model.state_dict(), "keeper": keeper.state_dict()}, checkpoint_id="checkpoint")

        state = {"model": model.state_dict(), "keeper": room_for(keeper, "checkpoint")}
        dcp.load(state, checkpoint_id="checkpoint")
        keeper.load_state_dict(state["keeper"])

    A keeper that holds nothing yet has no tensors to read into, and what it held may have been sharded otherwise, or
    not at all. The room is as the checkpoint has it, sharded as the holder's model is now.

    Args:
        holder: a keeper, or a `SynapticIntelligence`; unchanged.
        checkpoint_id: the checkpoint's folder.
        key: under which its state was saved.

    Raises:
        FileFormatError: the folder holds no checkpoint, or none of such a key.

    Cost: the memory of what is read, of a sharded model this process's part.
    """
    try:
        metadata = FileSystemReader(checkpoint_id).read_metadata()
    except (OSError, RuntimeError, ValueError) as error:
        raise FileFormatError(
            f"room_for: {os.fspath(checkpoint_id)!r} holds no checkpoint of torch.distributed.checkpoint ({error}). "
            "Name the folder that dcp.save wrote."
        ) from error
    places: Mapping[str, Sequence[Any]] = metadata.planner_data or {}
    own = {entry: place[1:] for entry, place in places.items() if place[0] == key}
    if not own:
        raise FileFormatError(
            f"room_for: the checkpoint {os.fspath(checkpoint_id)!r} has nothing under {key!r}; it has "
            f"{', '.join(sorted({repr(place[0]) for place in places.values()}))}. Name its key."
        )
    rest(holder.model)  # an evaluation may have left whole weights behind
    parameters, room = all_parameters(holder.model), {}
    for entry, place in own.items():
        inside = room
        for step in place[:-1]:
            inside = inside.setdefault(step, {})
        inside[place[-1]] = _room(metadata.state_dict_metadata[entry], parameters.get(place[-1].partition("/")[2]))
    return room


def _room(stored: Any, parameter: Tensor | None) -> Any:
    """An empty tensor as it is stored, laid out as the parameter that it belongs to; None for what is no tensor."""
    if not isinstance(stored, TensorStorageMetadata):
        return None
    dtype = stored.properties.dtype
    if parameter is None or parameter.shape != stored.size:
        return torch.empty(stored.size, dtype=dtype)
    return placed(torch.empty_like(local(parameter.detach()), dtype=dtype), parameter)


def over_processes(importance: Joined, *, group: Any = None) -> Joined:
    """The importance on all processes' data together: the mean of theirs, weighted by their numbers of targets.

    For what every process measured by itself: on a bare model, or on a sharded one inside `whole_weights`. What was
    measured on the model wrapped in `DistributedDataParallel`, or on its shards, is of all data already, and comes back
    as it is, with a warning.

    Exact for what is a mean over targets: Fisher importances (all but `kind="batched"`), MAS, signal and Taylor, and
    of `kfac` each factor, A and G, which are means each by itself: of matched factors G over the traces, of the others
    A over examples. `nats_per_unit`, where it was measured, becomes the mean of what the processes found, and `scatter`
    the largest of theirs.

    Args:
        importance: this process's, measured with the same options as the others', of the same parameters.
        group: a process group; None for all processes.

    Returns:
        The same in every process; its `num_examples` and `num_targets` are those of all data, and
        `info.details["processes"]` says of how many processes they are.

    Raises:
        OptionError: an importance that is no mean over targets, or whose number of targets nobody knows.
        ParameterMismatchError: kinds, names or shapes differ between processes; in all of them.
        StateError: no process group is initialised.

    Cost: an all-gather of five numbers, and one all-reduce of each tensor.
    """
    if not torch.distributed.is_initialized():
        raise StateError("over_processes: no process group. Run under torchrun and call init_process_group() first.")
    in_shards = getattr(importance, "shards", None) is not None
    if is_joined(importance.info) or in_shards or any(map(is_sharded, tensors_of(importance).values())):
        warnings.warn(
            f"over_processes: this {importance.info.kind!r} importance is of all processes' data already, and stays as "
            "it is. Leave the call out: what is measured on a wrapped or sharded model is joined by itself.",
            stacklevel=2,
        )
        return importance
    return joined(importance, group=group, where="over_processes")


def _is_of_fsdp(hook: Any) -> bool:
    owner = getattr(hook, "__self__", None)
    return owner is not None and type(owner).__module__.startswith("torch.distributed.fsdp")
