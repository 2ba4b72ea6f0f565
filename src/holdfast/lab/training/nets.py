"""The networks that have a name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isqrt, prod
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.errors import OptionError
from holdfast.files.typed import Within
from holdfast.lab.registry import Entry, Registry, check_settings, chosen

NETS: Registry[Entry] = Registry("net", Entry)
"""Networks by name; `make(input_shape, outputs, options)` gives a module from inputs [B, *input_shape] to [B, outputs].

It draws its first weights from torch's global random state, which a run seeds.
"""

register_net = NETS.register


def build_net(name: str, input_shape: Sequence[int], outputs: int, *, seed: int = 0, **settings: Any) -> nn.Module:
    """A network by name.

    Args:
        name: one of `NETS`, or "module:function" of (input_shape, outputs).
        input_shape: of one example.
        outputs: output columns.
        seed: of the weights; the global random state is left alone.
        settings: values of its options.

    Raises:
        UnknownNameError: there is no network, or option of it, of this name.
        OptionError: it cannot be made for these inputs, or what was made is no module.
    """
    check_settings(NETS.named(name), settings, kind="net")
    choice = chosen(NETS.named(name), settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = choice(tuple(input_shape), outputs)
    if not isinstance(net, nn.Module):
        raise OptionError(f"net {name}: made a {type(net).__name__}; expected a torch.nn.Module.")
    return net


@dataclass(frozen=True, kw_only=True)
class PerceptronOptions:
    """Of a multilayer perceptron.

    Attributes:
        hidden: units of each hidden layer of an mlp.
        slope: of the leaky ReLU of an mlp for negative inputs; 0 is ReLU.
    """

    hidden: tuple[int, ...] = (300, 150)
    slope: Annotated[float, Within(0, 1)] = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.hidden, list):
            object.__setattr__(self, "hidden", tuple(self.hidden))
        if (
            not isinstance(self.hidden, tuple)
            or not self.hidden
            or not all(isinstance(units, int) and units > 0 for units in self.hidden)
        ):
            raise OptionError(
                f"hidden is {self.hidden!r}; expected the units of each hidden layer, such as (300, 150)."
            )


@register_net("mlp", label="MLP", summary="a multilayer perceptron", options=PerceptronOptions)
def build_mlp(input_shape: tuple[int, ...], outputs: int, options: PerceptronOptions) -> nn.Module:
    """A perceptron over all numbers of an example."""
    return mlp(prod(input_shape), options.hidden, outputs, slope=options.slope, seed=torch.initial_seed())


@dataclass(frozen=True, kw_only=True)
class ConvolutionOptions:
    """Of a convolutional network.

    Attributes:
        batch_norm: whether each convolution is followed by one.
    """

    batch_norm: bool = False


@register_net("convolution", label="ConvNet", summary="two convolutions and a hidden layer", options=ConvolutionOptions)
def build_convolution(input_shape: tuple[int, ...], outputs: int, options: ConvolutionOptions) -> nn.Module:
    """A small convolutional network."""
    channels, side = picture_shape(input_shape, "convolution")
    return convolution_net(side, outputs, channels=channels, batch_norm=options.batch_norm)


@register_net("attention", label="attention", summary="two transformer blocks over the rows of an image")
def build_attention(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """A small transformer."""
    channels, side = picture_shape(input_shape, "attention")
    return AttentionNet(side, outputs, channels=channels)


def picture_shape(shape: tuple[int, ...], net: str) -> tuple[int, int]:
    """Channels and side of square images, which may be given as a row of gray pixels."""
    channels = shape[0] if len(shape) == 3 else 1
    side = isqrt(prod(shape) // channels)
    if channels * side * side != prod(shape) or (len(shape) > 1 and shape[-1] != side):
        raise OptionError(f"net {net}: the inputs are of shape {list(shape)}; expected square images. Use net mlp.")
    return channels, side


def square_pictures(shape: tuple[int, ...], net: str) -> tuple[int, int]:
    """Channels and side.

    Raises:
        OptionError: the inputs are something else.
    """
    if len(shape) != 3 or shape[1] != shape[2]:
        raise OptionError(
            f"net {net}: inputs of shape {list(shape)}; expected square pictures [C, H, H]. Make them so by --side, or "
            "use net mlp."
        )
    return shape[0], shape[1]


def convolution_net(side: int, outputs: int, *, channels: int = 1, batch_norm: bool = False) -> nn.Sequential:
    """Two 3x3 convolutions of stride 2 (16 and 32 channels) and a hidden layer of 128, for square images.

    Args:
        side: of the images, in pixels.
        outputs: output columns.
        channels: of the images.
        batch_norm: whether each convolution is followed by one.
    """
    last = -(-side // 4)
    norms = [nn.BatchNorm2d(16)], [nn.BatchNorm2d(32)]
    return nn.Sequential(
        nn.Flatten(),
        nn.Unflatten(1, (channels, side, side)),
        nn.Conv2d(channels, 16, 3, stride=2, padding=1),
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
    """Two pre-norm transformer blocks over the rows of a square image, or over words; mean over positions.

    Args:
        side: rows of an image, or words of a text.
        outputs: output columns.
        channels: of the images; a row has the pixels of all.
        vocabulary: of the words, which are given by their numbers; 0: the inputs are images.
        width: of the hidden states.
        heads: of the attention.
        num_blocks: one after the other.
    """

    def __init__(
        self,
        side: int,
        outputs: int,
        *,
        channels: int = 1,
        vocabulary: int = 0,
        width: int = 64,
        heads: int = 4,
        num_blocks: int = 2,
    ) -> None:
        super().__init__()
        self.side, self.channels, self.vocabulary = side, channels, vocabulary
        self.embed = nn.Embedding(vocabulary, width) if vocabulary else nn.Linear(channels * side, width)
        self.positions = nn.Parameter(0.02 * torch.randn(side, width))
        self.blocks = nn.ModuleList(TransformerBlock(width, heads) for _ in range(num_blocks))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """Images [B, ...] of channels x side x side numbers, or texts [B, side] of word numbers -> [B, outputs]."""
        rows = inputs if self.vocabulary else self._rows(inputs)
        hidden = self.embed(rows) + self.positions
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(self.norm(hidden).mean(1))

    def _rows(self, images: Tensor) -> Tensor:
        """[B, side, channels * side]."""
        if self.channels == 1:
            return images.reshape(-1, self.side, self.side)
        return images.reshape(-1, self.channels, self.side, self.side).transpose(1, 2).flatten(2)


class TransformerBlock(nn.Module):
    """Pre-norm attention, then an MLP twice as wide.

    Args:
        width: of the hidden states, a multiple of `heads`.
        heads: of the attention.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, positions, width] -> the same shape."""
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
