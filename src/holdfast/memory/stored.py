"""What is held of each weight, in the form it is stored in, and read piece by piece.

    Tensor       float32, bfloat16, or the weights' own dtype; taken where it lies if it is what is asked for
    Blocks       8 or 16 bits and a common exponent for every 256 weights (`holdfast.memory.codes`)
    Reference    a tensor of a checkpoint on disk (`holdfast.memory.reference`)

Whoever needs entries asks for pieces and reads each into the same row of memory, so that nothing of the model's size is
ever decoded at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeGuard

import torch
from torch import Tensor

from holdfast.errors import FileFormatError
from holdfast.memory import codes

PIECE = 2**20
"""Weights read at once where no step waits for them: 4 MB in float32."""


_SCALED_TOGETHER = 16
"""Pieces whose scales are computed at once: fewer cost more calls, more cost memory."""


class Readable(Protocol):
    """Entries that can be read."""

    @property
    def shape(self) -> torch.Size:
        """Of the entries."""
        ...

    def read(self, out: Tensor) -> Tensor:
        """The entries into `out`, contiguous, of any floating dtype and on any device."""
        ...


class Stored(Readable, Protocol):
    """Entries of one weight, or of a flat piece of it, in a form that is no tensor of them."""

    @property
    def device(self) -> torch.device:
        """Where it is."""
        ...

    @property
    def nbytes(self) -> int:
        """Of memory."""
        ...

    def pieces(self, size: int) -> Iterator[Stored]:
        """Successive pieces of the flattened entries."""
        ...

    def to(self, device: torch.device) -> Stored:
        """With what is in memory on another device; itself where there is nothing to move."""
        ...


AnyTensor = Tensor | Stored
AnyTensorMap = Mapping[str, AnyTensor]


@dataclass(frozen=True, eq=False)
class Blocks:
    """Importances in 8 bits, or anchors in 16.

    Attributes:
        codes: uint8 or int16, of the weight's shape or a flat piece of it.
        exponents: uint8, one for every 256 of them in order.
    """

    codes: Tensor
    exponents: Tensor

    @classmethod
    def zeros(cls, shape: torch.Size, *, dtype: torch.dtype, device: torch.device) -> Blocks:
        """Of nothing yet."""
        num_blocks = -(-shape.numel() // codes.BLOCK)
        empty = torch.zeros(num_blocks, dtype=torch.uint8, device=device)
        return cls(torch.zeros(shape, dtype=dtype, device=device), empty)

    @property
    def shape(self) -> torch.Size:
        """Of the entries."""
        return self.codes.shape

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.codes.device

    @property
    def nbytes(self) -> int:
        """Of memory."""
        return self.codes.nbytes + self.exponents.nbytes

    def pieces(self, size: int) -> Iterator[Blocks]:
        """Successive pieces of so many entries, a multiple of 256: views of this one."""
        return map(Blocks, _slices(self.codes, size), _slices(self.exponents, size // codes.BLOCK))

    def readings(self, size: int) -> Iterator[Scaled]:
        """The same, to be read alone."""
        for some in self.pieces(_SCALED_TOGETHER * size):
            yield from map(Scaled, _slices(some.codes, size), _slices(some._scales, size // codes.BLOCK))

    def read(self, out: Tensor) -> Tensor:
        """The entries into `out`."""
        return Scaled(self.codes.reshape(-1), self._scales).read(out)

    @property
    def _scales(self) -> Tensor:
        return codes.scales_of(self.exponents, of=self.codes)

    def to(self, device: torch.device) -> Blocks:
        """On another device."""
        return Blocks(self.codes.to(device), self.exponents.to(device))


@dataclass(frozen=True, eq=False, slots=True)
class Scaled:
    """`Blocks` to be read, flat: the exponents of many blocks became scales at once.

    Attributes:
        codes: uint8 or int16.
        scales: of `codes.scales_of`.
    """

    codes: Tensor
    scales: Tensor

    @property
    def shape(self) -> torch.Size:
        """Of the entries."""
        return self.codes.shape

    def read(self, out: Tensor) -> Tensor:
        """The entries into `out`; decoded there, so that it is the codes that travel."""
        moved, scales = _moved(self.codes, out.device), _moved(self.scales, out.device)
        decode = codes.decode_importance if moved.dtype == torch.uint8 else codes.decode_anchor
        if out.dtype == torch.float32:
            decode(moved, scales, out=out.view(-1))
            return out
        wide = decode(moved, scales, out=torch.empty(out.numel(), dtype=torch.float32, device=out.device))
        return out.copy_(wide.view(out.shape))


def pieces(held: AnyTensor, size: int) -> Iterator[AnyTensor]:
    """Successive pieces of the flattened entries, each of `size` (a multiple of 256) but the last.

    Made as they are asked for: those of a large model at once would be megabytes of views.
    """
    return _slices(held, size) if isinstance(held, Tensor) else held.pieces(size)


def readings(held: AnyTensor, size: int) -> Iterator[Tensor | Readable]:
    """As `pieces`, to be read alone, and sooner."""
    return held.readings(size) if isinstance(held, Blocks) else pieces(held, size)


def is_ready(held: Tensor | Readable, *, dtype: torch.dtype, device: torch.device) -> TypeGuard[Tensor]:
    """Whether it is a tensor as it is asked for."""
    return isinstance(held, Tensor) and held.dtype == dtype and held.device == device


def read(held: Tensor | Readable, *, dtype: torch.dtype, device: torch.device, out: Tensor | None = None) -> Tensor:
    """The entries as a tensor.

    Args:
        held: what is held, or a piece of it.
        dtype: floating.
        device: where they are needed.
        out: contiguous memory for them, of this dtype, device and shape; None for new memory.

    Returns:
        `held` itself where it is ready, not to be changed; else `out`.
    """
    if is_ready(held, dtype=dtype, device=device):
        return held
    if out is None:
        out = torch.empty(held.shape, dtype=dtype, device=device)
    return out.copy_(_moved(held, device)) if isinstance(held, Tensor) else held.read(out)


def side_by_side(weight: Tensor, importance: AnyTensor, anchor: AnyTensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """A weight, its importance in float32 and its anchor in the weight's dtype, piece after piece on its device."""
    dense = isinstance(importance, Tensor) and isinstance(anchor, Tensor)
    size = PIECE if dense else PIECE // 16  # a row to read into has to be small beside what is saved by the form
    columns = _slices(weight, size), readings(importance, size), readings(anchor, size)
    for part, omega, end in zip(*columns, strict=True):
        read_there = partial(read, device=weight.device)
        yield part, read_there(omega, dtype=torch.float32), read_there(end, dtype=weight.dtype)


