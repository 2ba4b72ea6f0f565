"""A 6 and A 7: what the importances say of one trained net: how they rank its weights, and which it can do without."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from holdfast.importance import SynapticIntelligence, fisher, mas, signal, taylor
from holdfast.lab.streams import Examples
from holdfast.lab.streams.catalog import build_stream
from holdfast.lab.tables import Estimate
from holdfast.lab.training import accuracy, build_net, build_optimizer, train_epoch
from holdfast.tensors import spearman
from recipes.curve import AUTHORS
from recipes.findings import Recipe, RecipeFindings, percent
from recipes.lines import Size
from recipes.pictures import Series, correlations, curves

SHARES = (0.0, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
_NAMES = ("Fisher", "MAS", "SI", "signal", "Taylor", "magnitude")
_PRUNED_TO = 0.8


def correlation(size: Size) -> Recipe:
    """The recipe of A 6."""
    return Recipe(
        name="correlation",
        title="Rank correlation of the importances",
        question="Do the importances rank the weights of a trained net alike, layer by layer?",
        source=AUTHORS,
        claim="",
        size=size,
        conclude=_conclude_ranks,
        draw=_draw_ranks,
        measure=partial(_ranks, size),
        measure_seeds=size.num_seeds(3),
        measure_seconds=20.0 if size.name == "full" else 2.0,
        notes=_NOTES + " Spearman's correlation over the weights of a layer; biases are left out.",
    )


def pruning(size: Size) -> Recipe:
    """The recipe of A 7."""
    return Recipe(
        name="pruning",
        title="Pruning by importance",
        question="How does accuracy fall as the weights of least importance are removed?",
        source=AUTHORS,
        claim="",
        size=size,
        conclude=_conclude_pruning,
        draw=_draw_pruning,
        measure=partial(_pruned, size),
        measure_seeds=size.num_seeds(3),
        measure_seconds=25.0 if size.name == "full" else 2.0,
        notes=_NOTES + " The same share of every layer's weights is set to zero; biases stay; no training after.",
    )


_NOTES = (
    "A net of the protocol of part A, trained on its first task alone; importances on the validation images, SI along "
    "the training path."
)


def trained(size: Size, seed: int, data_dir: str | None) -> tuple[nn.Module, Examples, dict[str, dict[str, Tensor]]]:
    """A net trained on the first task, its test examples, and every importance of its layers' weights, by name."""
    config = size.config("permuted", "none")
    stream = build_stream(config.stream, num_tasks=1, seed=seed, data_dir=data_dir)
    task = stream[0]
    net = build_net(config.net, stream.input_shape, 10, hidden=config.hidden, slope=config.slope, seed=seed)
    optimizer = build_optimizer(config.optimizer, net.parameters(), lr=config.lr)
    path = SynapticIntelligence(net).attach(optimizer)
    for epoch in range(config.epochs):
        train_epoch(net, optimizer, task.train, batch_size=config.batch_size, seed=1000 * seed + epoch)
    path.detach()
    measured: dict[str, Mapping[str, Tensor]] = {
        "Fisher": fisher(net, task.validation),
        "MAS": mas(net, task.validation),
        "SI": path.importance(),
        "signal": signal(net, task.validation),
        "Taylor": taylor(net, task.validation),
        "magnitude": {name: weight.detach().abs() for name, weight in net.named_parameters()},
    }
    layers = [name for name, weight in net.named_parameters() if weight.ndim > 1]
    return net, task.test, {name: {layer: values[layer] for layer in layers} for name, values in measured.items()}


def prune(net: nn.Module, importance: Mapping[str, Tensor], share: float) -> None:
    """Set the share of each layer's weights that matters least to zero."""
    parameters = dict(net.named_parameters())
    with torch.no_grad():
        for layer, values in importance.items():
            least = values.flatten().argsort()[: round(share * values.numel())]
            parameters[layer].view(-1)[least] = 0.0


def _ranks(size: Size, seed: int, data_dir: str | None) -> dict[str, Any]:
    _, _, importances = trained(size, seed, data_dir)
    layers = list(importances["Fisher"])
    return {
        "layers": {
            layer: [[round(spearman(importances[a][layer], importances[b][layer]), 4) for b in _NAMES] for a in _NAMES]
            for layer in layers
        }
    }


def _pruned(size: Size, seed: int, data_dir: str | None) -> dict[str, Any]:
    net, test, importances = trained(size, seed, data_dir)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    layers = importances["Fisher"]
    generator = torch.Generator().manual_seed(seed)
    importances["random"] = {layer: torch.rand(layers[layer].shape, generator=generator) for layer in layers}
    curve: dict[str, list[float]] = {}
    for name, importance in importances.items():
        curve[name] = []
        for share in SHARES:
            prune(net, importance, share)
            curve[name].append(round(accuracy(net, test), 4))
            net.load_state_dict(before)
    return {"shares": list(SHARES), "accuracy": curve}


def _mean_ranks(findings: RecipeFindings) -> dict[str, np.ndarray]:
    """Layer -> the mean over nets of the matrix of correlations."""
    entries = list(findings.measured.values())
    return {layer: np.mean([entry["layers"][layer] for entry in entries], axis=0) for layer in entries[0]["layers"]}


def _conclude_ranks(findings: RecipeFindings) -> str:
    matrix = np.mean(list(_mean_ranks(findings).values()), axis=0)
    pairs = [(matrix[i, j], a, b) for i, a in enumerate(_NAMES) for j, b in enumerate(_NAMES) if i < j]
    (high, *most), (low, *least) = max(pairs), min(pairs)
    others = ", ".join(f"{name} {matrix[0, number]:.2f}" for number, name in enumerate(_NAMES) if number)
    return (
        f"Over all layers of {len(findings.measured)} nets, {' and '.join(most)} agree most ({high:.2f}) and "
        f"{' and '.join(least)} least ({low:.2f}). With Fisher: {others}."
    )


def _draw_ranks(findings: RecipeFindings, folder: Path) -> list[Path]:
    layers = {f"layer {number}": m for number, m in enumerate(_mean_ranks(findings).values(), start=1)}
    remark = f"Spearman's, mean over {len(findings.measured)} nets trained on one task"
    path = folder / "correlation.png"
    return [correlations(layers, _NAMES, path, title=findings.recipe.title, remark=remark)]


def _kept(findings: RecipeFindings) -> dict[str, list[Estimate]]:
    """Name -> the accuracy at each share."""
    entries = [entry["accuracy"] for entry in findings.measured.values()]
    return {name: [Estimate.of(values) for values in zip(*(entry[name] for entry in entries))] for name in entries[0]}


def _conclude_pruning(findings: RecipeFindings) -> str:
    place, kept = SHARES.index(_PRUNED_TO), _kept(findings)
    order = sorted(kept, key=lambda name: -kept[name][place].mean)
    told = ", ".join(f"{name} {percent(kept[name][place])}" for name in order)
    whole = percent(next(iter(kept.values()))[0])
    nets = len(findings.measured)
    return f"Whole, {nets} nets reach {whole}%. With {100 * _PRUNED_TO:.0f}% of the weights removed: {told}."


def _draw_pruning(findings: RecipeFindings, folder: Path) -> list[Path]:
    series = [Series(name, [100 * share for share in SHARES], values) for name, values in _kept(findings).items()]
    return [
        curves(
            series,
            folder / "pruning.png",
            title=findings.recipe.title,
            remark=f"mean and 95% interval over {len(findings.measured)} nets trained on one task",
            across="weights removed from every layer, %",
            up="test accuracy",
        )
    ]
