"""Asking a model in the middle of its training, and leaving it as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from holdfast.replicas import rest
from holdfast.tensors import unwrap


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The bare model in evaluation mode, without gradients and outside autocast.

    A model that draws at random in evaluation mode draws the same each time, so that its answers can be compared. Given
    back at the end, also after an error: every module's training flag, the buffers (objects and values), the random
    state of the CPU and of the model's CUDA devices, and the weights of a sharded model to their shards.

    Cost: a copy of the buffers.
    """
    bare = unwrap(model)
    flags = [(module, module.training) for module in bare.modules()]
    buffers = [(module, dict(module._buffers.items())) for module in bare.modules()]
    tensors = [*bare.parameters(), *bare.buffers()]
    devices = {tensor.device for tensor in tensors}
    kept = [(buffer, buffer.detach().clone()) for buffer in bare.buffers()]
    with ExitStack() as stack:
        cuda = sorted((device for device in devices if device.type == "cuda"), key=lambda device: device.index or 0)
        stack.enter_context(torch.random.fork_rng(devices=cuda))
        torch.default_generator.manual_seed(0)
        for device in cuda:
            torch.cuda.default_generators[torch.device(device).index or 0].manual_seed(0)
        for kind in {device.type for device in devices} | {"cpu"}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(torch.no_grad())
        try:
            yield bare.eval()
        finally:
            rest(bare)
            for module, training in flags:
                module.training = training
            for module, found in buffers:
                for name, buffer in found.items():
                    if module._buffers[name] is not buffer:
                        setattr(module, name, buffer)
            for buffer, value in kept:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)
