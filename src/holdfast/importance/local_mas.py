"""Memory aware synapses layer by layer: the Hebbian form."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.func import vjp, vmap

from holdfast.choices import check_count
from holdfast.errors import UnsupportedLayerError
from holdfast.importance.gathering import gathered_batches
from holdfast.importance.layerwise import Others, check_watchable, watched_forward
from holdfast.importance.measure import DataPass
from holdfast.moments.calls import Call
from holdfast.moments.gradients import zeros
from holdfast.moments.layers import LayerUse
from holdfast.moments.places import Places
from holdfast.moments.watching import Watching


def local_sums(model: nn.Module, data_pass: DataPass, *, others: Others, chunk_bytes: int) -> dict[str, Tensor]:
    """Name -> sum over examples of |d ||y||^2 / d theta| within each layer, y = activation(W x + b), x held fixed.

    Raises:
        UnsupportedLayerError: a parameter is used elsewhere and `others="error"`, or a layer's first axis does not hold
            the examples.
    """
    check_count("chunk_bytes", chunk_bytes, where="mas(local=True)")
    check_watchable(model, where="mas(local=True)")
    totals, graph, places = zeros(model), False, Places(model, where="mas")
    for batch in gathered_batches(data_pass, lambda: places.room(chunk_bytes)):
        size, first = batch.call.size, data_pass.seen == batch.call.size
        run = partial(watched_forward, model, activations=True, others=others, where="mas(local=True)", graph=graph)

        def forward(call: Call, watching: Watching | None = None) -> tuple[list[LayerUse], bool]:
            uses: list[LayerUse] = []
            meet = None if watching is None else watching.meet
            return uses, run(call, uses.append, first=first, meet=meet)  # noqa: B023

        (uses, graph), known = places.run(batch.call, partial(forward, batch.call))
        if known:
            for use in uses:
                _add(totals, size if size > 1 else None, chunk_bytes, use)
            continue
        for b in range(size):  # alone all rows of a layer are the example's own
            for use in forward(batch.call.examples(b, b + 1))[0]:
                _add(totals, None, chunk_bytes, use)
    return totals


def _add(totals: dict[str, Tensor], size: int | None, chunk_bytes: int, use: LayerUse) -> None:
    """Add one use of a layer by B = size examples, or, without a size, by a single one, whose rows these all are."""
    if size is not None and len(use.input) != size:
        raise UnsupportedLayerError(
            f"mas(local=True): the layer of {use.weight or use.bias!r} has an input of shape {list(use.input.shape)} "
            f"for {size} examples, expected the examples on its first axis. Use mas(local=False)."
        )
    if not len(use.input):
        return
    g = _output_gradient(use)
    by_unit = g.movedim(use.channel_axis, -1).reshape(size or 1, -1, g.shape[use.channel_axis])  # [B, positions, out]
    if use.bias is not None:
        totals[use.bias] += by_unit.sum(dim=1).abs().sum(dim=0)
    if use.weight is None:
        return
    total = totals[use.weight]
    if size is None:
        if use.convolves:
            total += _kernel_gradients(use, use.input, g).sum(dim=0).abs()
        else:
            total += (by_unit[0].mT @ use.input.reshape(-1, use.input.shape[-1])).abs()
        return
    if not use.convolves and use.input.ndim == 2:
        total += g.abs().T @ use.input.abs()
        return
    chunk = max(1, chunk_bytes // (4 * total.nbytes))
    for start in range(0, size, chunk):
        x, some = use.input[start : start + chunk], slice(start, start + chunk)
        if use.convolves:
            products = _kernel_gradients(use, x, g[some])
        else:
            products = by_unit[some].mT @ x.reshape(len(x), -1, x.shape[-1])
        total += products.abs().sum(dim=0)


def _output_gradient(use: LayerUse) -> Tensor:
    """Gradient d ||y||^2 / d z, of the layer's output z's shape; 2 y for ReLU."""
    with torch.enable_grad():
        z = use.output.requires_grad_()
        y = z if use.activation is None else use.activation(z)
        return torch.autograd.grad(y.square().sum(), z)[0]


def _kernel_gradients(use: LayerUse, x: Tensor, g: Tensor) -> Tensor:
    """[B, *kernel]: the weight gradient of each example."""

    def one(x: Tensor, g: Tensor) -> Tensor:
        _, pull, *_ = vjp(lambda kernel: use.apply(x.unsqueeze(0), kernel), use.kernel)
        return pull(g.unsqueeze(0))[0]

    with torch.no_grad():
        return vmap(one)(x, g)
