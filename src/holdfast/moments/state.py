"""Leaving a model as it was found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from holdfast.tensors import unwrap


@contextmanager
def measuring(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode, and give everything back at the end, also after an error.

    Given back: every training flag, `requires_grad`, `.grad` (the same objects), buffers (objects and values), gradient
    hooks of parameters, which are silent meanwhile, and the random state of the CPU and of the model's CUDA devices.
    Gradients are enabled inside, whatever the caller's mode; modules under `torch.compile` run uncompiled.
    """
    modules = list(model.modules())
    parameters = list(model.parameters())
    training = [(module, module.training) for module in modules]
    gradients = [(p, p.requires_grad, p.grad, p._backward_hooks) for p in parameters]
    buffers = [(module, dict(module._buffers)) for module in modules]
    values = {id(b): (b, b.detach().clone()) for _, found in buffers for b in found.values() if b is not None}
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(devices=_cuda_devices(model)))
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            if any(module._compiled_call_impl is not None or hasattr(module, "_orig_mod") for module in modules):
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            unwrap(model).eval()
            for parameter in parameters:
                parameter._backward_hooks = None
            yield
    finally:
        for module, flag in training:
            module.training = flag
        for parameter, requires_grad, grad, hooks in gradients:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad
            parameter._backward_hooks = hooks
        with torch.no_grad():
            for buffer, value in values.values():
                if not torch.equal(buffer, value):  # batch norm changes its statistics without a new version
                    buffer.copy_(value)
        for module, found in buffers:
            module._buffers.clear()
            module._buffers.update(found)


def _cuda_devices(model: nn.Module) -> list[torch.device]:
    tensors = [*model.parameters(), *model.buffers()]
    return sorted({t.device for t in tensors if t.device.type == "cuda"}, key=lambda device: device.index or 0)
