"""Made-up tasks: the old inputs in another arrangement, which a network has not learned and can learn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from holdfast.likelihoods.categorical import IGNORED

_AS_THEY_ARE = ("mask", "position", "token_type", "length")
"""Inputs with one of these in their name say how the others are to be read."""

WeightChange = Callable[[str, Tensor], Tensor]


def made_up(batches: Sequence[Any], *, seed: int) -> list[Any]:
    """The same batches as another task: new inputs for the same answers.

        real numbers     one permutation of an example's features
        whole numbers    one permutation of those that occur, such as the tokens of a text
        targets          the same permutation where they are the inputs' own tokens, as a causal model's are; else as
                         they are

    Truth values, whole numbers that are 0 and 1 alone, and inputs named as masks, positions, token types or lengths
    stay as they are.

    Args:
        batches: `(inputs, targets)`, or mappings with "labels"; the first axis holds the examples.
        seed: of the permutations, which are the same in every batch.

    Returns:
        New batches of the same form, on the same devices. What is not permuted is shared with the old ones.
    """
    occurring: set[int] = set()

    def note(path: str, value: Tensor) -> Tensor:
        if _is_arranged(path, value) and not value.is_floating_point():
            occurring.update(value.unique().tolist())
        return value

    for batch in batches:
        _each("", _inputs(batch), note)
    ids = torch.tensor(sorted(occurring))
    others = ids[_permutation(len(ids), seed)]

    def renamed(value: Tensor) -> Tensor:
        old = value.cpu().contiguous()
        places = torch.searchsorted(ids, old).clamp(max=len(ids) - 1)
        return torch.where(ids[places] == old, others[places], old).to(value)

    def arranged(path: str, value: Tensor) -> Tensor:
        if not _is_arranged(path, value):
            return value
        if not value.is_floating_point():
            return renamed(value)
        flat = value.flatten(1)
        return flat[:, _permutation(flat.shape[1], seed).to(value.device)].view_as(value)

    def of(batch: Any) -> Any:
        inputs, targets = _inputs(batch), batch["labels"] if isinstance(batch, Mapping) else batch[1]
        if _are_tokens(targets, inputs):
            targets = torch.where(targets == IGNORED, targets, renamed(targets))
        inputs = _each("", inputs, arranged)
        return {**inputs, "labels": targets} if isinstance(batch, Mapping) else (inputs, targets)

    return [of(batch) for batch in batches]


def _permutation(length: int, seed: int) -> Tensor:
    return torch.randperm(length, generator=torch.Generator().manual_seed(seed))


def _inputs(batch: Any) -> Any:
    return {k: v for k, v in batch.items() if k != "labels"} if isinstance(batch, Mapping) else batch[0]


def _is_arranged(path: str, value: Tensor) -> bool:
    if any(word in path for word in _AS_THEY_ARE) or value.ndim < 2:
        return False
    if value.is_floating_point():
        return value[0].numel() > 1
    return value.dtype != torch.bool and bool(((value != 0) & (value != 1)).any())


def _are_tokens(targets: Any, inputs: Any) -> bool:
    """Whether most labels are the input token of their own position, or of the next."""
    if not isinstance(targets, Tensor) or targets.is_floating_point():
        return False
    found: list[Tensor] = []
    _each("", inputs, lambda _, value: found.append(value) or value)
    ids = next((value for value in found if value.shape == targets.shape and not value.is_floating_point()), None)
    if ids is None or targets.ndim != 2:
        return False
    counts = targets != IGNORED
    own = (counts & (targets == ids)).sum()
    following = (counts[:, :-1] & (targets[:, :-1] == ids[:, 1:])).sum()
    return bool(2 * torch.maximum(own, following) > counts.sum())


def _each(path: str, tree: Any, change: WeightChange) -> Any:
    """The tree with its tensors changed; a change is told where a tensor stands."""
    if isinstance(tree, Tensor):
        return change(path, tree)
    if isinstance(tree, Mapping):
        return {name: _each(f"{path}/{name}", value, change) for name, value in tree.items()}
    if isinstance(tree, tuple | list):
        items = [_each(f"{path}/{place}", value, change) for place, value in enumerate(tree)]
        return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)
    return tree
