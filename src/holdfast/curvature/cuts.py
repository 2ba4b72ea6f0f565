"""How a parameter is cut into the shards of several processes, and what lies in each of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from holdfast.errors import OptionError
from holdfast.tensors import is_sharded


@dataclass(frozen=True)
class Cut:
    """One parameter, of which every process has a piece.

    Attributes:
        shape: of the whole.
        dim: along which it is cut, as `torch.chunk` does; None where every process has the whole.
        size: number of processes.
        dtype: of the parameter.
    """

    shape: tuple[int, ...]
    dim: int | None
    size: int
    dtype: torch.dtype

    def numel(self, rank: int) -> int:
        """Entries of the piece that a process has."""
        return math.prod(self._shape_of(rank))

    def piece(self, whole: Tensor, rank: int) -> Tensor:
        """The piece of a whole tensor that a process has, as a view."""
        if self.dim is None:
            return whole
        rows = self._rows(rank)
        return whole.narrow(self.dim, rows.start, len(rows))

    def laid(self, entries: Tensor, rank: int) -> Tensor:
        """The flat entries of a process's piece in its shape."""
        return entries.view(self._shape_of(rank))

    def joined(self, pieces: Sequence[Tensor], *, rank: int) -> Tensor:
        """The whole, from the flat entries of all processes' pieces; `rank` is the process that joins them."""
        if self.dim is None:
            return self.laid(pieces[rank], rank)
        return torch.cat([self.laid(piece, owner) for owner, piece in enumerate(pieces)], dim=self.dim)

    def _rows(self, rank: int) -> range:
        assert self.dim is not None
        length = self.shape[self.dim]
        each = -(-length // self.size)
        return range(min(rank * each, length), min((rank + 1) * each, length))

    def _shape_of(self, rank: int) -> tuple[int, ...]:
        if self.dim is None:
            return self.shape
        return (*self.shape[: self.dim], len(self._rows(rank)), *self.shape[self.dim + 1 :])


def axis_of(parameter: Tensor) -> int | None:
    """The axis of the mesh that a parameter is cut along; None where every process has the whole.

    Raises:
        OptionError: it is cut along several, or in another way than `torch.chunk` does.
    """
    from torch.distributed.tensor import Shard

    like: Any = parameter
    if not is_sharded(parameter):
        return None
    axes = [axis for axis, placement in enumerate(like.placements) if not placement.is_replicate()]
    if len(axes) > 1 or not all(type(like.placements[axis]) is Shard for axis in axes):
        raise OptionError(
            f"A layer is held as a whole where fully_shard alone has spread its parameters; found the placements "
            f"{like.placements}. Shard the model by fully_shard, or retain importance.to_diagonal()."
        )
    return axes[0] if axes else None


def cut_of(parameter: Tensor, *, size: int) -> Cut:
    """How a parameter is cut into the shards of `size` processes."""
    like: Any = parameter
    axis = axis_of(parameter)
    return Cut(tuple(parameter.shape), None if axis is None else like.placements[axis].dim, size, parameter.dtype)
