"""Experience replay: a few examples of the past in every batch."""

from __future__ import annotations

from torch import Tensor

from holdfast.lab.methods.buffered import BufferLearner, BufferOptions
from holdfast.lab.methods.registry import COLOURS, register_method
from holdfast.lab.training import Losses, task_loss


@register_method(
    "er",
    label="ER",
    summary="learns a few kept examples of earlier tasks in every batch",
    options=BufferOptions,
    style={"color": COLOURS["buffer"], "linestyle": "-", "marker": "s"},
    classes_only=True,
)
class ExperienceReplay(BufferLearner):
    """Every step learns the batch at hand and as many examples from a buffer.

        loss = 1/(B + B') (sum over the batch + sum over the replayed) of the cross-entropy

    Every batch is offered to the buffer as it comes by, in every epoch.

    Cost: twice the passes, and the memory of the buffer.

    Source: Chaudhry et al. 2019, arXiv 1902.10486. Departure: nothing is replayed in the first task, where nothing
    can have been forgotten; that task is plain training.
    """

    def loss(self, inputs: Tensor, targets: Tensor, columns: Tensor | None) -> Losses:
        """The task's mean loss, and what turns it into the mean over both."""
        own, added = task_loss(self.model, inputs, targets, columns), None
        if self.num_closed:
            old = self.buffer.draw(len(targets))
            replayed = task_loss(self.model, old["inputs"], old["targets"], columns)
            share = len(old["targets"]) / (len(targets) + len(old["targets"]))
            added = share * (replayed - own)
        self.buffer.offer(inputs=inputs, targets=targets)
        return own, added
