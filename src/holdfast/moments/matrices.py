"""Linear and convolution layers as products with a matrix: inputs, and gradients at outputs, as rows of positions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.curvature.form import LayerForm
from holdfast.moments.gradients import accumulator_dtype
from holdfast.moments.layers import rows_of
from holdfast.moments.layout import Layout
from holdfast.tensors import class_of, trainable_parameters, unwrap

ConvolutionLayer = nn.Conv1d | nn.Conv2d | nn.Conv3d
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Layer(LayerForm):
    """A layer whose weight, and bias where it is trained, form one block.

    Attributes:
        module: a plain `nn.Linear`, a transformers `Conv1D`, or a plain convolution with one group.
        weight: the weight's name.
        shape, bias, inputs_first: as `LayerForm` says; a frozen bias is none.
    """

    module: nn.Module
    weight: str


def layers_of(model: nn.Module) -> list[Layer]:
    """The plain layers whose trained parameters belong to them alone."""
    names = {id(parameter): name for name, parameter in trainable_parameters(model).items()}
    homes: dict[int, int] = {}
    for module in unwrap(model).modules():
        for parameter in module._parameters.values():
            homes[id(parameter)] = homes.get(id(parameter), 0) + 1
    layers = []
    for module in unwrap(model).modules():
        kind = class_of(module)
        plain = kind is nn.Linear or (kind in _CONVOLUTIONS and getattr(module, "groups", 0) == 1)
        own = dict(module._parameters.items())  # no dict in a scripted module
        weight, bias = own.get("weight"), own.get("bias")
        if weight is None or id(weight) not in names or not (plain or _is_transposed(module)):
            continue
        bias_name = names.get(id(bias))
        if homes[id(weight)] == 1 and (bias_name is None or homes[id(bias)] == 1):
            shape = tuple(weight.shape)
            found = Layer(module, names[id(weight)], shape=shape, bias=bias_name, inputs_first=_is_transposed(module))
            layers.append(found)
    return layers


def is_wide(layer: Layer, max_size: int | None) -> bool:
    """Whether a side of its matrix is longer."""
    return max_size is not None and max(layer.matrix_shape) > max_size


def inputs_of(layer: Layer, x: Tensor, *, chunk_bytes: int) -> Iterator[Tensor]:
    """The inputs [rows, in (+1)] of one call, examples and positions in one axis; for images in chunks."""
    if isinstance(layer.module, ConvolutionLayer):
        for some in _pieces(layer, _with_examples(layer, x).unsqueeze(1), chunk_bytes):
            yield some.flatten(0, 1)
    else:
        yield _with_one(_wide(x.detach()).reshape(-1, x.shape[-1]), layer.bias)


def inputs_by_example(
    layer: Layer, x: Tensor, layout: Layout | None, *, size: int, chunk_bytes: int
) -> Iterator[Tensor]:
    """The inputs [b, T, in (+1)] of one call for B = size examples, for images in chunks of examples.

    Args:
        layer: which was called.
        x: with what.
        layout: where the examples are in x; None where there is but one.
        size: B.
        chunk_bytes: bound on the patches of a chunk.
    """
    x = _apart(_with_examples(layer, x), layout, size)
    if isinstance(layer.module, ConvolutionLayer):
        yield from _pieces(layer, x, chunk_bytes)
    else:
        yield _with_one(_wide(x.detach()).reshape(size, -1, x.shape[-1]), layer.bias)


def gradients_of(layer: Layer, g: Tensor) -> Tensor:
    """[rows, out]: gradients at the outputs, in the order of `inputs_of`."""
    if not isinstance(layer.module, ConvolutionLayer):
        g = rows_of(g)
        return _wide(g).reshape(-1, g.shape[-1])
    return _wide(_with_examples(layer, g)).flatten(2).transpose(1, 2).flatten(0, 1)


def gradients_by_example(layer: Layer, g: Tensor, layout: Layout | None, *, size: int) -> Tensor:
    """[B, T, out]: gradients at the outputs for B = size examples, in the order of `inputs_by_example`."""
    g = _apart(_with_examples(layer, rows_of(g)), layout, size)
    if isinstance(layer.module, ConvolutionLayer):
        g = g.movedim(2, -1)
    return _wide(g).reshape(size, -1, g.shape[-1])


def patches(x: Tensor, module: ConvolutionLayer) -> Tensor:
    """What a convolution sees under each output pixel: [B, T, channels * kernel], in the order of the flattened weight.

    Args:
        x: [B, channels, *size].
        module: its kernel, stride, dilation, padding and padding mode.
    """
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = F.pad(x, module._reversed_padding_repeated_twice, mode=mode)
    for axis, (size, stride, dilation) in enumerate(zip(module.kernel_size, module.stride, module.dilation), start=2):
        x = x.unfold(axis, dilation * (size - 1) + 1, stride)[..., ::dilation]
    num = len(module.kernel_size)
    places = x.movedim(1, num + 1)  # [B, *positions, channels, *kernel]
    return places.reshape(len(x), math.prod(places.shape[1 : num + 1]), -1)


def _is_transposed(module: nn.Module) -> bool:
    """Whether it is the `Conv1D` of transformers, which the GPT-2 family has in place of `nn.Linear`."""
    kind = class_of(module)
    return f"{kind.__module__}.{kind.__qualname__}" == "transformers.pytorch_utils.Conv1D"


def _pieces(layer: Layer, x: Tensor, chunk_bytes: int) -> Iterator[Tensor]:
    """Patches [b, T, in (+1)] of images [B, n, channels, *size], n images to an example."""
    assert isinstance(layer.module, ConvolutionLayer)
    num_bytes = math.prod(layer.shape[1:]) * x.shape[1] * math.prod(x.shape[3:]) * 8
    for some in x.detach().split(max(1, chunk_bytes // max(num_bytes, 1))):
        found = patches(_wide(some).flatten(0, 1), layer.module)
        yield _with_one(found.reshape(len(some), -1, found.shape[-1]), layer.bias)


def _with_examples(layer: Layer, tensor: Tensor) -> Tensor:
    """An image without an axis for the examples with one, anything else as it is."""
    alone = isinstance(layer.module, ConvolutionLayer) and tensor.ndim < len(layer.shape)
    return tensor.unsqueeze(0) if alone else tensor


def _apart(tensor: Tensor, layout: Layout | None, size: int) -> Tensor:
    """[B, ...]: the examples on an axis of their own, the first; without a layout there is but one example."""
    if size == 1:
        return tensor.unsqueeze(0)
    assert layout is not None
    return layout.split(tensor, size)


def _with_one(a: Tensor, bias: str | None) -> Tensor:
    return a if bias is None else F.pad(a, (0, 1), value=1.0)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(accumulator_dtype(tensor))
