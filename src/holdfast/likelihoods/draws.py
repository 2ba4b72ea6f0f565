"""Random numbers that belong to examples: the same however the data are batched, padded or shared among processes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Draws:
    """Random numbers for the examples of a batch, each of them decided by the seed and the example's own number.

    They come from no generator that goes on from draw to draw, but from a hash (SplitMix64) of seed, stream, the
    number of the example, and the place in its part of the tensor that is asked for.

    Args:
        numbers: of the B examples among all data.
        seed: decides on everything.
        stream: other random numbers for the same examples.
    """

    numbers: Sequence[int]
    seed: int = 0
    stream: int = 0

    def other(self, stream: int) -> Draws:
        """Other random numbers of the same examples, one kind for each number of a stream."""
        return replace(self, stream=_STREAMS * self.stream + stream + 1)

    def uniform(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """[B, ...]: evenly from 0 (inclusive) to 1 (exclusive).

        Args:
            shape: its first axis holds the examples.
            like: a tensor whose dtype and device are wanted.
        """
        places = torch.arange(math.prod(shape[1:]), device=like.device)
        key = _mixed(_mixed(torch.tensor(self.seed % 2**63, device=like.device)) + self.stream)
        rows = _mixed(key + torch.tensor(list(self.numbers), device=like.device))
        bits = _shifted(_mixed(rows.unsqueeze(1) + places), 64 - 24)  # as many as float32 tells apart
        return (bits.to(torch.float32) * 2.0**-24).to(like.dtype).reshape(tuple(shape))

    def normal(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """[B, ...]: standard normal, by Box and Muller; arguments as for `uniform`."""
        wide = torch.empty(0, dtype=torch.float32, device=like.device)
        radius = (-2 * torch.log1p(-self.other(0).uniform(shape, wide))).sqrt()
        return (radius * (2 * math.pi * self.other(1).uniform(shape, wide)).cos()).to(like.dtype)


_STREAMS = 2**20


def _mixed(x: Tensor) -> Tensor:
    """A permutation of 64 bits that leaves no trace of the order of what goes in: a step of SplitMix64."""
    x = x + -0x61C8864680B583EB
    x = (x ^ _shifted(x, 30)) * -0x40A7B892E31B1A47
    x = (x ^ _shifted(x, 27)) * -0x6B2FB644ECCEEE15
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """To the right, with zeros from the left, which torch's signed numbers do not do of themselves."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
