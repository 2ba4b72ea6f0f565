"""One task learned: the network, the optimizer, the loop."""

from holdfast.lab.training.loop import Losses, accuracy, divergence, logits_loss, num_epochs, task_loss, train_epoch
from holdfast.lab.training.nets import NETS, build_net, mlp, register_net
from holdfast.lab.training.optimizers import (
    OptimizerName,
    Schedule,
    build_optimizer,
    learning_rate,
)

__all__ = [
    "NETS",
    "Losses",
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
    "register_net",
    "task_loss",
    "train_epoch",
]
