"""The optimizers whose steps holdfast knows exactly, in every form that torch gives them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch.optim import SGD, Adam, AdamW, Optimizer

Build = Callable[[Iterable[Any]], Optimizer]

PLAIN: dict[str, Build] = {
    "sgd": partial(SGD, lr=0.1),
    "momentum": partial(SGD, lr=0.05, momentum=0.9),
    "dampened": partial(SGD, lr=0.2, momentum=0.8, dampening=0.5),
    "nesterov": partial(SGD, lr=0.05, momentum=0.9, nesterov=True),
    "adam": partial(Adam, lr=0.01),
    "adamw": partial(AdamW, lr=0.01, weight_decay=0.1),
}
"""One of each kind: what the contract of every mechanism is checked under."""

EXACT: dict[str, Build] = {
    **PLAIN,
    "sgd decay": partial(SGD, lr=0.1, weight_decay=0.3),
    "sgd maximize": partial(SGD, lr=0.01, maximize=True, weight_decay=0.3),
    "sgd foreach": partial(SGD, lr=0.1, foreach=True, weight_decay=0.3),
    "sgd tensor lr": partial(SGD, lr=torch.tensor(0.1)),
    "momentum decay": partial(SGD, lr=0.05, momentum=0.9, weight_decay=0.3),
    "momentum maximize": partial(SGD, lr=0.01, momentum=0.9, maximize=True),
    "momentum foreach": partial(SGD, lr=0.05, momentum=0.9, foreach=True),
    "momentum fused": partial(SGD, lr=0.05, momentum=0.9, fused=True, weight_decay=0.3),
    "nesterov decay": partial(SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.3),
    "nesterov maximize": partial(SGD, lr=0.01, momentum=0.9, nesterov=True, maximize=True),
    "adam decay": partial(Adam, lr=0.01, weight_decay=0.3),
    "adam maximize": partial(Adam, lr=0.01, maximize=True),
    "adam foreach": partial(Adam, lr=0.01, foreach=True),
    "adam fused": partial(Adam, lr=0.01, fused=True, weight_decay=0.3),
    "adam betas": partial(Adam, lr=0.01, betas=(0.0, 0.5), eps=1e-3),
    "adam tensor lr": partial(Adam, lr=torch.tensor(0.01)),
    "adam tensor lr fused": partial(Adam, lr=torch.tensor(0.01), fused=True),
    "amsgrad": partial(Adam, lr=0.01, amsgrad=True),
    "amsgrad fused": partial(Adam, lr=0.01, amsgrad=True, fused=True),
    "adamw foreach": partial(AdamW, lr=0.01, weight_decay=0.1, foreach=True),
    "adamw fused": partial(AdamW, lr=0.01, weight_decay=0.1, fused=True),
    "adamw maximize": partial(AdamW, lr=0.01, weight_decay=0.1, maximize=True),
    "adamw amsgrad": partial(AdamW, lr=0.01, weight_decay=0.1, amsgrad=True),
}
"""Those whose increments are recomputed from the state they leave, in all their forms."""
