"""The 1,797 handwritten digits of the UCI set that ship inside the package: 8 x 8 pixels, no download."""

from __future__ import annotations

from importlib.resources import as_file, files

import torch
from torch import Tensor

from holdfast.lab.streams.examples import Examples
from holdfast.lab.streams.idx import read_idx
from holdfast.lab.streams.stream import Task

_HELD_OUT = 30
"""Of each class, for validation, and as many for the test."""


def digits() -> Task:
    """The digits 0..9 as one task.

    Inputs are float32 [N, 1, 8, 8] in 0..1 (pixels over 16), targets int64 [N]. Split once and for all, without
    randomness: 30 of each class to validate and 30 to test, spread evenly over the file, whose neighbours are often of
    one writer; 1,197 / 300 / 300 in all.

    Source: Alpaydin & Kaynak 1998, doi.org/10.24432/C50P49; see data/ORIGIN.md of the package.
    """
    images, labels = _read("digits-images-idx3-ubyte.gz"), _read("digits-labels-idx1-ubyte.gz")
    inputs, targets = images.float().div(16).unsqueeze(1), labels.long()
    part = torch.zeros_like(targets)  # 0: train, 1: validation, 2: test
    for label in range(10):
        places = (targets == label).nonzero().squeeze(1)
        held_out = places[torch.arange(2 * _HELD_OUT) * len(places) // (2 * _HELD_OUT)]
        part[held_out[0::2]] = 1
        part[held_out[1::2]] = 2
    train, validation, test = (Examples(inputs[part == k], targets[part == k]) for k in range(3))
    return Task("digits", train, validation, test, tuple(range(10)))


def _read(name: str) -> Tensor:
    with as_file(files("holdfast.lab") / "data" / name) as path:
        return read_idx(path)
