"""The judge: a small convolutional classifier of real images, trained once, which says what is on a drawn one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from holdfast.errors import FileFormatError
from holdfast.files import read_state, write_state
from holdfast.lab.streams import Examples, Task
from holdfast.lab.training import accuracy
from holdfast.steps.descent import descend

EPOCHS = {"digits": 30, "mnist": 4}
"""Of a judge, by the name of its images."""

_OTHERS = 10
_VERSION = 1


def num_epochs(images: Task) -> int:
    """Passes over images, real or drawn in their place, that make a judge of them."""
    return EPOCHS.get(images.name, _OTHERS)


def judge_net(shape: Sequence[int], num_classes: int, *, seed: int) -> nn.Sequential:
    """Two 3x3 convolutions (32 and 64 channels), each with a pooling, a hidden layer of 128, and the classes."""
    channels, height, width = shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * (height // 4) * (width // 4), 128),
            nn.ReLU(),
            nn.Linear(128, num_classes),
        )


def features(judge: nn.Sequential, images: Tensor) -> Tensor:
    """[N, 128]: what the last hidden layer has to say of images in 0..1."""
    return judge[:-1](images)


def train_judge(examples: Examples, *, epochs: int, num_classes: int, seed: int = 0, lr: float = 2e-3) -> nn.Sequential:
    """A judge trained on examples by Adam with a cosine rate and batches of 64; on their device."""
    device = examples.stored.device
    net = judge_net(examples.input_shape, num_classes, seed=seed).to(device).train()
    optimizer = Adam(net.parameters(), lr=lr, fused=True)
    total = epochs * math.ceil(len(examples) / 64)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    random = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        learn_classes(net, optimizer, examples.batches(64, generator=random), after_step=lambda _: schedule.step())
    return net.eval()


def learn_classes(
    net: nn.Module,
    optimizer: Optimizer,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    after_step: Callable[[object], None] | None = None,
) -> None:
    """One step on each batch of images and their classes."""
    descend(optimizer, batches, lambda batch: (F.cross_entropy(net(batch[0]), batch[1]), None), after_step=after_step)


def judge_of(
    images: Task, *, device: torch.device, folder: Path, name: str | None = None
) -> tuple[nn.Sequential, float]:
    """The judge of a set of images, and its test accuracy; trained at most once for a folder and a name.

    Raises:
        FileFormatError: its file is damaged.
        OutputError: it cannot be written.
    """
    path = folder / f"{name or images.name}-{_VERSION}.safetensors"
    net = judge_net(images.train.input_shape, len(images.classes), seed=0)
    if not path.exists():
        trained = train_judge(images.train.to(device), epochs=num_epochs(images), num_classes=len(images.classes))
        found = accuracy(trained, images.test.to(device))
        write_state(path, trained.state_dict(), {"accuracy": found})
    tensors, notes = read_state(path)
    try:
        net.load_state_dict(tensors)
        return net.to(device).eval(), float(notes["accuracy"])
    except (KeyError, RuntimeError) as error:
        raise FileFormatError(f"{path} is no judge of {images.name}. Delete it, and it is trained anew.") from error
