"""One task learned: the network, the optimizer, the loop."""

from holdfast.lab.training.augment import Augmentation, augmented, known_augmentations
from holdfast.lab.training.loop import Losses, accuracy, divergence, logits_loss, num_epochs, task_loss, train_epoch
from holdfast.lab.training.nets import NETS, build_net, mlp, register_net
from holdfast.lab.training.optimizers import (
    OptimizerName,
    Schedule,
    build_optimizer,
    learning_rate,
)
from holdfast.lab.training.residual import ResNet
from holdfast.lab.training.vision import VisionTransformer

__all__ = [
    "NETS",
    "Augmentation",
    "Losses",
    "OptimizerName",
    "ResNet",
    "Schedule",
    "VisionTransformer",
    "accuracy",
    "augmented",
    "build_net",
    "build_optimizer",
    "divergence",
    "known_augmentations",
    "learning_rate",
    "logits_loss",
    "mlp",
    "num_epochs",
    "register_net",
    "task_loss",
    "train_epoch",
]
