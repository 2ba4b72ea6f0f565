"""What passes through the Linear and convolution layers of a model: inputs, outputs, and the activation that follows.

Functions are watched, not modules: a weight used through `F.linear`, twice, or under two names is seen each time, and
so is every other function that consumes a parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from holdfast.moments.calls import tensors_in
from holdfast.moments.graph import leaves_of
from holdfast.moments.transforms import transformed
from holdfast.tensors import trainable_parameters

CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)

_ELEMENTWISE = (
    *("relu", "leaky_relu", "relu6", "prelu", "rrelu", "threshold", "elu", "selu", "celu", "gelu", "silu", "mish"),
    *("tanh", "hardtanh", "sigmoid", "hardsigmoid", "hardswish", "logsigmoid", "softplus", "softsign"),
    *("tanhshrink", "softshrink", "hardshrink"),
)

ACTIVATIONS: frozenset[Callable[..., Tensor]] = frozenset(
    getattr(place, name + suffix)
    for place in (torch, F, Tensor)
    for name in _ELEMENTWISE
    for suffix in ("", "_")
    if hasattr(place, name + suffix)
)
"""Elementwise activation functions, in all forms that torch has; modules such as `nn.ReLU` call one of these."""

_BACKWARD = {torch.autograd.grad, torch.autograd.backward, Tensor.backward}
_NO_USE = {Tensor.detach, Tensor.requires_grad_}
_NO_USE_ATTRIBUTES = {Tensor.data, Tensor.grad}


@dataclass
class LayerUse:
    """One call of a linear function or a convolution with trainable parameters.

    Attributes:
        function: `F.linear`, `F.conv1d`, `F.conv2d` or `F.conv3d`.
        weight: its name among the trainable parameters, or None.
        bias: likewise.
        input: x, detached: [..., in] for linear, [B, channels, ...] for a convolution; of nested tensors all rows.
        kernel: the weight tensor.
        options: arguments after the bias (stride, padding, dilation, groups).
        output: z = function(x, weight, bias), detached, [..., out] or [B, out, ...].
        activation: the elementwise function that consumed z, if one did: y = activation(z).
        final: whether z is itself an output of the model. Known, as the activation, only when these are watched for.
    """

    function: Callable[..., Tensor]
    weight: str | None
    bias: str | None
    input: Tensor
    kernel: Tensor
    options: tuple[tuple[Any, ...], dict[str, Any]]
    output: Tensor
    activation: Callable[[Tensor], Tensor] | None = None
    final: bool = False

    @property
    def convolves(self) -> bool:
        """Whether this is a convolution."""
        return self.function in CONVOLUTIONS

    @property
    def groups(self) -> int:
        """Groups of the convolution: input channels over those that one output channel sees."""
        return self.input.shape[1 - self.kernel.ndim] // self.kernel.shape[1] if self.convolves else 1

    @property
    def channel_axis(self) -> int:
        """The axis of the output units, counted from the end."""
        return 1 - self.kernel.ndim if self.convolves else -1

    def apply(self, x: Tensor, kernel: Tensor) -> Tensor:
        """The same function of another input and kernel, without the bias."""
        args, kwargs = self.options
        return self.function(x, kernel, None, *args, **kwargs)


class LayerRecorder(TorchFunctionMode):
    """Records the uses of layers in one forward pass, inside `with`; `finish` then ends it.

    Args:
        model: its trainable parameters are looked for among the arguments of every function.
        record: called once for each use of a layer: at once, or with `activations` when its activation is known.
        activations: whether to look for the activation that consumes each output. Keeps a copy of inputs and outputs
            until then.
        meet: called at each use of a layer as it comes.

    Attributes:
        elsewhere: name -> names of the functions other than layers that consumed this parameter.
        seen: names of parameters that a layer consumed as its weight or bias.
        differentiates: whether the forward pass ran a backward pass, for which it needs a graph.
        paused: how many reasons there are to let functions run unseen, as what is no part of the model.
    """

    def __init__(
        self,
        model: nn.Module,
        record: Callable[[LayerUse], None],
        *,
        activations: bool,
        meet: Callable[[], None] | None = None,
    ) -> None:
        super().__init__()
        self._meet = meet
        self._names = {id(parameter): name for name, parameter in trainable_parameters(model).items()}
        self._record, self._activations = record, activations
        self._pending: dict[int, tuple[Tensor, LayerUse]] = {}
        self.elsewhere: dict[str, set[str]] = {}
        self.seen: set[str] = set()
        self.differentiates = False
        self.paused = 0

    def track(self, name: str, parameter: Tensor) -> None:
        """These are the weights of a parameter now, which have come in the course of the forward pass."""
        self._names[id(parameter)] = name

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if self.paused:
            return func(*args, **kwargs)
        if self._activations and func in ACTIVATIONS and args and id(args[0]) in self._pending:
            _, use = self._pending.pop(id(args[0]))
            more = [value.detach().clone() if isinstance(value, Tensor) else value for value in args[1:]]
            use.activation = lambda z: func(z.clone(), *more, **kwargs)
            with torch._C.DisableTorchFunction():
                self._record(use)
        result = func(*args, **kwargs)
        used = [self._names[id(value)] for value in _tensors((*args, *kwargs.values())) if id(value) in self._names]
        if func in _BACKWARD:
            self.differentiates = True
        if used and transformed():
            for name in used:
                self.elsewhere.setdefault(name, set()).add(f"{func.__name__} inside a transform of torch.func")
            return result
        if used and (func is F.linear or func in CONVOLUTIONS):
            with torch._C.DisableTorchFunction():  # what is noted is no part of the forward pass
                of_layer = self._layer(func, result, *args, **kwargs)
            used = [name for name in used if name not in of_layer]
        if used and _consumes(func, result):
            for name in used:
                self.elsewhere.setdefault(name, set()).add(getattr(func, "__name__", str(func)))
        return result

    def _layer(self, func: Any, result: Tensor, /, *args: Any, **kwargs: Any) -> set[str]:
        """Note a use of a layer; returns the names of its weight and bias."""
        named = dict(zip(("input", "weight", "bias"), args)) | kwargs
        x, kernel, bias = named.pop("input"), named.pop("weight"), named.pop("bias", None)
        weight_name, bias_name = self._names.get(id(kernel)), self._names.get(id(bias))
        names = {name for name in (weight_name, bias_name) if name is not None}
        self.seen |= names
        if names:
            if self._meet is not None:
                self._meet()
            x, output = rows_of(x.detach()), rows_of(result.detach())
            use = LayerUse(func, weight_name, bias_name, x, kernel.detach(), (args[3:], named), output)
            if self._activations:
                use.output, use.input = output.clone(), use.input.clone()  # what follows may change them in place
                self._pending[id(result)] = (result, use)
            else:
                self._record(use)
        return names

    def finish(self, outputs: Any) -> None:
        """End of the forward pass: record the layers without an activation, and look for parameters used out of sight.

        Args:
            outputs: what the model returned; if it carries a graph, its leaves are compared with what was seen.
        """
        found = tensors_in(outputs)
        for result, use in self._pending.values():
            use.final = any(result is tensor for tensor in found)
            with torch._C.DisableTorchFunction():
                self._record(use)
        self._pending.clear()
        for parameter in leaves_of(found):
            name = self._names.get(id(parameter))
            if name is not None and name not in self.seen and name not in self.elsewhere:
                self.elsewhere[name] = {"a function that cannot be watched"}


def rows_of(tensor: Tensor) -> Tensor:
    """A tensor as it is; of a nested one the rows of all its parts: [rows, ...]."""
    return torch.cat([part.flatten(0, -2) for part in tensor.unbind()]) if tensor.is_nested else tensor


def _tensors(values: tuple[Any, ...]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(tuple(value))


def _consumes(func: Any, result: Any) -> bool:
    """Whether a function of a parameter makes a new tensor of it, rather than reading its size, type or gradient."""
    attribute = getattr(func, "__self__", None)
    if func in _NO_USE or any(attribute is descriptor for descriptor in _NO_USE_ATTRIBUTES):
        return False
    results = result if isinstance(result, tuple | list) else (result,)
    return any(isinstance(value, Tensor) and not isinstance(value, nn.Parameter) for value in results)
