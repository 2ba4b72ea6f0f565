"""A keeper holds layers whose Kronecker factors are in blocks as it holds the same factors as ordinary matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import holdfast as hf
from holdfast.curvature import KroneckerCurvature, blocks

MOST = 4


def full(matrix: Tensor) -> Tensor:
    return torch.block_diag(*blocks.blocks_of(matrix))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 5))


def data(seed: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(40, 6, generator=generator), torch.randint(0, 5, (40,), generator=generator))]


def densely(found: hf.FactoredImportance) -> hf.FactoredImportance:
    """The same, its block-diagonal factors as ordinary matrices."""
    whole = {key: replace(f, inputs=full(f.inputs), outputs=full(f.outputs)) for key, f in found.items()}
    return hf.FactoredImportance(whole, found.diagonal, found.info)


def twins(**options: Any) -> Iterator[tuple[nn.Sequential, hf.EWC, Callable[..., hf.FactoredImportance]]]:
    """A net, its keeper and its estimator: with factors in blocks, and with the same factors as ordinary matrices."""
    for form in (lambda found: found, densely):
        model = net()
        yield (
            model,
            hf.EWC(model, **options),
            lambda model, seed, form=form: form(hf.kfac(model, data(seed), max_size=MOST, damping=0.01)),
        )


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


OPTIMIZERS = {
    "SGD": lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
    "Adam": lambda model: torch.optim.Adam(model.parameters(), lr=0.02),
}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int, *, keeper: hf.EWC | None = None) -> None:
    """With a keeper its penalty is added to the loss."""
    ((x, y),) = data(seed)
    for _ in range(12):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        (loss if keeper is None else loss + keeper.penalty()).backward()
        optimizer.step()


@pytest.mark.parametrize(
    "options",
    [
        {"strength": 30.0},
        {"budget": 0.01},
        {"strength": 30.0, "accumulate": "per_task"},
        {"strength": 30.0, "accumulate": hf.Decayed(0.5)},
        {"strength": 3.0, "pull": "penalty"},
    ],
    ids=str,
)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_is_held_as_by_whole_matrices(optimizer: str, options: dict[str, Any], tmp_path: Path):
    ends, rises = [], []
    for model, keeper, measure in twins(**options):
        keeper.attach(steps := OPTIMIZERS[optimizer](model))
        for task in range(3):
            keeper.retain(measure(model, task))
            train(model, steps, 10 + task, keeper=keeper if "pull" in options else None)
        ends.append(weights(model))
        rises.append(keeper.predicted_rise())
        assert str(keeper.report())
        layers = keeper.held.layers
        assert all(isinstance(layer, KroneckerCurvature) for layer in layers.values())
        keeper.save(tmp_path / "keeper")
        loaded = hf.EWC.load(tmp_path / "keeper", model)
        for key, layer in layers.items():
            for part, tensor in layer.tensors().items():
                assert torch.equal(loaded.held.layers[key].tensors()[part], tensor)
        assert loaded.predicted_rise() == pytest.approx(rises[-1])
    moved = weights(net())
    assert float((ends[0] - ends[1]).norm()) < 2e-3 * float((ends[0] - moved).norm())
    assert rises[0] == pytest.approx(rises[1], rel=0.02)


@pytest.mark.parametrize("with_new", [False, True])
def test_the_way_back_is_that_of_whole_matrices(with_new: bool):
    ends = []
    for model, keeper, measure in twins(budget=0.01):
        keeper.retain(measure(model, 0))
        train(model, OPTIMIZERS["SGD"](model), 11)
        assert keeper.predicted_rise() > 0.01
        keeper.rewind(importance=measure(model, 1) if with_new else None)
        assert keeper.predicted_rise() <= 0.0101
        ends.append(weights(model))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("form", ["bfloat16", "int8"])
def test_narrow_forms_hold_about_the_same(form: Any):
    ends = []
    for dtype in ("float32", form):
        model = net()
        keeper = hf.EWC(model, strength=30.0, importance_dtype=dtype).attach(steps := OPTIMIZERS["SGD"](model))
        keeper.retain(hf.kfac(model, data(0), max_size=MOST))
        train(model, steps, 10)
        ends.append(weights(model))
    assert float((ends[0] - ends[1]).norm()) < 0.05 * float((ends[0] - weights(net())).norm())


def test_value_anchored_mechanisms_take_its_diagonal():
    model = net()
    found = hf.kfac(model, data(0), max_size=MOST)
    keeper = hf.WVA(model, strength=1.0).attach(steps := OPTIMIZERS["SGD"](model))
    keeper.retain(found.to_diagonal())
    train(model, steps, 10)
    assert torch.isfinite(weights(model)).all()


def test_a_task_measured_in_other_blocks_joins():
    model = net()
    keeper = hf.EWC(model, strength=1.0).retain(hf.kfac(model, data(0), max_size=MOST))
    once = keeper.held.layers["0.weight"].spectrum.sum()
    keeper.retain(hf.kfac(model, data(1)))
    assert keeper.held.layers["0.weight"].tensors()["inputs_basis"].shape == (7, MOST)
    assert keeper.held.layers["0.weight"].spectrum.sum() > once
