"""The usual ways to sums over examples of squared or absolute gradients: loops, `torch.func`, BackPACK, Opacus.

Each takes a model and batches, and gives name -> mean over the targets, as a user would write it. The model is left
alone; the packages of the extra `bench` are imported where they are used.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.workloads import Batches, nll

RowScores = Callable[[Tensor, Tensor], Tensor]
"""Outputs [B, ...] and targets -> [K, B], the numbers whose gradients are wanted."""

Phi = Callable[[Tensor], Tensor]
Means = dict[str, Tensor]


def empirical_rows(outputs: Tensor, targets: Tensor) -> Tensor:
    """[1, B]: the loss at the label."""
    return nll(outputs, targets).unsqueeze(0)


def exact_rows(outputs: Tensor, _: Tensor) -> Tensor:
    """[C, B]: sqrt(p_c) log p_c, the root held constant."""
    log_p = outputs.log_softmax(dim=1)
    return ((0.5 * log_p).exp().detach() * log_p).T


def mas_rows(outputs: Tensor, _: Tensor) -> Tensor:
    """[1, B]: the squared length of the outputs."""
    return outputs.square().flatten(1).sum(dim=1).unsqueeze(0)


def one_at_a_time(
    model: nn.Module, batches: Batches, *, rows: RowScores, phi: Phi, counted: Callable[[Tensor], int] = torch.numel
) -> Means:
    """A backward pass for every example and row; batches of one example each. `counted`: what of its targets."""
    parameters = dict(model.named_parameters())
    sums, count = _zeros(model), 0
    for inputs, targets in batches:
        values = rows(model(*inputs), targets).flatten()
        for number, value in enumerate(values):
            gradients = torch.autograd.grad(value, list(parameters.values()), retain_graph=number + 1 < len(values))
            for total, gradient in zip(sums.values(), gradients):
                total += phi(gradient)
        count += counted(targets)
    return {name: total / count for name, total in sums.items()}


def vmapped(model: nn.Module, batches: Batches, *, chunk: int) -> Means:
    """`torch.func`: vmap of grad, so many examples at once."""
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def loss(parameters: Means, inputs: tuple[Tensor, ...], target: Tensor) -> Tensor:
        outputs = functional_call(model, (parameters, buffers), tuple(tensor.unsqueeze(0) for tensor in inputs))
        return nll(outputs, target.unsqueeze(0))[0]

    each = vmap(grad(loss), in_dims=(None, 0, 0))
    sums, count = _zeros(model), 0
    for inputs, targets in batches:
        for start in range(0, len(targets), chunk):
            some = slice(start, start + chunk)
            with sdpa_kernel(SDPBackend.MATH):  # fused attention has no rule for vmap
                found = each(parameters, tuple(tensor[some] for tensor in inputs), targets[some])
            for name, gradients in found.items():
                sums[name] += gradients.square().sum(dim=0)
        count += targets.numel()
    return {name: total / count for name, total in sums.items()}


def backpack_squares(model: nn.Module, batches: Batches) -> Means:
    """BackPACK's SumGradSquared: the empirical Fisher."""
    from backpack import backpack, extend
    from backpack.extensions import SumGradSquared

    extended, loss = extend(copy.deepcopy(model)), extend(nn.CrossEntropyLoss(reduction="sum"))
    sums, count = {}, 0
    for inputs, targets in batches:
        outputs = extended(*inputs)
        with backpack(SumGradSquared()):
            loss(outputs.movedim(-1, 1), targets).backward()
        for name, parameter in extended.named_parameters():
            if hasattr(parameter, "sum_grad_squared"):  # layers that it does not know have none
                sums[name] = sums.get(name, 0) + parameter.sum_grad_squared
                del parameter.sum_grad_squared
            parameter.grad = None
        count += len(targets)
    return {name: total / count for name, total in sums.items()}


def backpack_exact(model: nn.Module, batches: Batches) -> Means:
    """BackPACK's DiagGGNExact: with this loss the exact Fisher."""
    from backpack import backpack, extend
    from backpack.extensions import DiagGGNExact

    plain = isinstance(model, nn.Sequential) and all(_is_built_in(module) for module in model)
    extended = extend(copy.deepcopy(model), use_converter=not plain)
    loss = extend(nn.CrossEntropyLoss(reduction="sum"))
    sums, count = _zeros(model), 0
    for inputs, targets in batches:
        outputs = extended(*inputs)
        with backpack(DiagGGNExact()):
            loss(outputs.movedim(-1, 1), targets).backward()
        for name, parameter in zip(sums, extended.parameters()):
            sums[name] += parameter.diag_ggn_exact
            del parameter.diag_ggn_exact
            parameter.grad = None
        count += len(targets)
    return {name: total / count for name, total in sums.items()}


def opacus_squares(model: nn.Module, batches: Batches) -> Means:
    """Opacus' per-sample gradients, squared and summed: the empirical Fisher."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own imports
        from opacus import GradSampleModule

    wrapped = GradSampleModule(copy.deepcopy(model), loss_reduction="sum").train()  # it records nothing in evaluation
    for module in wrapped.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    sums, count = _zeros(model), 0
    for inputs, targets in batches:
        nll(wrapped(*inputs), targets).sum().backward()
        for name, parameter in wrapped._module.named_parameters():
            sums[name] += parameter.grad_sample.square().sum(dim=0)
        wrapped.zero_grad()
        count += len(targets)
    return {name: total / count for name, total in sums.items()}


def _zeros(model: nn.Module) -> Means:
    return {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}


def _is_built_in(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn")
