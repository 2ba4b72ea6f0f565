"""Kronecker factors held in bfloat16."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from benchmarks import held as benchmark
from torch import Tensor, nn

from holdfast import EWC, kfac
from holdfast.curvature import KroneckerCurvature, KroneckerFactors
from holdfast.curvature.kronecker import merged
from holdfast.memory import Forms

OUT, IN = 24, 40


def layers(seed: int = 0) -> tuple[KroneckerCurvature, KroneckerCurvature]:
    """The same in float32 and in bfloat16."""
    generator = torch.Generator().manual_seed(seed)
    A, G = (torch.randn(n, n, generator=generator) for n in (IN, OUT))
    wide, _ = merged(None, KroneckerFactors(A @ A.T, G @ G.T, shape=(OUT, IN)))
    narrow = Forms(importance="bfloat16").layer_as(wide)
    assert isinstance(narrow, KroneckerCurvature)
    return wide, narrow


def askew(layer: KroneckerCurvature) -> float:
    """||U^T U - I|| of U_A (x) U_G, at most."""
    errors = []
    for basis in (layer.inputs_basis.double(), layer.outputs_basis.double()):
        errors.append(float(torch.linalg.matrix_norm(basis.T @ basis - torch.eye(len(basis)).double(), ord=2)))
    return (1 + errors[0]) * (1 + errors[1]) - 1


@pytest.mark.parametrize("by_weight", [False, True])
@pytest.mark.parametrize("strength", [1e-3, 1.0, 1e3, 1e12, math.inf])
def test_a_pull_ends_beside_by_no_more_than_the_basis_is_askew(strength: float, by_weight: bool):
    wide, narrow = layers()
    assert 0 < askew(narrow) < 0.02
    d = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(1))
    metric = 0.5 + torch.rand(OUT, IN, generator=torch.Generator().manual_seed(2)) if by_weight else 2.0
    anchor = [torch.zeros(OUT, IN)]
    ends = [d + layer.pull([d], anchor, strength, metrics=[metric], before=None)[0][0] for layer in (wide, narrow)]
    assert float((ends[0] - ends[1]).norm() / d.norm()) <= 2 * askew(narrow) + 1 / 256
    rises = [float(wide.quadratic(end)) for end in (d, ends[1])]
    assert rises[1] <= rises[0]
    if strength == math.inf and not by_weight:
        assert float(ends[1].norm() / d.norm()) <= askew(narrow)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 3))


def data(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(40, 12, generator=generator), torch.randint(0, 3, (40,), generator=generator)


def parts(keeper: EWC) -> list[Tensor]:
    return [part for layer in keeper.held.layers.values() for part in layer.tensors().values()]


@pytest.mark.parametrize("form", ["bfloat16", "int8"])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_training_ends_where_it_ends_with_float32(form, optimizer: type[torch.optim.Optimizer], tmp_path: Path):
    ends = []
    for dtype in ("float32", form):
        model = net()
        start = torch.cat([p.detach().flatten() for p in model.parameters()])
        steps = optimizer(model.parameters(), lr=0.02)  # type: ignore[call-arg]
        keeper = EWC(model, strength=30.0, importance_dtype=dtype, accumulate="per_task").attach(steps)
        for task in range(3):
            keeper.retain(kfac(model, [data(task)]))
            for _ in range(15):
                steps.zero_grad()
                F.cross_entropy(model(data(10 + task)[0]), data(10 + task)[1]).backward()
                steps.step()
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]) - start)
        wanted = torch.float32 if dtype == "float32" else torch.bfloat16
        keeper.save(tmp_path / dtype)
        loaded = EWC.load(tmp_path / dtype, model)
        for part, again in zip(parts(keeper), parts(loaded), strict=True):
            assert part.dtype == wanted
            assert torch.equal(part, again)
        other = "float32" if dtype == form else form
        assert all(part.dtype != wanted for part in parts(EWC.load(tmp_path / dtype, model, importance_dtype=other)))
        assert keeper.predicted_rise() == pytest.approx(loaded.predicted_rise(), rel=1e-3)
    assert float((ends[0] - ends[1]).norm() / ends[0].norm()) < 0.05


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("form", "num_bytes"), [("float32", 4), ("bfloat16", 2)])
def test_it_takes_what_the_arithmetic_says(shared: bool, form: str, num_bytes: int):
    keeper = benchmark.small_keeper(shared=shared, form=form)
    expected = benchmark.expected(benchmark.SMALL, shared=shared, num_bytes=num_bytes)
    assert benchmark.counted(keeper) == pytest.approx(expected)
    assert benchmark.expected(benchmark.LLAMA, shared=True, num_bytes=2) < 2.0
