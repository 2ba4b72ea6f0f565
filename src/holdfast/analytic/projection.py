"""Random features: a projection that a seed decides, and a relu."""

from __future__ import annotations

import hashlib
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

_TERMS = 12
"""Uniform numbers in the sum that stands for a normal one: so many have variance 1."""


class RandomProjection:
    """M random features of d given ones, the same ones for every process, machine and release.

        phi = relu(W^T f)

    W's entries are sums of twelve uniform numbers of 16 bits, less their mean: of mean 0 and variance 1, within 6 of
    zero, and near normal. They are whole numbers until the last division, drawn by PCG64, whose stream numpy promises
    to keep: so a file holds the seed, and a digest to check it by, and no matrix.

    Source: W, phi and M of RanPAC, McDonnell et al. 2023, arXiv 2307.02251, where W is normal.

    Args:
        width: d.
        size: M.
        seed: >= 0.
    """

    def __init__(self, width: int, size: int, *, seed: int) -> None:
        self.width, self.size, self.seed = width, size, seed
        self._moved: Tensor | None = None

    @cached_property
    def W(self) -> Tensor:
        """Float64 [d, M], on the CPU.

        Cost: 8 d M bytes.
        """
        bits = np.random.PCG64(self.seed)
        rows = [_near_normal(bits.random_raw(self.size * _TERMS // 4)) for _ in range(self.width)]
        return torch.from_numpy(np.stack(rows))

    @cached_property
    def digest(self) -> str:
        """The sha256 of W."""
        return hashlib.sha256(self.W.numpy().data).hexdigest()

    def __call__(self, features: Tensor) -> Tensor:
        """Of float64 [B, d] float64 [B, M], on the same device.

        Cost: B d M multiplications.
        """
        if self._moved is None or self._moved.device != features.device:
            self._moved = self.W.to(features.device)
        return (features @ self._moved).relu()


def _near_normal(words: np.ndarray) -> np.ndarray:
    """Of three words of 64 bits one number: their twelve parts, summed and centred."""
    total = words.view(np.uint16).reshape(-1, _TERMS).sum(1, dtype=np.int64)
    return (total - _TERMS * 65535 / 2) / 65536
