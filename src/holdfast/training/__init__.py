"""One task learned: the network, the optimizer, the loop."""

from holdfast.training.loop import Losses, accuracy, divergence, logits_loss, num_epochs, task_loss, train_epoch
from holdfast.training.nets import NetName, build_net, mlp
from holdfast.training.optimizers import (
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
    "divergence",
    "learning_rate",
    "load_optimizer_state",
    "logits_loss",
    "mlp",
    "num_epochs",
    "optimizer_state",
    "task_loss",
    "train_epoch",
]
