"""The sums behind the signal importance: |x| at the inputs and |z| at the outputs of each layer."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from holdfast.moments.company import Company
from holdfast.moments.layers import LayerUse
from holdfast.tensors import local, placed, shard, trainable_parameters

BiasSignal = Literal["output", "activation"]
"""What a bias is measured by: |z|, the layer's output, or |y|, y = activation(z)."""

UNIT = "activation"


class SignalSums:
    """Sums over examples and positions, for each parameter only as large as one side of its layer."""

    def __init__(self, model: nn.Module, bias: BiasSignal) -> None:
        self._model, self._bias = model, bias
        self._totals: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, use: LayerUse) -> None:
        """Add one use of a layer."""
        units = use.output.shape[use.channel_axis]
        count = use.output.numel() // units
        if use.weight is not None:
            self._add(use.weight, _conv_inputs(use) if use.convolves else _column_sums(use.input), count)
        if use.bias is not None:
            y = use.output
            if self._bias == "activation" and use.activation is not None:
                y = use.activation(y)
            elif self._bias == "activation" and use.final:
                y = y.softmax(dim=use.channel_axis)
            self._add(use.bias, _column_sums(y.movedim(use.channel_axis, -1)), count)

    def merge(self, other: SignalSums) -> None:
        """Add what other sums of the same model hold."""
        for name, total in other._totals.items():
            self._add(name, total, other._counts[name])

    def join(self, company: Company) -> None:
        """Add up what all processes have, of the same parameters; all of them come here."""
        if company.is_alone:
            return
        for name in sorted(self._totals):
            self._totals[name] = self._totals[name].clone()
            company.add_up(self._totals[name])
            self._counts[name] = company.total(self._counts[name])

    def values(self) -> dict[str, Tensor]:
        """Name -> importance, with today's weights; zeros for parameters never used."""
        values = {}
        for name, parameter in trainable_parameters(self._model).items():
            weight = parameter.detach()
            if name not in self._totals:
                values[name] = torch.zeros_like(weight, dtype=torch.float32)
                continue
            mean = (self._totals[name] / self._counts[name]).to(weight.device)
            if weight.ndim > 2:
                mean = mean.repeat_interleave(len(weight) // len(mean), dim=0)
            own = shard(mean.expand(weight.shape), parameter)
            values[name] = placed(own if weight.ndim == 1 else local(weight).abs() * own, parameter)
        return values

    def _add(self, name: str, total: Tensor, count: int) -> None:
        self._totals[name] = self._totals[name] + total if name in self._totals else total
        self._counts[name] = self._counts.get(name, 0) + count


def _column_sums(values: Tensor) -> Tensor:
    """[n]: the sum of |v| over all axes but the last."""
    return values.abs().reshape(-1, values.shape[-1]).sum(dim=0, dtype=_wide(values))


def _conv_inputs(use: LayerUse) -> Tensor:
    """[groups, channels, *kernel]: the sum, over examples and output positions, of |x| under each tap of the kernel.

    It is the gradient of the summed convolution of |x| by a kernel with one output channel a group.
    """
    with torch.enable_grad(), torch.autocast(use.input.device.type, enabled=False):
        kernel = torch.zeros_like(use.kernel[: use.groups], dtype=_wide(use.input), requires_grad=True)
        total = use.apply(use.input.abs().to(kernel.dtype), kernel).sum()
        return torch.autograd.grad(total, kernel)[0]


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
