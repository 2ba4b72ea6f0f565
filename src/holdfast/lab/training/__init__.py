"""One task learned: the network, the optimizer, the loop."""

from holdfast.lab.training.loop import Losses, accuracy, divergence, logits_loss, num_epochs, task_loss, train_epoch
from holdfast.lab.training.nets import NetName, build_net, mlp
from holdfast.lab.training.optimizers import (
    OptimizerName,
    Schedule,
    build_optimizer,
    learning_rate,
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
    "logits_loss",
    "mlp",
    "num_epochs",
    "task_loss",
    "train_epoch",
]
