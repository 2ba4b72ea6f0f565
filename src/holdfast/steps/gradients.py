"""The gradients of a backward pass, as they were before clipping, a pull or unscaling changed them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.tensors import local


class BackwardGradients:
    """Keeps what every `backward()` leaves in `.grad`, until it is taken.

    It is read when the backward pass is over: after `DistributedDataParallel` has averaged it over processes, whether
    the model was wrapped before or after, and before the training loop can change it. Under `no_sync()` and other
    accumulation the last pass before the step counts, whose `.grad` is the sum of all. Of a model under `fully_shard`
    it is this process's shard, as the backward pass has averaged it.

    Args:
        parameters: by name, of which gradients are kept.
        scaler: the `GradScaler` whose scale is divided out; None: there is none.

    Cost: a copy of the gradients. A program that averages them over processes by itself, after `backward()`, comes too
    late: what is kept is then this process's own.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], *, scaler: Any = None) -> None:
        self._parameters, self._scaler = parameters, scaler
        self._kept: dict[str, Tensor] = {}
        self._reached: set[str] = set()
        self._backward = -1
        self._handles = [
            parameter.register_post_accumulate_grad_hook(lambda _, name=name: self._accumulated(name))
            for name, parameter in parameters.items()
        ]

    def take(self, name: str) -> Tensor | None:
        """The gradient of one parameter, once; None where no backward pass has reached it since."""
        return self._kept.pop(name, None)

    def remove(self) -> None:
        """Take the hooks off the parameters again."""
        for handle in self._handles:
            handle.remove()

    def _accumulated(self, name: str) -> None:
        self._reached.add(name)
        number = torch._C._current_graph_task_id()
        if number != self._backward:
            self._backward = number
            _at_the_end(lambda: _at_the_end(self._keep))  # the inner one comes after what DDP puts at the end meanwhile

    def _keep(self) -> None:
        # of a parameter that only another process used, DDP writes the gradient too
        names = self._parameters if _has_several_processes() else self._reached
        scale = 1.0 if self._scaler is None else 1.0 / float(self._scaler.get_scale())
        for name in names:
            if (gradient := self._parameters[name].grad) is not None:
                self._kept[name] = local(gradient.detach()) * scale
        self._reached = set()


def _at_the_end(callback: Callable[[], None]) -> None:
    """Call it when the backward pass that runs now is over, after what was put there before."""
    engine: Any = torch.autograd.Variable._execution_engine  # pyright: ignore[reportAttributeAccessIssue]
    engine.queue_callback(callback)


def _has_several_processes() -> bool:
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
