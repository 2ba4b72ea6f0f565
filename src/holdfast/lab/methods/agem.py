"""Averaged gradient episodic memory: no step may raise the loss on what is kept of the past."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from holdfast.lab.methods.buffered import BufferLearner, BufferOptions
from holdfast.lab.methods.learner import Setting
from holdfast.lab.methods.registry import COLOURS, register_method
from holdfast.lab.training import Losses, task_loss
from holdfast.tensors import trainable_parameters


def project_(gradients: Sequence[Tensor], reference: Sequence[Tensor]) -> None:
    """Take from gradients, in place, what points against the reference.

        g <- g - min(0, g . g_ref) / (g_ref . g_ref) g_ref

    Args:
        gradients: g, a tensor a parameter.
        reference: g_ref, of the same shapes.
    """
    dot = torch.stack([(g * ref).sum() for g, ref in zip(gradients, reference)]).sum()
    square = torch.stack([ref.square().sum() for ref in reference]).sum()
    against = dot.clamp(max=0) / square.clamp(min=torch.finfo(square.dtype).tiny)
    for g, ref in zip(gradients, reference):
        g.sub_(against * ref)


@register_method(
    "agem",
    label="A-GEM",
    summary="turns every gradient that would raise the loss on kept examples",
    options=BufferOptions,
    style={"color": COLOURS["buffer"], "linestyle": (0, (4, 1.5)), "marker": "v"},
    classes_only=True,
)
class AveragedGem(BufferLearner):
    """Before every step the gradient is projected so that it does not raise the loss on a draw of past examples.

    The draw is as large as the batch, from what is kept of the tasks before; see `project_`. Every batch is offered
    to the buffer as it comes by.

    Cost: twice the passes, and the memory of one gradient and of the buffer.

    Source: Chaudhry et al. 2019, arXiv 1812.00420. Departures: a buffer that all tasks share, in place of a fixed
    number of examples of each. Under optimizers with momentum or a metric it is the gradient that is projected, not
    the step; clipping comes before.
    """

    title: ClassVar[str] = "A-GEM"

    def __init__(self, model: nn.Module, setting: Setting, options: BufferOptions) -> None:
        super().__init__(model, setting, options)
        self._reference: dict[str, Tensor] = {}

    def attach(self, optimizer: Optimizer) -> None:
        """Project the gradients that this optimizer is about to use."""
        self.hook(optimizer, gradients=self._project)

    def loss(self, inputs: Tensor, targets: Tensor, columns: Tensor | None) -> Losses:
        """The task's mean loss; the gradient on past examples is kept for the step."""
        if self.num_closed:
            self._reference = self._past_gradient(len(targets), columns)
        tasks = torch.full_like(targets, self.num_closed)
        self.buffer.offer(inputs=inputs, targets=targets, tasks=tasks)
        return task_loss(self.model, inputs, targets, columns), None

    def _past_gradient(self, count: int, columns: Tensor | None) -> dict[str, Tensor]:
        old = self.buffer.draw(count, among=self.buffer["tasks"] < self.num_closed)
        if not len(old["targets"]):
            return {}
        parameters = trainable_parameters(self.model)
        loss = task_loss(self.model, old["inputs"], old["targets"], columns)
        found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        return {name: gradient for name, gradient in zip(parameters, found) if gradient is not None}

    @torch.no_grad()
    def _project(self, optimizer: Optimizer) -> None:
        parameters = trainable_parameters(self.model)
        pairs = [(p.grad, ref) for name, ref in self._reference.items() if (p := parameters[name]).grad is not None]
        self._reference = {}
        if pairs:
            project_([gradient for gradient, _ in pairs], [reference for _, reference in pairs])
