"""Dark experience replay: past examples come back with the answers that the network gave to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.methods.learner import Learner
from holdfast.methods.options import MethodOptions
from holdfast.replay import Buffer
from holdfast.streams import Examples
from holdfast.training import Losses, logits_loss, task_loss


class DarkExperienceReplay(Learner):
    """DER++: every step learns the batch at hand, the logits z' kept with past examples, and labels of others.

        loss = L(batch) + alpha mean (z' - h(x'))^2 + beta L(x'', y'')

    (x', z') and (x'', y'') are two draws from the buffer, each as large as the batch. Every batch is offered to the
    buffer as it comes by, with the logits of that moment. `der_beta=0` is DER.

    Cost: three times the passes, and the memory of the buffer.

    Source: Buzzega et al. 2020, arXiv 2004.07211; the mean square is over examples and all output columns, as in the
    authors' program (their equation sums over columns). Departure: nothing is replayed in the first task, where nothing
    can have been forgotten; that task is plain training.
    """

    replays: ClassVar[bool] = True

    def __init__(self, model: nn.Module, options: MethodOptions) -> None:
        super().__init__(model)
        self.buffer = Buffer(options.buffer_size, keep=options.buffer)
        self._alpha, self._beta = options.der_alpha, options.der_beta
        self._num_closed = 0

    def loss(self, inputs: Tensor, targets: Tensor, columns: Tensor | None) -> Losses:
        """The task's mean loss, and the two losses on what is kept."""
        logits, added = self.model(inputs), None
        if self._num_closed:
            first, second = (self.buffer.draw(len(targets)) for _ in range(2))
            added = self._alpha * F.mse_loss(self.model(first["inputs"]), first["logits"])
            added = added + self._beta * task_loss(self.model, second["inputs"], second["targets"], columns)
        self.buffer.offer(inputs=inputs, targets=targets, logits=logits)
        return logits_loss(logits, targets, columns), added

    def close_task(self, examples: Examples, *, classes: tuple[int, ...] | None, task: int) -> None:
        """From now on there is something to replay."""
        self._num_closed = task + 1

    def report(self) -> str:
        """How many examples are kept."""
        return f"replay: {len(self.buffer)} examples kept of room for {self.buffer.capacity}, with their logits"

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The buffer."""
        tensors, notes = self.buffer.state()
        return tensors, {"buffer": notes, "closed": self._num_closed}

    def load_state(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.buffer.load_state(tensors, notes["buffer"])
        self._num_closed = notes["closed"]
