"""The network frozen after its first task, all but the last layer: stability without plasticity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from holdfast.analytic.features import head_of
from holdfast.lab.methods.learner import Learner, Setting
from holdfast.lab.methods.registry import COLOURS, register_method
from holdfast.lab.streams import Examples


@register_method(
    "frozen",
    summary="trains the last layer alone after the first task",
    place="floor",
    style={"color": COLOURS["plain"], "linestyle": (0, (1, 1.4)), "marker": "x"},
    batches=False,
)
class Frozen(Learner):
    """The features of the first task for ever: later tasks train the last layer alone.

    The last layer is the last module, in order of definition, that has parameters of its own. Where each task has
    output columns of its own nothing is forgotten, and little learned; where tasks share them, the last layer forgets.
    """

    def __init__(self, model: nn.Module, setting: Setting) -> None:
        super().__init__(model, setting)
        self._head = head_of(model)
        self._frozen = False

    def open_task(self, task: int, examples: Examples) -> None:
        """Freeze the features before the second task."""
        if task > 0:
            self._freeze()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Whether the features are frozen."""
        return {}, {"frozen": self._frozen}

    def load_state(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        if notes["frozen"]:
            self._freeze()

    def _freeze(self) -> None:
        self._frozen = True
        self.model.requires_grad_(False)
        self._head.requires_grad_(True)


register_method(
    "none",
    label="plain",
    summary="plain fine-tuning: nothing holds the old tasks (the floor)",
    place="floor",
    style={"color": COLOURS["plain"], "linestyle": (0, (1, 1.4)), "marker": ""},
    batches=False,
)(Learner)
