"""A keeper in `lightning.Trainer`, where the backward pass runs inside the optimizer's closure.

trainer = Trainer(callbacks=[HoldfastCallback(keeper)])
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from holdfast.integrations.choice import training
from holdfast.retention import Keeper


class HoldfastCallback(Callback):
    """Holds what `keeper` retains while a `Trainer` fits.

    The keeper is attached to the torch optimizers under Lightning's wrappers when training starts and taken off when it
    ends. Its hooks tell a step from its closure: accumulation, clipping and gradient scalers are as in any loop.
    Its state is in Lightning's checkpoints, and a resumed fit goes on from it. Every `log_every_n_steps` it logs
    `predicted_rise` (EWC) and `pull_ratio`, the length of the pull over that of the task's step in the last step that
    was measured (the keeper's own `log_every`).

    Args:
        keeper: over the `LightningModule` or a part of it, such as the generator of a GAN; optimizers that train
            none of its parameters are left alone.
        name: stands before the logged figures and in the checkpoint's key, to tell several keepers in one `Trainer`
            apart.

    Cost: beside the keeper's own two passes over the weights each time it logs.
    """

    def __init__(self, keeper: Keeper, *, name: str = "") -> None:
        self.keeper, self.name = keeper, name

    @property
    def state_key(self) -> str:
        """Of its state in a checkpoint."""
        return type(self).__qualname__ + self.name

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach the keeper to every optimizer that trains some of its model's parameters.

        Raises:
            ParameterMismatchError: none does.
        """
        for optimizer in training(self.keeper.model, trainer.optimizers):
            self.keeper.attach(optimizer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the optimizers as they were."""
        self.keeper.detach()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the optimizers as they were."""
        self.keeper.detach()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the keeper's figures."""
        every = trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
        if self.keeper.held.num_tasks == 0 or trainer.global_step % every:
            return
        report = self.keeper.report()
        for name, value in (("predicted_rise", report.predicted_rise), ("pull_ratio", report.pull_ratio)):
            if value is not None:
                pl_module.log(f"{self.name}/{name}" if self.name else name, value)

    def state_dict(self) -> dict[str, Any]:
        """The keeper's state, for a checkpoint."""
        tensors, notes = self.keeper.state()
        return {"tensors": tensors, "notes": notes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.keeper.load_state(state_dict["tensors"], state_dict["notes"])
