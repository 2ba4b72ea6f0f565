"""Differentiation that a model's forward pass does itself, beside which nothing can be seen or covered."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad


def transformed() -> bool:
    """Whether a transform of `torch.func` or forward-mode differentiation is at work.

    Tensors are then not what they seem: their values may hold other examples or tangents, and must not be kept.
    """
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
