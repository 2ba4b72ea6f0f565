"""Optimizers that keep weights of their own beside the model's: what is held is not what they save or return to.

Schedule-free optimizers, Lookahead and those with float32 master weights go on from a copy. A pull on the model's
weights changes the copy only in part, or not at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from holdfast.steps.hooks import is_sharpness_aware
from holdfast.tensors import local, some_entries

_COMPARED = 4
"""Parameters that are looked at."""

_NEAR = 0.05
"""Relative distance below which a tensor of the state is taken for a copy of the weights."""

_LOOKS = 16
"""Steps before which the state is looked at."""

_Path = tuple[str, ...]


def weights_of_wrapper(optimizer: Any, bare: Optimizer) -> str | None:
    """Which optimizer around or instead of `bare` has weights of its own, as far as its form tells; None if none has.

    Args:
        optimizer: as it was passed, perhaps a wrapper.
        bare: the optimizer inside it.
    """
    parameters = [p for group in bare.param_groups for p in group["params"]]
    found = None
    for outer in _wrappers(optimizer, bare):
        if is_sharpness_aware(outer):  # its weights are elsewhere only within a step
            continue
        state = getattr(outer, "state", None)
        own = state if isinstance(state, Mapping) and state is not bare.state else {}
        if any(_of_shape(own.get(p), p) for p in parameters[:_COMPARED]):
            found = type(outer).__name__
        if hasattr(outer, "alpha") and hasattr(outer, "k"):  # Lookahead's rate and period
            found = type(outer).__name__
    if found is not None:
        return found
    switches = callable(getattr(bare, "train", None)) and callable(getattr(bare, "eval", None))
    return type(bare).__name__ if switches else None


class Copies:
    """Looks for a copy of the weights that leads a life of its own, in an optimizer's state, groups and attributes.

    Args:
        optimizer: those of `torch.optim` are known to keep none that they return to.
        parameters: that it trains.
    """

    def __init__(self, optimizer: Optimizer, parameters: Sequence[nn.Parameter]) -> None:
        own = type(optimizer).__module__.startswith("torch.optim")
        self._optimizer = optimizer
        self._parameters = [] if own else [p for p in parameters if p.numel() > 1][:_COMPARED]
        self._looks = _LOOKS
        self._seen: dict[tuple[nn.Parameter, _Path], Tensor] = {}

    @torch.no_grad()
    def found(self) -> str | None:
        """Name of the state or attribute that holds it; None for none so far, and after some looks.

        To be asked before a step that comes after a held one. A copy that equals the weights was made of them, and one
        that does not change is only remembered: neither matters.
        """
        if self._looks == 0:
            self._parameters = []
        self._looks -= 1
        for parameter in self._parameters:
            own = {**self._optimizer.state.get(parameter, {}), **self._shared}
            for path, tensor in _tensors_in(own):
                if not _has_shape(tensor, parameter):
                    continue
                before = self._seen.get((parameter, path))
                now = self._seen[parameter, path] = some_entries(tensor)
                if before is not None and not torch.equal(before, now) and _is_near(tensor, local(parameter.detach())):
                    self._looks, self._parameters = 0, []
                    return path[0]
        return None

    @property
    def _shared(self) -> dict[str, Any]:
        """What the optimizer keeps beside the states of single parameters."""
        attributes = {
            key: value for key, value in vars(self._optimizer).items() if key not in ("state", "param_groups")
        }
        groups = [{k: v for k, v in group.items() if k != "params"} for group in self._optimizer.param_groups]
        return attributes | {key: [group.get(key) for group in groups] for group in groups for key in group}


def _is_near(tensor: Tensor, weight: Tensor) -> bool:
    """Whether a tensor of the state is a copy of the weight, not an equal one unless it is wider."""
    wide = local(tensor).to(weight.device).float()
    size, distance = weight.float().norm(), (wide - weight.float()).norm()
    return bool(size > 0) and bool(distance < _NEAR * size) and bool(distance > 0 or tensor.dtype != weight.dtype)


def _wrappers(optimizer: Any, bare: Optimizer) -> Iterator[Any]:
    while optimizer is not None and optimizer is not bare:
        yield optimizer
        optimizer = getattr(optimizer, "optimizer", None)


def _of_shape(state: Any, parameter: Tensor) -> bool:
    """Whether an optimizer's state of this parameter has an entry that could be weights of it."""
    return isinstance(state, Mapping) and any(_has_shape(value, parameter) for value in state.values())


def _has_shape(value: Any, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape and value.is_floating_point()


def _tensors_in(value: Any, path: _Path = ()) -> Iterator[tuple[_Path, Tensor]]:
    """Every tensor in nested maps and lists, with the names and places that lead there."""
    match value:
        case Tensor():
            yield path, value
        case Mapping():
            for place, (key, inner) in enumerate(value.items()):  # a parameter as a key is long to print
                yield from _tensors_in(inner, (*path, key if isinstance(key, str) else str(place)))
        case list() | tuple():
            for place, inner in enumerate(value):
                yield from _tensors_in(inner, (*path, str(place)))
