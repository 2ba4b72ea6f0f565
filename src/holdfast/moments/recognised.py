"""Which torch functions are which operations on parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.moments.kernels.convolution import Geometry
from holdfast.moments.operations import Affine, BatchNorm, Convolution, Embedding, Linear, Operation

Ints = int | tuple[int, ...]


class Seen(Protocol):
    """A forward pass that is looked at: it knows which tensors are parameters, and computes what they are used for."""

    def use(self, operation: Operation, x: Tensor, *weights: Tensor | None) -> Tensor:
        """The result of an operation of which at least one weight is tracked."""
        ...

    def is_tracked(self, tensor: Tensor) -> bool:
        """Whether a tensor is known to be a parameter or a part of one."""
        ...

    def view(self, tensor: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """A view of a tracked tensor, tracked as well."""
        ...


def _linear(seen: Seen, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    return seen.use(Linear(), input, weight, bias)


def _matmul(seen: Seen, input: Tensor, other: Tensor, **options: Any) -> Any:
    if options or input.ndim < 2 or other.ndim < 2:
        return NotImplemented
    if seen.is_tracked(other) and other.ndim == 2:
        return seen.use(Linear(), input, seen.view(other, Tensor.t), None)
    if seen.is_tracked(input) and input.ndim == 2:
        return seen.use(Linear(), other.mT, input, None).mT
    return NotImplemented


def _addmm(seen: Seen, input: Tensor, mat1: Tensor, mat2: Tensor, **options: Any) -> Any:
    if options or input.ndim != 1 or not seen.is_tracked(mat2):
        return NotImplemented
    return seen.use(Linear(), mat1, seen.view(mat2, Tensor.t), input)


def _convolution(axes: int, transposed: bool) -> Callable[..., Any]:
    def tuples(value: Ints) -> tuple[int, ...]:
        return (value,) * axes if isinstance(value, int) else tuple(value) * (axes if len(value) == 1 else 1)

    def forward(
        seen: Seen,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Ints = 1,
        padding: Ints | str = 0,
        dilation: Ints = 1,
        groups: int = 1,
    ) -> Any:
        if input.ndim != axes + 2:
            return NotImplemented
        if isinstance(padding, str):
            widths = [d * (k - 1) if padding == "same" else 0 for k, d in zip(weight.shape[2:], tuples(dilation))]
            if any(width % 2 for width in widths):  # torch pads the end of the axis by one more
                input = F.pad(input, [n for width in reversed(widths) for n in (0, width % 2)])
            padding = tuple(width // 2 for width in widths)
        options = (tuples(stride), tuples(padding), tuples(dilation), False, (0,) * axes, groups)
        return seen.use(Convolution(Geometry(*options)), input, weight, bias)

    def backward(
        seen: Seen,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Ints = 1,
        padding: Ints = 0,
        output_padding: Ints = 0,
        groups: int = 1,
        dilation: Ints = 1,
    ) -> Any:
        if input.ndim != axes + 2:
            return NotImplemented
        options = (tuples(stride), tuples(padding), tuples(dilation), True, tuples(output_padding), groups)
        return seen.use(Convolution(Geometry(*options)), input, weight, bias)

    return backward if transposed else forward


def _embedding(
    seen: Seen,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Any:
    if scale_grad_by_freq:
        return NotImplemented
    if max_norm is not None:
        torch.embedding_renorm_(weight.detach(), input.contiguous(), max_norm, norm_type)
    padding = -1 if padding_idx is None else padding_idx % len(weight)
    return seen.use(Embedding(padding), input, weight)


def _layer_norm(
    seen: Seen,
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:
    return seen.use(Affine(), F.layer_norm(input, normalized_shape, None, None, eps), weight, bias)


def _rms_norm(
    seen: Seen, input: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None
) -> Any:
    return seen.use(Affine(), F.rms_norm(input, normalized_shape, None, eps), weight, None)


def _group_norm(
    seen: Seen,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:
    return seen.use(Affine(input.ndim - 2), F.group_norm(input, num_groups, None, None, eps), weight, bias)


def _batch_norm(
    seen: Seen,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    if training or running_mean is None or running_var is None:
        return NotImplemented
    return seen.use(BatchNorm(running_mean, running_var, eps), input, weight, bias)


def _instance_norm(
    seen: Seen,
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    normal = F.instance_norm(input, running_mean, running_var, None, None, use_input_stats, momentum, eps)
    return seen.use(Affine(input.ndim - 2), normal, weight, bias)


def _add(seen: Seen, input: Any, other: Any, **options: Any) -> Any:
    if options or not _tensors(input, other):
        return NotImplemented
    return _either(seen, input, other, lambda x, shift: seen.use(Affine(), x, None, shift))


def _sub(seen: Seen, input: Any, other: Any, **options: Any) -> Any:
    if options or not _tensors(input, other):
        return NotImplemented
    if seen.is_tracked(other):
        return seen.use(Affine(sign=-1), input, None, other)
    return seen.use(Affine(), -other, None, input)


def _mul(seen: Seen, input: Any, other: Any, **options: Any) -> Any:
    if options or not _tensors(input, other):
        return NotImplemented
    return _either(seen, input, other, lambda x, scale: seen.use(Affine(), x, scale, None))


def _either(seen: Seen, a: Tensor, b: Tensor, use: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """A commutative operation, with the tracked one of two tensors as the weight, or each of both in turn."""
    found = use(b, a) if seen.is_tracked(a) else None
    return use(a, b) if found is None or seen.is_tracked(b) else found


def _expand(seen: Seen, input: Tensor, *size: Any) -> Any:
    """The parameter itself for every example, as of a class token: nothing, shifted by it."""
    nothing = input.new_zeros(()).expand(input.expand(*size).shape)
    return seen.use(Affine(), nothing, None, input)


def _repeat(seen: Seen, input: Tensor, *repeats: Any) -> Any:
    numbers = tuple(repeats[0]) if len(repeats) == 1 and not isinstance(repeats[0], int) else repeats
    shape = [1] * (len(numbers) - input.ndim) + list(input.shape)
    if any(n > 1 and times > 1 for n, times in zip(shape, numbers)):
        return NotImplemented
    return _expand(seen, input, [n * times for n, times in zip(shape, numbers)])


def _tensors(*values: Any) -> bool:
    return all(isinstance(value, Tensor) and value.is_floating_point() for value in values)


HANDLERS: dict[Any, Callable[..., Any]] = {
    F.linear: _linear,
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm), _matmul),
    **dict.fromkeys((torch.addmm, Tensor.addmm), _addmm),
    **{getattr(F, f"conv{n}d"): _convolution(n, False) for n in (1, 2, 3)},
    **{getattr(F, f"conv_transpose{n}d"): _convolution(n, True) for n in (1, 2, 3)},
    F.embedding: _embedding,
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    F.group_norm: _group_norm,
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    **dict.fromkeys((torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__), _add),
    **dict.fromkeys((torch.sub, Tensor.sub, Tensor.__sub__, torch.subtract, Tensor.subtract), _sub),
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, torch.multiply), _mul),
    Tensor.expand: _expand,
    Tensor.repeat: _repeat,
}
"""From a function to what calls `Seen.use` for it, or returns NotImplemented to let it run as it is."""

COMPOSITES: frozenset[Any] = frozenset(
    {F.multi_head_attention_forward, torch.autograd.grad, torch.autograd.backward, Tensor.backward}
)
"""Python functions that consume parameters through other functions; backward passes, where they meet checkpoints."""
