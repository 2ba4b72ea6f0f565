"""Training on the data of all tasks so far: what continual learning does without, as the measure of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from holdfast.lab.methods.learner import Learner, Setting
from holdfast.lab.methods.registry import COLOURS, register_method
from holdfast.lab.streams import Examples


@register_method(
    "joint",
    summary="trains anew on the data of all tasks so far at once (the ceiling)",
    place="ceiling",
    style={"color": COLOURS["data"], "linestyle": (0, (5, 2)), "marker": ""},
)
class Joint(Learner):
    """A network trained anew, from its first weights, on the data of all tasks so far at once: the ceiling."""

    needs_past_data: ClassVar[bool] = True

    def __init__(self, model: nn.Module, setting: Setting) -> None:
        super().__init__(model, setting)
        self._initial = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def open_task(self, task: int, examples: Examples) -> None:
        """Forget the task before: its data come again."""
        self.model.load_state_dict(self._initial)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The first weights."""
        return dict(self._initial), {}

    def load_state(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self._initial = dict(tensors)


@register_method(
    "cumulative",
    summary="goes on training on the data of all tasks so far",
    place="ceiling",
    style={"color": COLOURS["data"], "linestyle": (0, (5, 2)), "marker": "x"},
)
class Cumulative(Learner):
    """Fine-tuning that goes on, task by task, on the data of all tasks so far."""

    needs_past_data: ClassVar[bool] = True
