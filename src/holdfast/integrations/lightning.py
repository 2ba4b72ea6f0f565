"""A keeper in `lightning.Trainer`, where the backward pass runs inside the optimizer's closure.

trainer = Trainer(callbacks=[HoldfastCallback(keeper)])
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from holdfast.integrations.choice import training
from holdfast.integrations.figures import close_lesson, logged_figures, train_together
from holdfast.replay import Rehearsal
from holdfast.retention import Keeper


class HoldfastCallback(Callback):
    """Holds what `keeper` retains while a `Trainer` fits.

    The keeper is attached to the torch optimizers under Lightning's wrappers when training starts and taken off when it
    ends. Its hooks tell a step from its closure: accumulation, clipping and gradient scalers are as in any loop.
    Its state is in Lightning's checkpoints, and a resumed fit goes on from it. Every `log_every_n_steps` it logs
    `predicted_rise` (EWC) and `pull_ratio`, the length of the pull over that of the task's step in the last step that
    was measured (the keeper's own `log_every`); of skills with probes `rise_0` and `increment_0`, and so on, in nats
    per target, and under a budget the `strength` in force. After the last step the lesson is closed (`Keeper.close`).

    Args:
        keeper: over the `LightningModule` or a part of it, such as the generator of a GAN; optimizers that train
            none of its parameters are left alone.
        name: stands before the logged figures and in the checkpoint's key, to tell several keepers in one `Trainer`
            apart.

    Cost: beside the keeper's own two passes over the weights each time it logs.
    """

    def __init__(self, keeper: Keeper, *, name: str = "") -> None:
        self.keeper, self.name = keeper, name
        self._is_closed = False

    @property
    def state_key(self) -> str:
        """Of its state in a checkpoint."""
        return type(self).__qualname__ + self.name

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach the keeper to every optimizer that trains some of its model's parameters.

        Raises:
            ParameterMismatchError: none does.
        """
        self._is_closed = False
        train_together(self.keeper, num_processes=trainer.world_size)
        for optimizer in training(self.keeper.model, trainer.optimizers):
            self.keeper.attach(optimizer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the lesson, where training ended early, and leave the optimizers as they were."""
        if not self._is_closed:
            close_lesson(self.keeper)
        self.keeper.detach()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the optimizers as they were."""
        self.keeper.detach()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the keeper's figures; after the last step close the lesson, before Lightning evaluates and saves."""
        every = trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
        if trainer.global_step % every == 0:
            for name, value in logged_figures(self.keeper, name=self.name).items():
                pl_module.log(name, value)
        if _is_last(trainer):
            close_lesson(self.keeper)
            self._is_closed = True

    def state_dict(self) -> dict[str, Any]:
        """The keeper's state, for a checkpoint."""
        tensors, notes = self.keeper.state()
        return {"tensors": tensors, "notes": notes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.keeper.load_state(state_dict["tensors"], state_dict["notes"])


class RehearsalCallback(Callback):
    """Rehearses the past while a `Trainer` fits: `Trainer(callbacks=[RehearsalCallback(rehearsal)])`.

    The rehearsal is attached to the first optimizer that trains its model when training starts, and taken off when it
    ends. Its state is in Lightning's checkpoints. Under `precision="bf16-mixed"` the past runs in bfloat16 too. Every
    `log_every_n_steps` it logs `rehearsal_loss`, that of the last rehearsed batch in nats per target.

    Args:
        rehearsal: over the `LightningModule`, or a part of it whose inputs the past has.
    """

    def __init__(self, rehearsal: Rehearsal) -> None:
        self.rehearsal = rehearsal

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach the rehearsal.

        Raises:
            ParameterMismatchError: no optimizer trains its model.
        """
        train_together(self.rehearsal, num_processes=trainer.world_size)
        if trainer.precision == "bf16-mixed" and self.rehearsal.autocast is None:
            self.rehearsal.autocast = torch.bfloat16
        self.rehearsal.attach(training(self.rehearsal.model, trainer.optimizers)[0])

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the optimizer as it was."""
        self.rehearsal.detach()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the optimizer as it was."""
        self.rehearsal.detach()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the loss of the past."""
        every, last = trainer.log_every_n_steps, self.rehearsal.last_loss  # pyright: ignore[reportAttributeAccessIssue]
        if trainer.global_step % every == 0 and last is not None:
            pl_module.log("rehearsal_loss", last)

    def state_dict(self) -> dict[str, Any]:
        """The rehearsal's state, for a checkpoint."""
        return self.rehearsal.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.rehearsal.load_state_dict(state_dict)


def _is_last(trainer: Trainer) -> bool:
    """Whether the batch that has just been trained on is the last."""
    if trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps:
        return True
    epochs = trainer.max_epochs
    return epochs not in (None, -1) and trainer.current_epoch + 1 >= epochs and trainer.is_last_batch
