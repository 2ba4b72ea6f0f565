"""Dark experience replay: past examples come back with the answers that the network gave to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.files.typed import Within
from holdfast.lab.methods.buffered import BufferLearner, BufferOptions
from holdfast.lab.methods.learner import Setting
from holdfast.lab.methods.registry import COLOURS, register_method
from holdfast.lab.training import Losses, logits_loss, task_loss


@dataclass(frozen=True, kw_only=True)
class DerOptions(BufferOptions):
    """Of dark experience replay.

    Attributes:
        der_alpha: weight of the squared distance to the kept logits.
        der_beta: weight of the loss on kept labels.
    """

    der_alpha: Annotated[float, Within(0, 1e6)] = 0.5
    der_beta: Annotated[float, Within(0, 1e6)] = 1.0


@register_method(
    "der",
    label="DER++",
    summary="learns kept examples together with the answers they once had",
    options=DerOptions,
    style={"color": COLOURS["buffer"], "linestyle": "-", "marker": "D"},
    classes_only=True,
)
class DarkExperienceReplay(BufferLearner):
    """DER++: every step learns the batch at hand, the logits z' kept with past examples, and labels of others.

        loss = L(batch) + alpha mean (z' - h(x'))^2 + beta L(x'', y'')

    (x', z') and (x'', y'') are two draws from the buffer, each as large as the batch. Every batch is offered to the
    buffer as it comes by, with the logits of that moment. `der_beta=0` is DER.

    Cost: three times the passes, and the memory of the buffer.

    Source: Buzzega et al. 2020, arXiv 2004.07211; the mean square is over examples and all output columns, as in the
    authors' program (their equation sums over columns). Departure: nothing is replayed in the first task, where nothing
    can have been forgotten; that task is plain training.
    """

    def __init__(self, model: nn.Module, setting: Setting, options: DerOptions) -> None:
        super().__init__(model, setting, options)
        self._alpha, self._beta = options.der_alpha, options.der_beta

    def loss(self, inputs: Tensor, targets: Tensor, columns: Tensor | None) -> Losses:
        """The task's mean loss, and the two losses on what is kept."""
        logits, added = self.model(inputs), None
        if self.num_closed:
            first, second = (self.buffer.draw(len(targets)) for _ in range(2))
            added = self._alpha * F.mse_loss(self.model(first["inputs"]), first["logits"])
            added = added + self._beta * task_loss(self.model, second["inputs"], second["targets"], columns)
        self.buffer.offer(inputs=inputs, targets=targets, logits=logits)
        return logits_loss(logits, targets, columns), added

    def report(self) -> str:
        """How many examples are kept."""
        return f"{super().report()}, with their logits"
