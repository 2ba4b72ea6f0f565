"""The network of the experiments on small images."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn


def mlp(inputs: int, hidden: Sequence[int], outputs: int, *, slope: float = 0.0, seed: int = 0) -> nn.Sequential:
    """A multilayer perceptron over flattened inputs.

    Weights are normal with standard deviation 2/sqrt(fan_in), cut at two of them; biases are zero (Kutalev 2020).

    Args:
        inputs: numbers in one example.
        hidden: units of each hidden layer.
        outputs: output columns.
        slope: of the leaky ReLU for negative inputs; 0 is ReLU.
        seed: of the weights; the global random state is left alone.

    Returns:
        A module from [B, ...] to logits [B, outputs].
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = [inputs, *hidden, outputs]
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise(sizes):
        linear = nn.Linear(fan_in, fan_out, device="meta").to_empty(device="cpu")  # draws no random numbers
        std = 2 / fan_in**0.5
        nn.init.trunc_normal_(linear.weight, std=std, a=-2 * std, b=2 * std, generator=generator)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.LeakyReLU(slope) if slope else nn.ReLU()]
    return nn.Sequential(*layers[:-1])
