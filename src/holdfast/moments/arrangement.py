"""Functions that arrange rows by what the data say, from which on no layout can be taken for granted.

Where every function of a forward pass is among `PLAIN_FUNCTIONS`, the places of the examples depend on shapes alone:
what was proved on one batch holds for another. A function of `ALONG` works along certain axes of its operands, and
keeps the examples where they are if theirs is another axis. A function of `CHOICES` tells Python a number, which may
choose a branch or a length. Every other function may put the rows of the examples anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Along:
    """An operand of a function, and the axes of it along which the function works.

    Attributes:
        tensor: the operand.
        axes: counted from the first.
        picks: whether values of the data decide how many entries are left, as with a mask.
        aligned: an index of the first axis, which leaves the examples in place if it counts them: 0, 1, ..., B - 1.
    """

    tensor: Tensor
    axes: tuple[int, ...]
    picks: bool = False
    aligned: Tensor | None = None

    def counts(self, size: int) -> bool:
        """Whether the index of the first axis only counts the examples."""
        index = self.aligned
        if index is None or index.ndim == 0 or index.shape[0] != size or index.numel() != size:
            return False
        return torch.equal(index.flatten(), torch.arange(size, dtype=index.dtype, device=index.device))


AxisRule = Callable[..., list[Along] | None]
"""From the arguments of a function to what it works along; None where that cannot be told."""


def _axes(tensor: Tensor, axis: Any) -> tuple[int, ...]:
    axes = axis if isinstance(axis, tuple | list) else (axis,)
    return tuple(sorted(each % tensor.ndim for each in axes)) if tensor.ndim else ()


def _reduction(input: Tensor, dim: Any = None, *_: Any, **options: Any) -> list[Along] | None:
    """Sums and the like; without an axis, or of another tensor elementwise, nothing is arranged."""
    dim = options.get("axis", dim)
    if dim is None or isinstance(dim, Tensor | torch.dtype) or (isinstance(dim, tuple | list) and not dim):
        return []
    return [Along(input, _axes(input, dim))]


def _norm(input: Tensor, p: Any = 2, dim: Any = None, *_: Any, **__: Any) -> list[Along] | None:
    return _reduction(input, dim)


def _by_axis(default: int | None) -> AxisRule:
    """Functions (input, dim, ...)."""

    def rule(input: Tensor, dim: Any = default, *_: Any, **__: Any) -> list[Along] | None:
        return [Along(input, _axes(input, dim))] if isinstance(dim, int) else None

    return rule


def _by_second(default: int) -> AxisRule:
    """Functions (input, k or index, dim, ...)."""

    def rule(input: Tensor, _k: Any = None, dim: Any = default, *_: Any, **__: Any) -> list[Along] | None:
        return [Along(input, _axes(input, dim))] if isinstance(dim, int) else None

    return rule


def _sort(input: Tensor, *args: Any, dim: int = -1, **_: Any) -> list[Along] | None:
    axis = next((value for value in args if isinstance(value, int) and not isinstance(value, bool)), dim)
    return [Along(input, _axes(input, axis))]


def _product(input: Tensor, other: Tensor, *_: Any, **__: Any) -> list[Along] | None:
    """Matrix products sum over the last axis of one and the last but one of the other."""
    found = [Along(input, _axes(input, -1))]
    return [*found, Along(other, _axes(other, -2 if other.ndim > 1 else -1))]


def _product_added(_: Tensor, a: Tensor, b: Tensor, **__: Any) -> list[Along] | None:
    return _product(a, b)


def _einsum(equation: Any, *operands: Any) -> list[Along] | None:
    tensors = list(operands[0]) if len(operands) == 1 and isinstance(operands[0], tuple | list) else list(operands)
    if not isinstance(equation, str) or "." in equation or "->" not in equation:
        return None
    left, right = equation.replace(" ", "").split("->")
    pairs = zip(left.split(","), tensors)
    return [
        Along(tensor, tuple(axis for axis, name in enumerate(names) if name not in right)) for names, tensor in pairs
    ]


def _embedding(input: Tensor, weight: Tensor, *_: Any, **__: Any) -> list[Along] | None:
    return [Along(weight, (0,))]


def _is_index(value: Any) -> bool:
    return isinstance(value, Tensor | list)


def _item(input: Tensor, index: Any) -> list[Along] | None:
    items = index if isinstance(index, tuple) else (index,)
    if any(isinstance(part, slice) and _measured(part) for part in items):
        return None
    indices = [item for item in items if _is_index(item)]
    if not indices:
        return []
    width = sum(_width(item) for item in items)
    axes: list[int] = []
    axis, picks = 0, False
    for item in items:
        if item is Ellipsis:
            axis += input.ndim - width
            continue
        if isinstance(item, Tensor) and item.dtype in (torch.bool, torch.uint8):
            picks = True
        if _is_index(item) or (isinstance(item, int) and not isinstance(item, bool)):
            axes += range(axis, axis + _width(item))  # an index of one number moves no axis, but takes one away
        axis += _width(item)
    first = items[0]
    largest = max((item.ndim for item in indices if isinstance(item, Tensor)), default=0)
    counts = isinstance(first, Tensor) and not picks and first.ndim == largest
    return [Along(input, tuple(axes), picks, first if counts else None)]


def _measured(part: slice) -> bool:
    return any(isinstance(end, Tensor) for end in (part.start, part.stop, part.step))


def _width(item: Any) -> int:
    """Axes of the indexed tensor that an item stands for."""
    if item is None or item is Ellipsis or isinstance(item, bool):
        return 0
    return item.ndim if isinstance(item, Tensor) and item.dtype in (torch.bool, torch.uint8) else 1


def _set_item(input: Tensor, index: Any, value: Any) -> list[Along] | None:
    if not isinstance(value, Tensor) or value.numel() == 1:
        items = index if isinstance(index, tuple) else (index,)
        return None if any(isinstance(part, slice) and _measured(part) for part in items) else []
    return _item(input, index)


def _where(*args: Any, **_: Any) -> list[Along] | None:
    return [] if len(args) == 3 else None


def _repeated(input: Tensor, repeats: Any = None, *_: Any, **__: Any) -> list[Along] | None:
    return [] if isinstance(repeats, int) else None


def _made(*args: Any, **kwargs: Any) -> list[Along] | None:
    """New tensors and new shapes, whose sizes may themselves be tensors."""
    return None if any(isinstance(value, Tensor) for value in (*args, *kwargs.values())) else []


def _shaped(input: Tensor, *args: Any, **kwargs: Any) -> list[Along] | None:
    flat = [part for value in args for part in (value if isinstance(value, tuple | list) else (value,))]
    return _made(*flat, **kwargs)


def _functions(names: str) -> Iterable[Any]:
    """What torch calls so: functions, methods, both in place, and operators."""
    places = (torch, F, Tensor, torch.special, torch.linalg)
    for name in names.split():
        for form in (name, f"{name}_", f"__{name}__", f"__r{name}__", f"__i{name}__"):
            yield from (getattr(place, form) for place in places if callable(getattr(place, form, None)))


def _table(rules: dict[str, AxisRule]) -> dict[Any, AxisRule]:
    return {function: rule for names, rule in rules.items() for function in _functions(names)}


ALONG: dict[Any, AxisRule] = _table(
    {
        "sum mean prod amax amin max min nansum nanmean logsumexp var std all any count_nonzero argmax argmin "
        "var_mean std_mean aminmax": _reduction,
        "norm vector_norm": _norm,
        "cumsum cumprod logcumsumexp cummax cummin index_select flip index_add index_copy index_fill scatter "
        "scatter_add scatter_reduce gather": _by_axis(None),
        "take_along_dim topk kthvalue": _by_second(-1),
        "sort argsort msort median nanmedian": _sort,
        "matmul mm bmm": _product,
        "addmm baddbmm": _product_added,
        "einsum": _einsum,
        "embedding": _embedding,
        "getitem": _item,
        "setitem": _set_item,
        "where": _where,
        "repeat_interleave": _repeated,
        "arange zeros ones full empty linspace rand randn eye": _made,
        "view reshape expand repeat narrow split chunk roll unflatten tile tensor_split unfold": _shaped,
    }
)
ALONG |= dict.fromkeys(
    (Tensor.new_zeros, Tensor.new_ones, Tensor.new_full, Tensor.new_empty), lambda _, *a, **k: _made(*a, **k)
)

_ARITHMETIC = """
add sub subtract rsub mul multiply div divide true_divide truediv floordiv floor_divide fmod remainder mod pow abs
absolute neg negative pos exp exp2 expm1 log log2 log10 log1p sqrt rsqrt square reciprocal sign sgn floor ceil round
trunc frac clamp clamp_min clamp_max clip sin cos tan asin acos atan atan2 sinh cosh tanh asinh acosh atanh erf erfc
erfinv lgamma digamma sigmoid logit relu lerp addcmul addcdiv hypot sinc nan_to_num maximum minimum fmax fmin
logaddexp logaddexp2 xlogy heaviside softplus i0 expit rad2deg deg2rad ldexp copysign softmax log_softmax logsigmoid
"""
_LOGIC = """
eq ne lt le gt ge and or xor invert not logical_and logical_or logical_not logical_xor bitwise_and bitwise_or
bitwise_not bitwise_xor isnan isinf isfinite isclose masked_fill lshift rshift isneginf isposinf isin
"""
_ACTIVATIONS = """
gelu silu mish elu selu celu leaky_relu relu6 prelu rrelu hardtanh hardsigmoid hardswish softsign tanhshrink
softshrink hardshrink threshold glu softmin dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout
feature_alpha_dropout normalize cosine_similarity pairwise_distance one_hot scaled_dot_product_attention
multi_head_attention_forward
"""
_LAYERS = """
linear bilinear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d layer_norm rms_norm group_norm
batch_norm instance_norm local_response_norm avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d
adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
adaptive_max_pool3d lp_pool1d lp_pool2d interpolate upsample pixel_shuffle pixel_unshuffle channel_shuffle grid_sample
affine_grid pad fold constant_pad_nd lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell
boolean_dispatch _max_pool1d _max_pool2d _max_pool3d max_pool1d_with_indices max_pool2d_with_indices
max_pool3d_with_indices
"""
_SHAPES = """
view_as reshape_as expand_as flatten squeeze unsqueeze transpose swapaxes swapdims t permute movedim moveaxis
contiguous cat concat concatenate stack hstack vstack dstack unbind iter select diagonal diag_embed tril triu meshgrid
broadcast_to broadcast_tensors split_with_sizes real imag view_as_real view_as_complex adjoint ravel outer rot90 numel
as_tensor tensor scalar_tensor
"""
_MAKING = """
clone detach to type type_as float double half bfloat16 int long short bool byte char cpu cuda copy zero fill
zeros_like ones_like full_like empty_like rand_like randn_like requires_grad retain_grad register_hook cross_entropy
nll_loss mse_loss l1_loss smooth_l1_loss huber_loss binary_cross_entropy binary_cross_entropy_with_logits kl_div
"""
_READING = """
size dim ndimension nelement len stride storage_offset is_contiguous is_floating_point is_complex element_size
data_ptr get_device is_tensor is_signed hash repr str format deepcopy result_type promote_types can_cast finfo
is_inference is_same_size untyped_storage is_shared is_pinned has_names __torch_function__ _is_view
"""
_MODES = (torch.is_grad_enabled, torch._C._set_grad_enabled, torch.is_autocast_enabled)

CHOICES: frozenset[Any] = frozenset(
    {
        *(getattr(Tensor, f"__{name}__") for name in ("bool", "int", "float", "index", "contains")),
        *(Tensor.item, torch.equal, Tensor.equal, torch.allclose, Tensor.allclose),
        *(torch.is_nonzero, Tensor.is_nonzero),
    }
)
"""Functions that tell Python a number of the data."""

SELECTIONS: frozenset[Any] = frozenset(
    getattr(place, name) for place in (torch, Tensor) for name in ("nonzero", "argwhere", "masked_select")
)
"""Functions whose results have as many entries as the data say."""

PLAIN_FUNCTIONS: frozenset[Any] = (
    frozenset(
        {
            *(function for names in (_ARITHMETIC, _LOGIC, _ACTIVATIONS, _LAYERS) for function in _functions(names)),
            *(function for names in (_SHAPES, _MAKING, _READING) for function in _functions(names)),
            *(found.__get__ for found in vars(torch._C.TensorBase).values() if hasattr(found, "__get__")),
            *(found.__get__ for found in vars(Tensor).values() if isinstance(found, property)),
            Tensor.requires_grad.__set__,  # pyright: ignore[reportAttributeAccessIssue]
            *_MODES,
        }
    )
    - set(ALONG)
    - CHOICES
)
"""Functions whose results have their entries where shapes say, whatever the data."""


_ORDERS = "transpose swapaxes swapdims t permute movedim moveaxis adjoint"

_TURNS: frozenset[Any] = frozenset(getattr(Tensor, name).__get__ for name in ("T", "mT", "H", "mH"))
"""The properties that give axes another order."""

REORDERS: frozenset[Any] = _TURNS | frozenset((*_functions(_ORDERS), torch.einsum, torch.stack))
"""Functions of `PLAIN_FUNCTIONS` and `ALONG` that put axes in another order."""


def order_of(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Which order one of `REORDERS` puts axes in: equal for two calls that do the same."""
    if function is torch.einsum:
        return str(args[0]) if args else ""
    turned = getattr(function.__self__, "__name__", "") if function in _TURNS else function.__name__
    axes = sorted((key, value) for key, value in kwargs.items() if key not in ("tensors", "input", "out"))
    return f"{turned}{args[1:]}{axes}"


_OPERATIONS = """
index index_select gather nonzero masked_select take take_along_dim scatter scatter_add index_add index_put
_index_put_impl_ index_copy sort argsort topk repeat_interleave _unique2 unique_dim unique_consecutive bincount
masked_scatter _pack_padded_sequence _local_scalar_dense
"""
HIDDEN: frozenset[str] = frozenset(_OPERATIONS.split())
"""Operations behind functions that arrange rows or tell numbers, for what runs where no function is seen."""


def worked_along(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Along] | None:
    """What a function that is not plain works along; None where it may put rows anywhere."""
    rule = ALONG.get(function)
    try:
        found = None if rule is None else rule(*args, **kwargs)
    except (TypeError, ZeroDivisionError):  # a form of the call that is not known
        return None
    if found is not None and any(operand.tensor.layout != torch.strided for operand in found):
        return None  # sparse: what it holds is not where its shape says
    return found
