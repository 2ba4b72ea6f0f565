"""The processes that do one command together: what each of them has found is told to all."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from holdfast.errors import LostProcessError, RunMismatchError
from holdfast.files import from_bytes, to_bytes

Told = tuple[dict[str, Tensor], Any]
"""Tensors by name, and notes of JSON values."""

_LOST = ("connection closed by peer", "connection reset by peer", "gloo", "nccl", "timed out waiting")
"""What torch's messages say when a process that others wait for is gone."""


@dataclass(frozen=True)
class Processes:
    """Processes that run the same command on the same data, of which each does its share.

    All of them come to the same calls in the same order, and each call waits for the others. The first alone writes and
    shows. Of one process every call gives back what it was given.

    Attributes:
        rank: the number of this process, from 0.
        count: how many there are; more than one over torch's process group, see `launched`.
    """

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this one writes and shows."""
        return self.rank == 0

    def told(self, notes: Any, tensors: Mapping[str, Tensor] | None = None) -> list[Told]:
        """What every process tells, in the order of their numbers, tensors on the CPU.

        Raises:
            LostProcessError: another process is gone.

        Cost: the largest of what is told times the number of processes, in the memory of each.
        """
        if self.count == 1:
            return [(dict(tensors or {}), notes)]
        content = torch.frombuffer(bytearray(to_bytes(tensors or {}, notes)), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.count)]
        try:
            torch.distributed.all_gather(sizes, torch.tensor([len(content)]))
            longest = max(map(int, sizes))
            found = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.count)]
            padded = torch.cat([content, content.new_zeros(longest - len(content))])
            torch.distributed.all_gather(found, padded)
        except RuntimeError as error:
            raise self.lost() from error
        return [
            from_bytes(each[: int(size)].numpy().tobytes(), where="processes")
            for each, size in zip(found, sizes, strict=True)
        ]

    def of_first(self, find: Callable[[], Told]) -> Told:
        """What the first process finds, in all; the others wait for it.

        Raises:
            LostProcessError: it has not come back.
        """
        tensors, notes = find() if self.is_first else ({}, None)
        return self.told(notes, tensors)[0]

    def told_in_order(self, found: Sequence[Tensor]) -> list[list[Tensor]]:
        """The tensors that every process found, in the order of their numbers.

        Raises:
            LostProcessError: another process is gone.
        """
        if self.count == 1:
            return [list(found)]
        told = self.told(len(found), {str(place): tensor for place, tensor in enumerate(found)})
        return [[tensors[str(place)] for place in range(number)] for tensors, number in told]

    def wait(self) -> None:
        """Until every process has come here.

        Raises:
            LostProcessError: another process is gone.
        """
        self.told(None)

    def add_up(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sums over all processes; one that has none of a tensor counts as zeros.

        Args:
            tensors: on the CPU, changed in place; the same names and shapes in every process, or none at all.

        Raises:
            RunMismatchError: names or shapes differ; in all processes.
            LostProcessError: another process is gone.

        Cost: an all-reduce of each tensor.
        """
        if self.count == 1:
            return dict(tensors)
        own = [(name, list(value.shape), str(value.dtype)) for name, value in tensors.items()]
        forms = [notes for _, notes in self.told(own) if notes]
        if any(form != forms[0] for form in forms):
            raise RunMismatchError(
                "the processes found sums of other names or shapes. Start all of them with one command, on the same "
                "model and versions of torch and transformers."
            )
        known = forms[0] if forms else []
        kinds = {str(dtype): dtype for dtype in (torch.float32, torch.float64, torch.int64)}
        summed = {n: tensors[n] if n in tensors else torch.zeros(shape, dtype=kinds[kind]) for n, shape, kind in known}
        try:
            for value in summed.values():
                torch.distributed.all_reduce(value)
        except RuntimeError as error:
            raise self.lost() from error
        return summed

    def agree(self, where: str, **what: Any) -> None:
        """Raise where the processes are not about to do the same.

        Args:
            where: for the message.
            what: must be the same in all, as JSON values by their names.

        Raises:
            RunMismatchError: something differs; in all processes.
            LostProcessError: another process is gone.
        """
        found = [notes for _, notes in self.told(json.loads(json.dumps(what)))]
        for number, notes in enumerate(found):
            if changed := [name.replace("_", " ") for name in notes if notes[name] != found[0][name]]:
                raise RunMismatchError(
                    f"{where}: the processes disagree: process {number} of {self.count} has another "
                    f"{', '.join(changed)} than the first. Start all of them with one command, on the same files."
                )

    def share(self, items: Sequence[Any]) -> Sequence[Any]:
        """This process's part of the items: one contiguous piece, of lengths that differ by at most one."""
        start, stop = (edge * len(items) // self.count for edge in (self.rank, self.rank + 1))
        return items[start:stop]

    def lost(self) -> LostProcessError:
        """What to raise where another process has not come."""
        return LostProcessError(
            f"another of the {self.count} processes is gone. The same command goes on from the last checkpoint."
        )


ALONE = Processes()
"""One process, which does everything itself."""


def is_loss(error: BaseException) -> bool:
    """Whether an error of torch says that another process is gone."""
    told = f"{error} {error.__cause__ or ''}".lower()
    return isinstance(error, RuntimeError) and any(sign in told for sign in _LOST)
