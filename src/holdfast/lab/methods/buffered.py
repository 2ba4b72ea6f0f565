"""What the methods that keep examples of the past in a buffer have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from torch import Tensor, nn

from holdfast.files.typed import Within
from holdfast.lab.methods.learner import Learner, Setting
from holdfast.lab.streams import Examples
from holdfast.replay import Buffer, Keep


@dataclass(frozen=True, kw_only=True)
class BufferOptions:
    """Of the methods that keep examples.

    Attributes:
        buffer: every past example is as likely to be kept ("reservoir"), or every class ("balanced").
        buffer_size: how many examples are kept.
    """

    buffer: Keep = "reservoir"
    buffer_size: Annotated[int, Within(1, 10**9)] = 500


class BufferLearner(Learner):
    """Keeps examples in a buffer; `loss` offers them to it, and draws from it once a task has been closed.

    Attributes:
        buffer: of `options.buffer_size` examples.
        num_closed: tasks that were closed.
        title: first word of its report.
    """

    replays: ClassVar[bool] = True
    title: ClassVar[str] = "replay"

    def __init__(self, model: nn.Module, setting: Setting, options: BufferOptions) -> None:
        super().__init__(model, setting)
        self.buffer = Buffer(options.buffer_size, keep=options.buffer)
        self.num_closed = 0

    def close_task(self, examples: Examples, *, classes: tuple[int, ...] | None, task: int) -> None:
        """From now on there are past examples."""
        self.num_closed = task + 1

    def report(self) -> str:
        """How many examples are kept."""
        return f"{self.title}: {len(self.buffer)} examples kept of room for {self.buffer.capacity}"

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The buffer."""
        tensors, notes = self.buffer.state()
        return tensors, {"buffer": notes, "closed": self.num_closed}

    def load_state(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.buffer.load_state(tensors, notes["buffer"])
        self.num_closed = notes["closed"]
