"""The two forms of a batch, read in one place.

A batch is `(inputs, targets)`, where inputs are a tensor, a tuple or a mapping of tensors, or it is one
mapping as Hugging Face models take it. The first axis of every tensor in it holds the examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdfast.errors import BatchError

_FORMS = (
    "Pass (inputs, targets), inputs being a tensor, a tuple or a mapping of tensors, or one mapping such as "
    "{'input_ids': ..., 'labels': ...}."
)


def batch_size(batch: Any) -> int:
    """The number of examples in a batch: the length that the first axes of its tensors share.

    Args:
        batch: a tree (tuples, lists, mappings) with at least one tensor; leaves of other types do not count.

    Raises:
        BatchError: there is no tensor, one has no axis, or the lengths differ.
    """
    tensors = list(_tensors(batch))
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if not tensors:
        raise BatchError(f"batch: found no tensor in {_describe(batch)}. {_FORMS}")
    if () in shapes or len({shape[0] for shape in shapes}) > 1:
        raise BatchError(
            f"batch: found tensors of shapes {shapes}, expected one first axis, the examples, in all of them."
        )
    return shapes[0][0]


def model_inputs(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and the keyword arguments that a model is called with on a batch.

    Of `(inputs, targets)` a tensor becomes `model(inputs)`, a tuple or list `model(*inputs)`, a mapping
    `model(**inputs)`. A batch that is itself a mapping becomes `model(**batch)`, labels included.

    Raises:
        BatchError: the batch has neither form.
    """
    if isinstance(batch, Mapping):
        return (), dict(batch)
    inputs, _ = _pair(batch)
    if isinstance(inputs, Tensor):
        return (inputs,), {}
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, tuple | list):
        return tuple(inputs), {}
    raise BatchError(f"batch: found inputs of type {type(inputs).__name__}. {_FORMS}")


def targets_of(batch: Any) -> Tensor:
    """The targets of a batch: the second of `(inputs, targets)`, or the mapping's `labels`.

    Raises:
        BatchError: the batch has neither form, or its targets are not a tensor.
    """
    targets = batch.get("labels") if isinstance(batch, Mapping) else _pair(batch)[1]
    if not isinstance(targets, Tensor):
        raise BatchError(
            f"batch: found no tensor of targets in {_describe(batch)}. "
            "Pass (inputs, targets) or a mapping with 'labels'."
        )
    return targets


def slice_batch(batch: Any, start: int, stop: int, *, lists: bool = False) -> Any:
    """Examples `start` to `stop` (exclusive) of a batch, as views, in a tree of the same form.

    Args:
        batch: a tree.
        start: the first example.
        stop: the first that is left out.
        lists: whether arrays and lists with an entry for each example are cut as well.
    """
    return next(batch_readings(batch, start, stop)) if lists else _map(lambda tensor: tensor[start:stop], batch)


def batch_readings(batch: Any, start: int, stop: int) -> Iterator[Any]:
    """What examples `start` to `stop` (exclusive) of a batch may be, beside its tensors.

    First with every array, and every list or tuple without tensors in it, that has an entry an example cut as the
    tensors are. A list may have as many entries as there are examples by chance: then again with such lists whole.
    """
    size = batch_size(batch)
    cut: list[Any] = []

    def entry(value: Any, *, whole: bool) -> Any:
        if isinstance(value, Tensor) or (isinstance(value, np.ndarray) and value.ndim and len(value) == size):
            return value[start:stop]
        if isinstance(value, Mapping):
            return {key: entry(item, whole=whole) for key, item in value.items()}
        if not isinstance(value, tuple | list):
            return value
        if len(value) == size and next(_tensors(value), None) is None and not hasattr(value, "_fields"):
            cut.append(value)
            return value if whole else value[start:stop]
        items = [entry(item, whole=whole) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)

    yield entry(batch, whole=False)
    if cut:
        yield entry(batch, whole=True)


def has_opaque_entries(batch: Any) -> bool:
    """Whether a batch holds objects of which nobody knows what belongs to which example."""
    if isinstance(batch, Mapping):
        return any(map(has_opaque_entries, batch.values()))
    if isinstance(batch, tuple | list):
        return any(map(has_opaque_entries, batch))
    return not isinstance(batch, Tensor | np.ndarray | str | bytes | int | float | complex | None)


def batch_to(batch: Any, device: torch.device | str) -> Any:
    """The batch with every tensor on `device`, in a tree of the same form."""
    return _map(lambda tensor: tensor.to(device), batch)


def batch_copied(batch: Any) -> Any:
    """The batch with a copy of every tensor, without gradients, in a tree of the same form."""
    return _map(lambda tensor: tensor.detach().clone(), batch)


def _pair(batch: Any) -> tuple[Any, Any]:
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return batch[0], batch[1]
    if isinstance(batch, tuple | list) and len(batch) == 3:
        raise BatchError(
            f"batch: found {_describe(batch)}, expected (inputs, targets). Leave the third out: [(x, y) for x, y, _ in "
            "data]; or where the model takes it: [((x, t), y) for x, y, t in data]."
        )
    raise BatchError(f"batch: found {_describe(batch)}. {_FORMS}")


def _map(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """The tree with `function` applied to its tensors; mappings come back as plain dicts."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, Mapping):
        return {key: _map(function, value) for key, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(_map(function, value) for value in tree))
    if isinstance(tree, tuple | list):
        return type(tree)(_map(function, value) for value in tree)
    return tree


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping | tuple | list):
        for value in tree.values() if isinstance(tree, Mapping) else tree:
            yield from _tensors(value)


def _describe(batch: Any) -> str:
    if isinstance(batch, Mapping):
        return f"a mapping with {', '.join(map(repr, batch)) or 'nothing in it'}"
    if isinstance(batch, tuple | list):
        return f"a {type(batch).__name__} of ({', '.join(type(item).__name__ for item in batch)})"
    return f"a {type(batch).__name__}"
