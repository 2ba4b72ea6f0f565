"""Which of a training program's optimizers a keeper is attached to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from holdfast.tensors import trainable_parameters


def training(model: nn.Module, optimizers: Sequence[Any]) -> list[Any]:
    """The optimizers that train some of the model's parameters; all of them where none does, so that attaching says so.

    Args:
        model: the keeper's, perhaps a part of what is trained.
        optimizers: with `param_groups`.
    """
    own = {id(parameter) for parameter in trainable_parameters(model).values()}
    fitting = [o for o in optimizers if any(id(p) in own for group in o.param_groups for p in group["params"])]
    return fitting or list(optimizers)
