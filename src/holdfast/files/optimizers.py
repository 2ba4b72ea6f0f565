"""An optimizer's state as tensors and JSON notes, as checkpoints have it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer


def optimizer_state(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All that an optimizer needs to go on, for a checkpoint: tensors as "index/name", and JSON notes."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}/{name}"] = value
            else:
                numbers.setdefault(str(index), {})[name] = value
    return tensors, {"groups": state["param_groups"], "numbers": numbers}


def load_optimizer_state(optimizer: Optimizer, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
    """Go on from what `optimizer_state` gave."""
    state: dict[int, dict[str, Any]] = {int(index): dict(entries) for index, entries in notes["numbers"].items()}
    for key, tensor in tensors.items():
        index, _, name = key.partition("/")
        state.setdefault(int(index), {})[name] = tensor
    groups = [{**group, **_tuples(group)} for group in notes["groups"]]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def optimizer_states(optimizers: Sequence[Optimizer]) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Those of several, for a checkpoint: the tensors of each under "optimizer0", "optimizer1", ..., and its notes."""
    states = [optimizer_state(optimizer) for optimizer in optimizers]
    tensors = {f"optimizer{i}/{name}": value for i, (found, _) in enumerate(states) for name, value in found.items()}
    return tensors, [told for _, told in states]


def load_optimizer_states(
    optimizers: Sequence[Optimizer], tensors: Mapping[str, Tensor], notes: Sequence[Mapping[str, Any]]
) -> None:
    """Go on from what `optimizer_states` gave; other tensors are passed over."""
    for index, (optimizer, told) in enumerate(zip(optimizers, notes)):
        start = f"optimizer{index}/"
        own = {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
        load_optimizer_state(optimizer, own, told)


def _tuples(group: Mapping[str, Any]) -> dict[str, Any]:
    """Lists back to the tuples that JSON made of them, such as Adam's betas."""
    return {name: tuple(value) for name, value in group.items() if isinstance(value, list) and name != "params"}
