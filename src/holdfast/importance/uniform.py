"""The same importance for every weight: the baseline that any measured importance has to beat."""

from __future__ import annotations

import torch
from torch import nn

from holdfast.records import Importance, ImportanceInfo
from holdfast.tensors import check_real, trainable_parameters, unwrap


def uniform(model: nn.Module) -> Importance:
    """All importances one: EWC with it is plain l2 regularisation towards the anchors.

    Args:
        model: any module.

    Returns:
        Name -> float32 ones of the parameter's shape, for all trainable parameters, without unit, of 0 examples.

    Raises:
        UnsupportedLayerError: a parameter is not of real numbers.
    """
    parameters = trainable_parameters(model)
    check_real(parameters, where="uniform")
    ones = {name: torch.ones_like(p, dtype=torch.float32, requires_grad=False) for name, p in parameters.items()}
    return Importance(ones, ImportanceInfo(kind="uniform", num_examples=0, model=type(unwrap(model)).__name__))
