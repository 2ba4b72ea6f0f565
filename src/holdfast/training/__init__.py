"""One task learned: the network, the optimizer, the loop."""

from holdfast.training.loop import accuracy, num_epochs, train_epoch
from holdfast.training.nets import mlp
from holdfast.training.optimizers import OptimizerName, Schedule, build_optimizer, learning_rate

__all__ = [
    "OptimizerName",
    "Schedule",
    "accuracy",
    "build_optimizer",
    "learning_rate",
    "mlp",
    "num_epochs",
    "train_epoch",
]
