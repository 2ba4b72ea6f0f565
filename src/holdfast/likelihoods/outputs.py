"""The tensors inside what a model, or a loss, returned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from holdfast.errors import BatchError, LossShapeError


def logits_of(outputs: Any) -> Tensor:
    """The tensor of predictions in what a model returned.

    That is a tensor itself, `outputs.logits`, `outputs["logits"]`, or the first tensor of a tuple or list that has an
    axis, and so can hold examples: of `(loss, logits)` the second.

    Raises:
        BatchError: there is none of these.
    """
    if isinstance(outputs, Tensor):
        return outputs
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    if isinstance(outputs, tuple | list):
        for item in outputs:
            if isinstance(item, Tensor) and item.ndim:
                return item
    raise BatchError(
        f"outputs: found a {type(outputs).__name__} without logits. Return a tensor or an object with `logits` "
        "from the model, or pass loss= a function of (outputs, batch) that can read it."
    )


def check_per_example(losses: Any, batch_size: int, where: str) -> Tensor:
    """The losses, if they are one per example.

    Raises:
        LossShapeError: they are anything else than a tensor of shape [B], such as the mean over the batch.
    """
    if isinstance(losses, Tensor) and losses.shape == (batch_size,):
        return losses
    found = f"shape {list(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
    mean = " (a mean or sum over the batch)" if isinstance(losses, Tensor) and losses.ndim == 0 else ""
    raise LossShapeError(
        f"{where}: the loss returned {found}{mean}, expected one value per example, shape [{batch_size}]. "
        "Pass reduction='none' to torch's losses, and sum over every axis but the first."
    )


def widened(logits: Tensor) -> Tensor:
    """The tensor in float32 if it was narrower (or of integers), else itself."""
    return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()


def seen_any(flags: Tensor) -> bool:
    """Whether any flag is up, as far as can be seen: inside `vmap` no value can, and the answer is no."""
    try:
        return bool(flags.any())
    except RuntimeError as error:
        if "vmap" not in str(error):
            raise
        return False
