"""The memory of a forward and backward pass, told without making it: on the meta device, from shapes alone."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def pass_bytes(model: nn.Module, loss: Callable[[nn.Module], Tensor]) -> int:
    """The most that a forward and a backward pass take beside weights and gradients.

    Each gradient counts until it is whole, as the largest of them does while it is made. Attention never writes its
    scores to memory, as flash attention.

    Args:
        model: on the meta device.
        loss: from the model to a scalar. Where it looks at values it finds zeros.

    Returns:
        Bytes of what is in use at once, intermediate results of single operations included.

    Cost: that of dispatching every operation once; no memory and no arithmetic.
    """
    live = LiveBytes(model)
    with _dropped_gradients(model), live, FlashAttention():
        loss(model).backward()
    return live.peak


@contextmanager
def _dropped_gradients(model: nn.Module) -> Iterator[None]:
    """Inside, a gradient goes as soon as it is whole."""

    def drop(parameter: Tensor) -> None:
        parameter.grad = None

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    handles = [parameter.register_post_accumulate_grad_hook(drop) for parameter in trained]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class FlashAttention(TorchFunctionMode):
    """Inside, attention is without scores in memory, as torch takes it on every device but this one."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        if func is not F.scaled_dot_product_attention or len(args) != 3:
            return func(*args, **given)
        query, key, value = args
        times = query.shape[-3] // key.shape[-3]
        if times > 1:  # queries share keys and values, which a kernel reads where they are
            key, value = (tensor.repeat_interleave(times, dim=-3) for tensor in (key, value))
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return flash(query, key, value, 0.0, bool(given.get("is_causal")))[0]


class LiveBytes(TorchDispatchMode):
    """Counts the memory of all tensors that operations return, as long as these live; a model's own is left out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.now = self.peak = 0
        own = [tensor.untyped_storage() for tensor in (*model.parameters(), *model.buffers())]
        self._known: dict[int, object] = {id(storage): storage for storage in own}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return 0  # there is no value
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return found

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._known:
            return

        def gone(_: object) -> None:
            self.now -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)
