"""Layers that belong to several processes: taken to other owners, and brought to the first process, which writes them.

All of the processes come to each of these functions, and walk through the layers in the same order.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from holdfast.curvature.owners import LayerElsewhere, in_order
from holdfast.curvature.protocol import Group
from holdfast.errors import OutputError
from holdfast.files import new_folder
from holdfast.tensors import Shards

_L = TypeVar("_L", bound=Group)

_SPOOL = "layers.spool"
"""Where layers lie on disk until they are written, in a folder that is not yet anybody's."""


def regrouped(
    own: Mapping[str, _L], rest: Mapping[str, LayerElsewhere[_L]], where: Mapping[str, int], shards: Shards
) -> tuple[dict[str, _L], dict[str, LayerElsewhere[_L]]]:
    """The layers of this process and those elsewhere, when each has gone to the owner that `where` says.

    Cost: those that change their owner are sent, one at a time.
    """
    mine: dict[str, _L] = {}
    others: dict[str, LayerElsewhere[_L]] = {}
    for place, name in enumerate(in_order(own, rest)):
        to = where[name]
        owner = rest[name].owner if name in rest else shards.rank
        layer: Any = own.get(name)
        if owner != to and shards.rank in (owner, to):
            layer = _room(rest[name].layer, shards) if layer is None else layer
            for part in layer.tensors().values():
                shards.hand_over(part, owner, to)
        if to == shards.rank:
            mine[name] = layer
        else:
            others[name] = LayerElsewhere(to, place, rest[name].layer if layer is None else layer.to("meta"))
    return mine, others


def write_together(
    path: str | os.PathLike[str],
    own: Mapping[str, _L],
    rest: Mapping[str, LayerElsewhere[_L]],
    shards: Shards,
    write: Callable[[Path, Mapping[str, _L]], None],
) -> None:
    """Let the first process write a folder with the layers of all.

    No process has more than its own in memory and one of another: they come one by one, and lie on disk meanwhile.

    Args:
        path: of the folder.
        own: the layers of this process.
        rest: those of the others.
        shards: the processes.
        write: given a temporary folder and all layers in their order, in the first process.

    Raises:
        OutputError: it cannot be written; in all processes.
    """
    names, failure = in_order(own, rest), None
    with ExitStack() as stack:
        folder, found = Path(), {}
        try:
            if shards.is_first:
                folder = stack.enter_context(new_folder(path))
                forms = {name: own[name].to("meta") if name in own else rest[name].layer for name in names}
                found = stack.enter_context(_on_disk(folder / _SPOOL, forms))
        except OSError as error:  # also the library's own, of which the others must know
            failure = error
        _agree(failure, shards, path)
        for name in names:
            _bring_to_first(own.get(name), rest.get(name), found.get(name), shards)
        try:
            if shards.is_first:
                write(folder, found)
        except OSError as error:
            failure = error
        _agree(failure, shards, path)


def _agree(failure: OSError | None, shards: Shards, path: str | os.PathLike[str]) -> None:
    """Raise in all processes where one of them failed."""
    failed = shards.largest(float(failure is not None)) > 0
    if failure is not None:
        raise failure
    if failed:
        raise OutputError(f"cannot write {path}: the first process was refused, and its error says why.")


def _bring_to_first(own: Group | None, rest: LayerElsewhere[Any] | None, found: Group | None, shards: Shards) -> None:
    owner = shards.rank if rest is None else rest.owner
    room = {} if found is None else found.tensors()
    if own is not None:
        parts = own.tensors()
    else:
        assert rest is not None
        parts = {} if found is None else _room(rest.layer, shards).tensors()
    for part, tensor in parts.items():
        shards.hand_over(tensor, owner, shards.first)
        if room:
            room[part].copy_(tensor)


def _room(layer: Any, shards: Shards) -> Any:
    """The layer with memory behind it."""
    device = shards.mesh.device_type
    return replace(layer, **{part: torch.empty_like(value, device=device) for part, value in layer.tensors().items()})


@contextmanager
def _on_disk(path: Path, layers: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Inside, these layers with room for their tensors in a file, which the system may take out of memory."""
    parts = [part for layer in layers.values() for part in layer.tensors().values()]
    offsets, end = [], 0
    for part in parts:
        offsets.append(end)
        end += -(-part.nbytes // 64) * 64
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, max(1, end))  # else a full disk would end the process
        else:
            file.truncate(max(1, end))
    memory = torch.from_file(str(path), shared=True, size=max(1, end), dtype=torch.uint8)
    rooms = iter([_at(memory, offset, part) for offset, part in zip(offsets, parts, strict=True)])
    found = {name: replace(layer, **{part: next(rooms) for part in layer.tensors()}) for name, layer in layers.items()}
    del memory, rooms
    try:
        yield found
    finally:
        found.clear()
        path.unlink()


def _at(memory: Tensor, offset: int, like: Tensor) -> Tensor:
    return memory[offset : offset + like.nbytes].view(like.dtype).view(like.shape)
