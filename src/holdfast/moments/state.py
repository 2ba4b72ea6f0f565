"""Leaving a model as it was found."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from holdfast.moments.company import Company
from holdfast.moments.written import CopyOnWrite
from holdfast.tensors import unwrap


@contextmanager
def measuring(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode, and give everything back at the end, also after an error.

    Given back: every training flag and other attribute of a module, as far as it is replaced and not changed in place;
    `requires_grad`, `.grad` (the same objects, which nothing is added to), parameters and buffers (objects and values;
    of parameters those that the first forward pass changes), gradient hooks of parameters and backward hooks of
    modules, which are silent meanwhile, and the random state of the CPU and of the model's CUDA devices. Gradients are
    enabled inside, whatever the caller's mode; modules and functions under `torch.compile` run uncompiled.
    """
    company = Company(model)
    company.rest()
    modules = list(model.modules())
    parameters = list(model.parameters())
    scripted = [module for module in modules if isinstance(module, torch.jit.ScriptModule)]
    plain = [module for module in modules if not isinstance(module, torch.jit.ScriptModule)]
    attributes = [(module, dict(vars(module))) for module in plain]
    training = [(module, module.training) for module in scripted]
    gradients = [
        (p, p.requires_grad, p.grad, p._backward_hooks, p._post_accumulate_grad_hooks)  # pyright: ignore
        for p in parameters
    ]
    members: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (held, dict(held)) for module in plain for held in (module._parameters, module._buffers, module._modules)
    ]
    buffers = [(module, dict(module._buffers.items())) for module in modules]
    values = {id(b): (b, b.detach().clone()) for _, found in buffers for b in found.values() if b is not None}
    written = CopyOnWrite(parameters)
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(devices=_cuda_devices(model)))
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            if "torch._dynamo" in sys.modules:  # without it nothing is compiled, and to import it takes seconds
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            unwrap(model).eval()
            for module in plain:
                module._backward_hooks, module._backward_pre_hooks = OrderedDict(), OrderedDict()
            for parameter in parameters:
                parameter.grad = None
                parameter._backward_hooks = None
                if parameter._post_accumulate_grad_hooks:  # pyright: ignore
                    parameter._post_accumulate_grad_hooks = OrderedDict()  # pyright: ignore
            if isinstance(unwrap(model), torch.jit.ScriptModule):  # which has no hooks
                written.copy()
            else:
                stack.enter_context(_first_call(unwrap(model), written))
            yield
    finally:
        company.rest()
        for module, found in attributes:
            vars(module).clear()
            vars(module).update(found)
        for held, found in members:
            held.clear()
            held.update(found)
        for module, flag in training:
            module.training = flag
        for parameter, requires_grad, grad, hooks, late_hooks in gradients:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad
            parameter._backward_hooks = hooks
            if late_hooks:
                parameter._post_accumulate_grad_hooks = late_hooks  # pyright: ignore
        written.restore()
        with torch.no_grad():
            for buffer, value in values.values():
                if not torch.equal(buffer, value):  # batch norm changes its statistics without a new version
                    buffer.copy_(value)
        for module, found in buffers:
            if isinstance(module, torch.jit.ScriptModule):
                for name, buffer in found.items():
                    setattr(module, name, buffer)


@contextmanager
def _first_call(model: nn.Module, written: CopyOnWrite) -> Iterator[None]:
    """Inside, the first forward pass runs under `written`."""
    state = {"entered": False}

    def before(*_: Any) -> None:
        if not state["entered"]:
            state["entered"] = True
            written.__enter__()

    def after(*_: Any) -> None:
        written.__exit__(None, None, None)
        for handle in handles:
            handle.remove()

    handles = [
        model.register_forward_pre_hook(before, prepend=True),
        model.register_forward_hook(after, always_call=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _cuda_devices(model: nn.Module) -> list[torch.device]:
    tensors = [*model.parameters(), *model.buffers()]
    return sorted({t.device for t in tensors if t.device.type == "cuda"}, key=lambda device: device.index or 0)
