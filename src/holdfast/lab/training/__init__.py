"""One task learned: the network, the optimizer, the loop."""

from holdfast.lab.training.loop import Losses, accuracy, logits_loss, num_epochs, task_loss, train_epoch
from holdfast.lab.training.nets import NetName, build_net, mlp
from holdfast.lab.training.optimizers import (
    OptimizerName,
    Schedule,
    build_optimizer,
    learning_rate,
    load_optimizer_state,
    optimizer_state,
)

__all__ = [
    "Losses",
    "NetName",
    "OptimizerName",
    "Schedule",
    "accuracy",
    "build_net",
    "build_optimizer",
    "learning_rate",
    "load_optimizer_state",
    "logits_loss",
    "mlp",
    "num_epochs",
    "optimizer_state",
    "task_loss",
    "train_epoch",
]
