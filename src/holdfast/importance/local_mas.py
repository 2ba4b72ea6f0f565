"""Memory aware synapses layer by layer: the Hebbian form."""

from __future__ import annotations

from collections.abc import Sequence
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
from holdfast.moments.company import Company
from holdfast.moments.layers import LayerUse
from holdfast.moments.places import Places
from holdfast.moments.totals import Totals
from holdfast.moments.watching import Watching
from holdfast.tensors import placed, trainable_parameters


def local_sums(model: nn.Module, data_pass: DataPass, *, others: Others, chunk_bytes: int) -> dict[str, Tensor]:
    """Name -> sum over examples of |d ||y||^2 / d theta| within each layer, y = activation(W x + b), x held fixed.

    Raises:
        UnsupportedLayerError: a parameter is used elsewhere and `others="error"`, or a layer's first axis does not hold
            the examples.
    """
    check_count("chunk_bytes", chunk_bytes, where="mas(local=True)")
    check_watchable(model, where="mas(local=True)")
    company = Company(model)
    totals, graph, places = Totals(model, company), False, Places(model, where="mas")
    batches = gathered_batches(data_pass, lambda: places.room(chunk_bytes))
    for batch, counts in company.in_step(batches):
        size, first = batch.call.size, data_pass.seen == batch.call.size
        run = partial(watched_forward, model, activations=True, others=others, where="mas(local=True)", graph=graph)
        run = partial(run, company=company)

        def forward(call: Call, watching: Watching | None = None) -> tuple[list[LayerUse], bool]:
            uses: list[LayerUse] = []
            meet = None if watching is None else watching.meet
            return uses, run(call, uses.append, first=first, meet=meet)  # noqa: B023

        (uses, graph), known = places.run(batch.call, partial(forward, batch.call))
        if known:
            _add_all(totals, uses if counts else (), size if size > 1 else None, chunk_bytes, company)
            continue
        for each in range(company.most(size)):  # alone all rows of a layer are the example's own
            b = min(each, size - 1)
            uses = forward(batch.call.examples(b, b + 1))[0]
            _add_all(totals, uses if counts and each == b else (), None, chunk_bytes, company)
    data_pass.join()
    parameters = trainable_parameters(model)
    return {name: placed(value, parameters[name]) for name, value in totals.kept.items()}


def _add_all(totals: Totals, uses: Sequence[LayerUse], size: int | None, chunk_bytes: int, company: Company) -> None:
    """Add what every use of a layer brings; of a sharded model weight by weight, in the order that all processes have.

    So none has more than one weight's sums whole, and those of the biases.
    """
    if company.is_alone:
        for use in uses:
            _add(totals, size, chunk_bytes, use)
        return
    by_name: dict[str, list[LayerUse]] = {}
    with company.failing_together():
        for use in uses:
            _check(size, use)
            by_name.setdefault(use.weight or use.bias or "", []).append(use)
    weights = company.union(use.weight for use in uses if use.weight is not None)
    for name in totals:
        for use in by_name.get(name, ()):
            _add(totals, size, chunk_bytes, use)
        totals.give([name] if name in weights else [])
    totals.give_rest()


def _check(size: int | None, use: LayerUse) -> None:
    """Raise `UnsupportedLayerError` unless the first axis of a layer's input holds the examples."""
    if size is not None and len(use.input) != size:
        raise UnsupportedLayerError(
            f"mas(local=True): the layer of {use.weight or use.bias!r} has an input of shape {list(use.input.shape)} "
            f"for {size} examples, expected the examples on its first axis. Use mas(local=False)."
        )


def _add(totals: Totals, size: int | None, chunk_bytes: int, use: LayerUse) -> None:
    """Add one use of a layer by B = size examples, or, without a size, by a single one, whose rows these all are."""
    _check(size, use)
    if not len(use.input):
        return
    g = _output_gradient(use)
    by_unit = g.movedim(use.channel_axis, -1).reshape(size or 1, -1, g.shape[use.channel_axis])  # [B, positions, out]
    if use.bias is not None:
        totals[use.bias].add_(by_unit.sum(dim=1).abs().sum(dim=0))
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
    """[B, *kernel]: the weight gradient of each example, whatever the kernel, which `fully_shard` has taken away."""
    kernel = torch.zeros_like(use.kernel)

    def one(x: Tensor, g: Tensor) -> Tensor:
        _, pull, *_ = vjp(lambda kernel: use.apply(x.unsqueeze(0), kernel), kernel)
        return pull(g.unsqueeze(0))[0]

    with torch.no_grad():
        return vmap(one)(x, g)
