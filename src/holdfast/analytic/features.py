"""The features of a network: what its head is given."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.errors import BatchError, OptionError, StateError
from holdfast.likelihoods.batches import batch_to, model_inputs, targets_of
from holdfast.probes.evaluating import evaluating
from holdfast.tensors import unwrap, wide_dtype


def features_of(model: nn.Module, data: Iterable[Any], *, layer: str | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """The features of examples with their labels, batch by batch: what the model's head is given.

    The model is asked in evaluation mode, without gradients, and left as it was after each batch. Of a backbone without
    a head no help is needed: its outputs are the features.

    Args:
        model: with a head.
        data: batches, `(inputs, labels)` or mappings with `labels`, on any device.
        layer: name of the head, as in `named_modules`; None: the last module, in order of definition, that has
            parameters of its own.

    Yields:
        Features, float32 or wider [B, d], on the model's device, and labels [B] as the data have them.

    Raises:
        OptionError: the model has no such layer, or none with parameters.
        StateError: the layer is not called once in a forward pass.
        BatchError: a batch has no labels, or the layer is given something else than [B, d].

    Cost: one forward pass, with a copy of the model's buffers a batch.
    """
    head = head_of(unwrap(model), layer)
    for batch in data:
        with evaluating(model) as bare:
            args, kwargs = model_inputs(batch_to(batch, _device(bare)))
            features = given_to(head, bare, *args, **kwargs)
        yield features.to(wide_dtype(features)), targets_of(batch)


def head_of(model: nn.Module, layer: str | None = None) -> nn.Module:
    """The module of that name, or the last one, in order of definition, that has parameters of its own.

    Raises:
        OptionError: there is none.
    """
    if layer is not None:
        found = dict(model.named_modules())
        if layer not in found:
            names = ", ".join([name for name in found if name][-8:])
            raise OptionError(f"features: {type(model).__name__} has no layer {layer!r}; its last ones are {names}.")
        return found[layer]
    own = [module for module in model.modules() if any(True for _ in module.parameters(recurse=False))]
    if not own:
        raise OptionError(
            f"features: {type(model).__name__} has no layer with parameters. Use its outputs as they are."
        )
    return own[-1]


def given_to(head: nn.Module, model: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
    """What a head is given in a forward pass of its model, [B, d].

    Raises:
        StateError: it is not called once.
        BatchError: it is given something else.
    """
    given: list[Any] = []
    handle = head.register_forward_pre_hook(
        lambda _, args, kwargs: given.append([*args, *kwargs.values()]), with_kwargs=True
    )
    try:
        model(*args, **kwargs)
    finally:
        handle.remove()
    kind = type(head).__name__
    if len(given) != 1:
        raise StateError(
            f"features: the layer {kind} is called {len(given)} times in a forward pass; expected once. Name the head: "
            "layer=..."
        )
    features = given[0][0] if given[0] else None
    if not isinstance(features, Tensor) or features.ndim != 2:
        found = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise BatchError(
            f"features: the layer {kind} is given {found}; expected [B, d], a row an example. Name a layer after the "
            "pooling: layer=..."
        )
    return features.detach()


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