def num_positive(held: AnyTensor) -> Tensor:
    """How many entries of an importance are above zero."""
    counted = held.codes if isinstance(held, Blocks) else held
    assert isinstance(counted, Tensor)
    return torch.count_nonzero(counted)


def shapes_of_any(held: AnyTensorMap) -> dict[str, Tensor]:
    """Name -> a zero of the weight's shape that takes no memory."""
    zero = torch.zeros((), dtype=torch.float32)
    return {name: zero.expand(value.shape) for name, value in held.items()}


def to_tensors(held: AnyTensorMap) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What is held as tensors for a file: entries or codes, and the exponents of those that are codes."""
    codes_of = {name: value.codes if isinstance(value, Blocks) else value for name, value in held.items()}
    tensors = {name: value for name, value in codes_of.items() if isinstance(value, Tensor)}
    return tensors, {name: value.exponents for name, value in held.items() if isinstance(value, Blocks)}


def from_tensors(tensors: Mapping[str, Tensor], exponents: Mapping[str, Tensor], *, where: str) -> dict[str, AnyTensor]:
    """What `to_tensors` was given.

    Raises:
        FileFormatError: codes whose exponents are missing or not one for every 256 of them; every such name is listed.
    """
    found: dict[str, AnyTensor] = {}
    wrong = []
    for name, value in tensors.items():
        if value.is_floating_point():
            found[name] = value
            continue
        own = exponents.get(name)
        if value.dtype not in (torch.uint8, torch.int16) or own is None or not codes.are_exponents(own, of=value):
            wrong.append(repr(name))
        else:
            found[name] = Blocks(value, own)
    if wrong:
        raise FileFormatError(
            f"{where}: {', '.join(wrong)} {'is' if len(wrong) == 1 else 'are'} in 8 or 16 bits, and the exponents of "
            "their blocks of 256 are missing or damaged. Save the keeper again."
        )
    return found


def _slices(tensor: Tensor, size: int) -> Iterator[Tensor]:
    flat = tensor.reshape(-1)
    total = flat.numel()
    return (flat.narrow(0, start, min(size, total - start)) for start in range(0, total, size))


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    if tensor.device == device:
        return tensor
    return tensor.to(device, non_blocking=device.type == "cuda")  # back to the CPU it would be read too early
