"""Experience replay: a few examples of the past in every batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from holdfast.methods.learner import Learner
from holdfast.methods.options import MethodOptions
from holdfast.replay import Buffer
from holdfast.streams import Examples
from holdfast.training import Losses, task_loss


class ExperienceReplay(Learner):
    """Every step learns the batch at hand and as many examples from a buffer.

        loss = 1/(B + B') (sum over the batch + sum over the replayed) of the cross-entropy

    Every batch is offered to the buffer as it comes by, in every epoch.

    Cost: twice the passes, and the memory of the buffer.

    Source: Chaudhry et al. 2019, arXiv 1902.10486. Departure: nothing is replayed in the first task, where nothing
    can have been forgotten; that task is plain training.
    """

    replays: ClassVar[bool] = True

    def __init__(self, model: nn.Module, options: MethodOptions) -> None:
        super().__init__(model)
        self.buffer = Buffer(options.buffer_size, keep=options.buffer)
        self._num_closed = 0

    def loss(self, inputs: Tensor, targets: Tensor, columns: Tensor | None) -> Losses:
        """The task's mean loss, and what turns it into the mean over both."""
        own, added = task_loss(self.model, inputs, targets, columns), None
        if self._num_closed:
            old = self.buffer.draw(len(targets))
            replayed = task_loss(self.model, old["inputs"], old["targets"], columns)
            share = len(old["targets"]) / (len(targets) + len(old["targets"]))
            added = share * (replayed - own)
        self.buffer.offer(inputs=inputs, targets=targets)
        return own, added

    def close_task(self, examples: Examples, *, classes: tuple[int, ...] | None, task: int) -> None:
        """From now on there is something to replay."""
        self._num_closed = task + 1

    def report(self) -> str:
        """How many examples are kept."""
        return f"replay: {len(self.buffer)} examples kept of room for {self.buffer.capacity}"

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The buffer."""
        tensors, notes = self.buffer.state()
        return tensors, {"buffer": notes, "closed": self._num_closed}

    def load_state(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.buffer.load_state(tensors, notes["buffer"])
        self._num_closed = notes["closed"]
