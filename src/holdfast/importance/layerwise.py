"""A forward pass of which only Linear and convolution layers are looked at, and what to say of other parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from contextlib import nullcontext
from typing import Literal

import torch
from torch import nn

from holdfast.errors import UnsupportedLayerError
from holdfast.moments.calls import Call
from holdfast.moments.company import Company
from holdfast.moments.layers import LayerRecorder, LayerUse
from holdfast.tensors import unwrap

Others = Literal["error", "zero"]
"""What becomes of parameters outside Linear and convolution layers: an error, or zero importance."""


def watched_forward(
    model: nn.Module,
    call: Call,
    record: Callable[[LayerUse], None],
    *,
    activations: bool,
    others: Others,
    where: str,
    first: bool,
    graph: bool = False,
    meet: Callable[[], None] | None = None,
    company: Company | None = None,
) -> bool:
    """Run the model on a batch and record its layers; on the first batch also look for parameters used out of sight.

    `meet` is called at every layer as it comes, where `record` may have to wait for the activation. A sharded model has
    its `company`.

    Returns:
        Whether the forward pass takes gradients itself: later batches need `graph=True` then.

    Raises:
        UnsupportedLayerError: with `others="error"`, parameters are used by something else than these layers.
    """
    recorder = LayerRecorder(model, record, activations=activations, meet=meet)
    following = nullcontext() if company is None else company.following(recorder)
    with torch.set_grad_enabled(first or graph), following, recorder:
        outputs = call(unwrap(model))
    if company is not None:
        company.rest()
    recorder.finish(outputs)
    check_elsewhere(recorder.elsewhere, others=others, where=where)
    return recorder.differentiates


def check_watchable(model: nn.Module, *, where: str) -> None:
    """Raise `UnsupportedLayerError` where a part of the model is TorchScript, of which no function can be seen."""
    scripted = [name for name, module in unwrap(model).named_modules() if isinstance(module, torch.jit.ScriptModule)]
    if scripted:
        named = ", ".join(repr(name) for name in scripted if name) or type(unwrap(model)).__name__
        raise UnsupportedLayerError(
            f"{where}: no layer can be seen inside TorchScript: {named}. Measure the model before it is scripted or "
            "traced (its parameters keep their names), or use another estimator, such as fisher."
        )


def check_elsewhere(elsewhere: Mapping[str, Set[str]], *, others: Others, where: str) -> None:
    """Raise `UnsupportedLayerError` listing every parameter that a function other than a layer consumed."""
    if others == "zero" or not elsewhere:
        return
    listed = ", ".join(f"{name!r} (by {' and '.join(sorted(users))})" for name, users in elsewhere.items())
    count = f"{len(elsewhere)} parameter{' is' if len(elsewhere) == 1 else 's are'}"
    raise UnsupportedLayerError(
        f"{where}: {count} used by something else than a Linear or convolution layer, where it has no meaning: "
        f"{listed}. Pass others='zero' to give that use no importance (what is used nowhere else is then "
        "unprotected), freeze them with requires_grad_(False), or use another estimator, such as fisher."
    )
