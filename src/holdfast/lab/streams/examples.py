"""Examples held in memory: two tensors and the ways to walk through them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.errors import BatchError, OptionError

_IN_ORDER = 256


@dataclass(frozen=True, eq=False)
class Examples:
    """Inputs and their targets. Iterating yields `(inputs, targets)` batches of 256 in order, any number of times.

    Attributes:
        inputs: [N, ...].
        targets: [N, ...].

    Raises:
        BatchError: the lengths differ.
    """

    inputs: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        """Check that each input has its target."""
        if len(self.inputs) != len(self.targets):
            raise BatchError(
                f"Examples: found {len(self.inputs)} inputs and {len(self.targets)} targets, expected as many of both."
            )

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.inputs)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of 256 in order."""
        return self.batches(_IN_ORDER)

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
            starts = range(0, len(self), size)
            return ((self.inputs[i : i + size], self.targets[i : i + size]) for i in starts)
        order = torch.randperm(len(self), generator=generator, device=generator.device).to(self.inputs.device)
        chunks = order.split(size) if len(self) else ()
        return ((self.inputs.index_select(0, chosen), self.targets.index_select(0, chosen)) for chosen in chunks)

    def to(self, device: torch.device | str) -> Examples:
        """The same examples on `device`."""
        return Examples(self.inputs.to(device), self.targets.to(device))

    def take(self, n: int) -> Examples:
        """The first n examples, as views; all of them where there are fewer."""
        return Examples(self.inputs[:n], self.targets[:n])
