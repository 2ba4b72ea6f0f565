"""From the sums for factors to the importance: means over the data, and which layers share what they read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from holdfast.curvature.blocks import blocks_of, trace
from holdfast.curvature.factored import FactoredImportance
from holdfast.curvature.kronecker import KroneckerFactors
from holdfast.curvature.owners import LayerElsewhere, cost_of, owners
from holdfast.curvature.together import regrouped
from holdfast.moments.kronecker import KroneckerSums
from holdfast.records import Importance

_SAME = 1e-6
"""What two processes' sums of the same products differ by, relative to the sum of all entries' sizes."""


def factored_importance(
    sums: KroneckerSums, diagonal: Importance, *, num_targets: int, share_inputs: bool, damping: float
) -> FactoredImportance:
    """The factors of all data, with the diagonal of the rest.

    Args:
        sums: finished; the factors take their memory.
        diagonal: of the other parameters.
        num_targets: of all data.
        share_inputs: whether layers that read the same input share a basis of it also where their A differ.
        damping: see `KroneckerFactors.damped`.

    Raises:
        NotFiniteError: a factor is not finite.
        StateError: a factor of another process is not.

    Cost: of a sharded model, factors whose owner changes are sent.
    """
    company = sums.company
    layers, elsewhere = _means(sums, num_targets)
    if company.shards is None:
        same = lambda weight, head: share_inputs or layers[weight].inputs.equal(layers[head].inputs)  # noqa: E731
        layers = _with_reads(layers, _heads(sums.reads, same))
    else:
        prints = _prints(sums, layers)
        alike = lambda weight, head: _agree(prints[weight], prints[head])  # noqa: E731
        heads = _heads(sums.reads, lambda weight, head: share_inputs or alike(weight, head))
        layers = _with_reads(layers, heads)
        elsewhere = {
            name: replace(each, layer=replace(each.layer, reads=heads.get(name))) for name, each in elsewhere.items()
        }
        costs = {layer.weight: cost_of(sums.form(layer)) for layer in sums.layers}
        where = owners(costs, company.size, groups=heads)
        layers, elsewhere = regrouped(layers, elsewhere, where, company.shards)
        for weight, head in heads.items():  # sums of other processes were added in another order, perhaps
            if weight in layers and alike(weight, head):
                layers[weight] = replace(layers[weight], inputs=layers[head].inputs)
    if damping:
        layers = {name: layers.pop(name).damped(damping) for name in list(layers)}
    with company.failing_together():
        found = FactoredImportance(layers, diagonal, diagonal.info, elsewhere=elsewhere, shards=company.shards)
    return found


def _means(
    sums: KroneckerSums, num_targets: int
) -> tuple[dict[str, KroneckerFactors], dict[str, LayerElsewhere[KroneckerFactors]]]:
    """Factors whose products are means over targets: of "matched" ones A is that mean, of the others G.

    They take the memory of the sums. Those of other processes are known by their forms.
    """
    layers: dict[str, KroneckerFactors] = {}
    elsewhere: dict[str, LayerElsewhere[KroneckerFactors]] = {}
    for place, layer in enumerate(sums.layers):
        weight = layer.weight
        if sums.owners[weight] != sums.company.rank:
            elsewhere[weight] = LayerElsewhere(sums.owners[weight], place, sums.form(layer))
            continue
        out, width = layer.matrix_shape
        inputs, outputs = (
            found.pop(weight).taken() if weight in found else sums.zeros(weight, size)
            for found, size in ((sums.totals.inputs, width), (sums.totals.outputs, out))
        )
        if sums.rules.get(weight) == "matched":
            whole = trace(outputs)
            inputs, outputs = inputs.div_(num_targets), outputs.div_(whole.where(whole > 0, 1.0))
        else:
            inputs, outputs = inputs.div_(sums.num_examples), outputs.div_(num_targets)
        layers[weight] = KroneckerFactors(inputs, outputs, **layer.form)
    return layers, elsewhere


def _heads(reads: Mapping[str, str], same: Callable[[str, str], bool]) -> dict[str, str]:
    """What each layer reads where another layer reads that too and has the same A, or is to share it."""
    heads = {weight: head for weight, head in reads.items() if same(weight, head)}
    alike = Counter(heads.values())
    return {weight: head for weight, head in heads.items() if alike[head] > 1}


def _with_reads(layers: Mapping[str, KroneckerFactors], heads: Mapping[str, str]) -> dict[str, KroneckerFactors]:
    return {weight: replace(f, reads=heads.get(weight)) for weight, f in layers.items()}


def _prints(sums: KroneckerSums, layers: Mapping[str, KroneckerFactors]) -> dict[str, list[float]]:
    """Of each layer's A, whichever process has it, a few numbers by which another can be compared with it."""
    own = [_print(layers[layer.weight].inputs) if layer.weight in layers else [0.0] * 3 for layer in sums.layers]
    shards = sums.company.shards
    assert shards is not None
    found = shards.totals([number for numbers in own for number in numbers])
    return {layer.weight: found[3 * place : 3 * place + 3] for place, layer in enumerate(sums.layers)}


def _print(matrix: Tensor) -> list[float]:
    """The sum of all entries' sizes, the trace, and a random combination of the entries."""
    generator = torch.Generator().manual_seed(0)
    total = matrix.new_zeros((), dtype=torch.float64)
    for block in blocks_of(matrix):
        signs = torch.empty(len(block), dtype=torch.float64).uniform_(-1, 1, generator=generator).to(block.device)
        for rows, own in zip(block.split(256), signs.split(256)):  # in float64, of which a whole one takes much memory
            total += own @ (rows.double() @ signs)
    return [float(matrix.abs().sum(dtype=torch.float64)), float(trace(matrix)), float(total)]


def _agree(first: list[float], second: list[float]) -> bool:
    """Whether two matrices with these numbers are the same but for the order in which they were added up."""
    return all(abs(a - b) <= _SAME * max(first[0], second[0]) for a, b in zip(first, second, strict=True))
