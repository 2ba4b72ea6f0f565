"""Examples held in memory, or on disk as bytes: what is stored, which of it counts, and the ways to walk through it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from holdfast.errors import BatchError, OptionError

_IN_ORDER = 256

View = Callable[[Tensor], Tensor]
"""From inputs [B, ...] to inputs of as many examples."""


@dataclass(frozen=True, eq=False)
class Examples:
    """Inputs and their targets. Iterating yields `(inputs, targets)` batches of 256 in order, any number of times.

    Several may share what is stored, of which each has its `rows`, so that a task takes no memory of its own. Bytes
    become numbers when a batch is made of them.

    Attributes:
        stored: [M, ...]: inputs; or bytes (uint8), of which 255 stands for 1.
        targets: [N, ...].
        rows: int64 [N], which of the stored ones they are; None: all, in order.
        view: what becomes of the inputs of each batch; None: nothing.

    Raises:
        BatchError: the lengths differ.
    """

    stored: Tensor
    targets: Tensor
    rows: Tensor | None = None
    view: View | None = None

    def __post_init__(self) -> None:
        """Check that each input has its target."""
        count = len(self.stored if self.rows is None else self.rows)
        if count != len(self.targets):
            raise BatchError(
                f"Examples: found {count} inputs and {len(self.targets)} targets, expected as many of both."
            )

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.targets)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of 256 in order."""
        return self.batches(_IN_ORDER)

    @property
    def inputs(self) -> Tensor:
        """[N, ...]: all of them at once.

        Cost: what is stored itself where that is all of it as it is seen; else memory for all of the inputs.
        """
        return self._seen(self.stored if self.rows is None else self.stored.index_select(0, self.rows))

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one example."""
        return tuple(self.at(torch.zeros(1, dtype=torch.long, device=self.stored.device)).shape[1:])

    @property
    def nbytes(self) -> int:
        """Bytes of memory that these examples would take by themselves."""
        return len(self) * self.stored[:1].nbytes + self.targets.nbytes

    def at(self, chosen: Tensor) -> Tensor:
        """The inputs of those with these numbers, int64 [B]."""
        return self._seen(self.stored.index_select(0, chosen if self.rows is None else self.rows[chosen]))

    def batches(self, size: int, *, generator: torch.Generator | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Every example once, in batches of `size`; the last one may be shorter.

        Args:
            size: the number of examples of a batch, at least 1.
            generator: shuffles them, by one `torch.randperm` when this is called. None: in order, as views.

        Raises:
            OptionError: `size` is below 1.
        """
        if size < 1:
            raise OptionError(f"Examples.batches: size={size}, expected at least 1.")
        if generator is None:
            parts = (self._between(start, start + size) for start in range(0, len(self), size))
            return ((part.inputs, part.targets) for part in parts)
        order = torch.randperm(len(self), generator=generator, device=generator.device).to(self.stored.device)
        chunks = order.split(size) if len(self) else ()
        return ((self.at(chosen), self.targets.index_select(0, chosen)) for chosen in chunks)

    def to(self, device: torch.device | str) -> Examples:
        """The same examples on `device`; of what is stored elsewhere only their own rows are moved there."""
        if self.stored.device == torch.empty(0, device=device).device:
            return self
        own = self.stored if self.rows is None else self.stored.index_select(0, self.rows)
        return Examples(own.to(device), self.targets.to(device), view=self.view)

    def take(self, n: int) -> Examples:
        """The first n examples, as views; all of them where there are fewer."""
        return self._between(0, n)

    def select(self, chosen: Tensor, *, targets: Tensor | None = None) -> Examples:
        """Those with these numbers, int64 [B], over the same store; `targets` [B, ...] take the place of theirs."""
        rows = chosen if self.rows is None else self.rows[chosen]
        own = self.targets.index_select(0, chosen) if targets is None else targets
        return replace(self, targets=own, rows=rows)

    def relabelled(self, targets: Tensor) -> Examples:
        """The same inputs with other targets, [N, ...]."""
        return replace(self, targets=targets)

    def through(self, view: View, *, targets: Tensor | None = None) -> Examples:
        """The same inputs as `view` gives them: of bytes batch by batch, of numbers now and once and for all.

        Args:
            view: draws nothing at random, and treats each example by itself.
            targets: in place of theirs.
        """
        own = self.targets if targets is None else targets
        if self.stored.dtype != torch.uint8:
            return Examples(view(self.inputs), own)
        before = self.view
        return replace(self, targets=own, view=view if before is None else lambda inputs: view(before(inputs)))

    @classmethod
    def joined(cls, parts: Sequence[Examples]) -> Examples:
        """The examples of all parts, one after the other; no copy of the inputs where they share what is stored."""
        first = parts[0]
        targets = torch.cat([part.targets for part in parts])
        if all(part.stored is first.stored and part.view is first.view for part in parts):
            return replace(first, targets=targets, rows=torch.cat([part.numbers for part in parts]))
        return cls(torch.cat([part.inputs for part in parts]), targets)

    @property
    def numbers(self) -> Tensor:
        """int64 [N]: which of the stored ones they are."""
        return torch.arange(len(self.stored), device=self.stored.device) if self.rows is None else self.rows

    def _between(self, start: int, end: int) -> Examples:
        if self.rows is None:
            return replace(self, stored=self.stored[start:end], targets=self.targets[start:end])
        return replace(self, rows=self.rows[start:end], targets=self.targets[start:end])

    def _seen(self, stored: Tensor) -> Tensor:
        numbers = stored.float().div_(255) if stored.dtype == torch.uint8 else stored
        return numbers if self.view is None else self.view(numbers)
