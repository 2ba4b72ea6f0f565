"""The networks of the experiments on small images."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import isqrt, prod
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.errors import UnknownNameError

NetName = Literal["mlp", "convolution", "attention"]


def build_net(
    name: NetName, input_shape: Sequence[int], outputs: int, *, hidden: Sequence[int], slope: float = 0.0, seed: int = 0
) -> nn.Module:
    """A network by name; `hidden` and `slope` are those of an mlp, the others have their own sizes.

    Args:
        name: "mlp", "convolution" or "attention".
        input_shape: of one example.
        outputs: output columns.
        hidden: units of each hidden layer.
        slope: of the leaky ReLU for negative inputs.
        seed: of the weights; the global random state is left alone.

    Raises:
        UnknownNameError: there is no network of this name.
    """
    side = isqrt(prod(input_shape))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        match name:
            case "mlp":
                return mlp(prod(input_shape), hidden, outputs, slope=slope, seed=seed)
            case "convolution":
                return convolution_net(side, outputs)
            case "attention":
                return AttentionNet(side, outputs)
            case _:
                raise UnknownNameError("net", str(name), get_args(NetName))


def convolution_net(side: int, outputs: int, *, batch_norm: bool = False) -> nn.Sequential:
    """Two 3x3 convolutions of stride 2 (16 and 32 channels) and a hidden layer of 128, for square gray images.

    Args:
        side: of the images, in pixels.
        outputs: output columns.
        batch_norm: whether each convolution is followed by one.
    """
    last = -(-side // 4)
    norms = [nn.BatchNorm2d(16)], [nn.BatchNorm2d(32)]
    return nn.Sequential(
        nn.Flatten(),
        nn.Unflatten(1, (1, side, side)),
        nn.Conv2d(1, 16, 3, stride=2, padding=1),
        *(norms[0] if batch_norm else ()),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        *(norms[1] if batch_norm else ()),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * last * last, 128),
        nn.ReLU(),
        nn.Linear(128, outputs),
    )


class AttentionNet(nn.Module):
    """Two pre-norm transformer blocks over the rows of a square gray image, or over words; mean over positions.

    Args:
        side: rows of an image, or words of a text.
        outputs: output columns.
        vocabulary: of the words, which are given by their numbers; 0: the inputs are images.
        width: of the hidden states.
        heads: of the attention.
        num_blocks: one after the other.
    """

    def __init__(
        self, side: int, outputs: int, *, vocabulary: int = 0, width: int = 64, heads: int = 4, num_blocks: int = 2
    ) -> None:
        super().__init__()
        self.side, self.vocabulary = side, vocabulary
        self.embed = nn.Embedding(vocabulary, width) if vocabulary else nn.Linear(side, width)
        self.positions = nn.Parameter(0.02 * torch.randn(side, width))
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(num_blocks))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """Images [B, ...] of side x side numbers, or texts [B, side] of word numbers -> logits [B, outputs]."""
        rows = inputs if self.vocabulary else inputs.reshape(-1, self.side, self.side)
        hidden = self.embed(rows) + self.positions
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(self.norm(hidden).mean(1))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, hidden: Tensor) -> Tensor:
        query, key, value = self.qkv(self.norm1(hidden)).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        mixed = F.scaled_dot_product_attention(*(part.transpose(1, 2) for part in (query, key, value)))
        hidden = hidden + self.out(mixed.transpose(1, 2).flatten(2))
        return hidden + self.mlp(self.norm2(hidden))


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
