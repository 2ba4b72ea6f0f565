"""Block-diagonal matrices, and layers whose Kronecker factors are such, against dense algebra."""

from __future__ import annotations

from dataclasses import replace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from holdfast.curvature import KroneckerCurvature, KroneckerFactors, blocks, relative
from holdfast.curvature.files import layers_from, layers_to_json, layers_to_tensors
from holdfast.curvature.kronecker import merged
from holdfast.curvature.sharing import held_in, joined_layers
from holdfast.errors import FileFormatError

OUT, IN, MOST = 7, 9, 4  # with a bias 10 inputs in three blocks of 3, 3 and 4, and 7 outputs in two of 3 and 4


def full(matrix: Tensor) -> Tensor:
    """[n, n]."""
    return torch.block_diag(*blocks.blocks_of(matrix))


def random(size: int, most: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return blocks.reblocked(matrix, blocks.block_width(size, most))


@given(st.integers(1, 60), st.integers(1, 70))
def test_as_few_and_equal_blocks_as_can_be(size: int, most: int):
    width = blocks.block_width(size, most)
    sizes = [rows.stop - rows.start for rows in blocks.spans(size, width)]
    assert len(sizes) == -(-size // most)
    assert max(sizes) == width <= most
    assert min(sizes) >= width - 1
    assert sum(sizes) == size
    assert blocks.fits((size, width), size)


@pytest.mark.parametrize("shape", [(10, 0), (10, 9), (10, 11), (9, 9), (10, 4, 1), (10,)])
def test_other_shapes_hold_none(shape: tuple[int, ...]):
    assert not blocks.fits(shape, 10)
    assert blocks.fits((10, 10), 10)
    assert blocks.fits((10, 4), 10)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 13), st.integers(1, 13))
def test_what_is_done_with_them_is_what_is_done_with_the_whole_matrix(n: int, m: int, most: int, other: int):
    U, F, L = random(n, most), random(n, most, 1), random(m, other, 2)
    X = torch.randn(m, n, dtype=torch.float64)
    v = torch.rand(n, dtype=torch.float64)
    close = torch.testing.assert_close
    close(full(blocks.of_blocks(blocks.blocks_of(U))), full(U))
    close(full(blocks.blockwise(torch.matmul, U, F)), full(U) @ full(F))
    close(blocks.diagonal(U), full(U).diagonal())
    close(blocks.trace(U), full(U).trace())
    close(blocks.squares(U), full(U).square().sum(0))
    close(full(blocks.composed(U, v)), full(U) @ v.diag() @ full(U).T)
    close(blocks.curvatures(U, F), (full(U).T @ full(F) @ full(U)).diagonal())
    close(blocks.there(L, X, U), full(L).T @ X @ full(U))
    close(blocks.back(L, X, U), full(L) @ X @ full(U).T)
    width = blocks.block_width(n, other)
    inside = torch.block_diag(*(torch.ones(len(b), len(b)) for b in blocks.blocks_of(U.new_zeros(n, width))))
    close(full(blocks.reblocked(U, width)), full(U) * inside)


def test_of_one_block_to_the_bit():
    U, F, L, X = random(40, 40), random(40, 40, 1), random(30, 30, 2), random(40, 40, 3)[:30]
    v = torch.rand(40, dtype=torch.float64)
    assert torch.equal(blocks.there(L, X, U), L.T @ X @ U)
    assert torch.equal(blocks.back(L, X, U), L @ X @ U.T)
    assert torch.equal(blocks.composed(U, v), (U * v) @ U.T)
    assert torch.equal(blocks.curvatures(U, F), ((U.T @ F) * U.T).sum(dim=1))
    assert torch.equal(blocks.trace(U), U.trace())
    assert torch.equal(blocks.diagonal(U).mean(), U.diagonal().mean())


# --- layers


def measured(seed: int, most: int | None = MOST) -> KroneckerFactors:
    """In float64, in which the two ways of holding them agree closely; most = None: as ordinary matrices."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for size in (IN + 1, OUT):
        x = torch.randn(size, size, generator=generator, dtype=torch.float64)
        blocked = blocks.reblocked(x @ x.T, blocks.block_width(size, MOST))
        parts.append(blocked if most else full(blocked))
    return KroneckerFactors(*parts, shape=(OUT, IN), bias="b")


def dense(layer: KroneckerCurvature) -> Tensor:
    U = torch.kron(full(layer.outputs_basis), full(layer.inputs_basis)).double()
    return (U * layer.spectrum.double().flatten()) @ U.T


def held(most: int | None = MOST, tasks: int = 3) -> tuple[KroneckerCurvature, Tensor]:
    layer, own = merged(None, measured(0, most))
    for seed in range(1, tasks):
        layer, own = measured(seed, most).joined(layer, "sum", num_tasks=seed, share=1.5)
    return layer, own


def near(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a.double(), b.double(), rtol=1e-4, atol=1e-4 * float(b.abs().max()))


@pytest.mark.parametrize("tasks", [1, 3])
def test_several_tasks_are_held_as_by_whole_matrices(tasks: int):
    (layer, own), (whole, whole_own) = held(tasks=tasks), held(None, tasks)
    assert layer.inputs_basis.shape == (IN + 1, 4)
    assert layer.outputs_basis.shape == (OUT, 4)
    near(dense(layer), dense(whole))
    near(own.sum(), whole_own.sum())
    near(layer.diagonal(), whole.diagonal())
    if tasks == 1:
        near(dense(layer), torch.kron(full(measured(0).outputs), full(measured(0).inputs)))


@pytest.mark.parametrize("strength", [0.1, 30.0])
@pytest.mark.parametrize("by_weight", [False, True])
def test_they_pull_as_whole_matrices_do(strength: float, by_weight: bool):
    layer, whole = held()[0], held(None)[0]
    values, anchors = ([torch.randn(OUT, IN), torch.randn(OUT)] for _ in range(2))
    metrics = [0.5 + torch.rand(OUT, IN), 0.5 + torch.rand(OUT)] if by_weight else [2.0, 2.0]
    befores: list[Tensor | None] = [None, None]
    for _ in range(3):
        found, expected = (
            each.pull(values, anchors, strength, metrics=metrics, before=before)
            for each, before in zip((layer, whole), befores)
        )
        for a, b in zip(found[0], expected[0], strict=True):
            near(a, b)
        befores = [found[2], expected[2]]
    near(layer.rise(values, anchors), whole.rise(values, anchors))
    for a, b in zip(layer.gradient(values, anchors), whole.gradient(values, anchors), strict=True):
        near(a, b)
    near(_projected(layer.line(values, anchors, metrics)), _projected(whole.line(values, anchors, metrics)))


def _projected(line: tuple[Tensor, Tensor, float]) -> Tensor:
    """The rise after a pull of strength 3, in the one metric of the line."""
    along, S, metric = line
    return (along.square() * S / (1 + 3 * S / metric).square()).sum()


def test_separate_anchors_collapse_as_with_whole_matrices():
    theta, mean = ([torch.randn(OUT, IN), torch.randn(OUT)] for _ in range(2))
    found, expected = (layer.collapsed(own, theta, mean) for layer, own in (held(), held(None)))
    for a, b in zip([*found[0], *found[1:]], [*expected[0], *expected[1:]], strict=True):
        near(a, b)


def test_damping_is_that_of_whole_matrices():
    near(full(measured(0).damped(0.1).outputs), measured(0, None).damped(0.1).outputs)
    assert measured(0).trace() == pytest.approx(measured(0, None).trace())


@pytest.mark.parametrize("metric", [MOST, None])
def test_in_the_metric_of_another_measurement(metric: int | None):
    found, expected = (
        relative(held(own)[0], measured(9, of), damping=0.1) for own, of in ((MOST, metric), (None, None))
    )
    assert found is not None
    assert expected is not None
    d = [torch.randn(OUT, IN), torch.randn(OUT)]
    for a, b in zip(found.nearer(d, 3.0), expected.nearer(d, 3.0), strict=True):
        near(a, b)


@pytest.mark.parametrize(("first", "then"), [(MOST, None), (None, MOST), (MOST, 5)])
def test_a_task_in_other_blocks_joins_in_those_that_are_held(first: int | None, then: int | None):
    layer, _ = merged(None, measured(0, first))
    other = measured(1, None)
    if then is not None:
        parts = (blocks.reblocked(M, blocks.block_width(len(M), then)) for M in (other.inputs, other.outputs))
        other = replace(other, **dict(zip(("inputs", "outputs"), parts)))
    both, _ = other.joined(layer, "sum", num_tasks=1, share=1.0)
    assert both.inputs_basis.shape == layer.inputs_basis.shape
    expected, _ = measured(1, None).like(layer).joined(layer, "sum", num_tasks=1, share=1.0)
    if then != 5:
        near(dense(both), dense(expected))
    near(both.spectrum.sum(), expected.spectrum.sum())


def test_layers_with_one_input_share_its_blocks():
    new = {name: replace(measured(seed), reads="a") for name, seed in (("a", 0), ("b", 1))}
    whole = {name: replace(measured(seed, None), reads="a") for name, seed in (("a", 0), ("b", 1))}
    found, expected = (joined_layers(each, {}, "sum", num_tasks=0, share=1.0) for each in (new, whole))
    assert found["a"][0].inputs_basis is found["b"][0].inputs_basis  # pyright: ignore[reportAttributeAccessIssue]
    for name in found:
        near(dense(found[name][0]), dense(expected[name][0]))  # pyright: ignore[reportArgumentType]


# --- as tensors and JSON


def test_there_and_back_in_either_form():
    for layer in (held()[0], held_in(held()[0], lambda spectrum: spectrum.bfloat16())):
        found = layers_from(layers_to_json({"w": layer}), layers_to_tensors({"w": layer}), where="here")["w"]
        for part, tensor in layer.tensors().items():
            assert torch.equal(found.tensors()[part], tensor)


def test_narrow_ones_are_near():
    layer, narrow = held()[0], held_in(held()[0], lambda spectrum: spectrum.bfloat16())
    D = torch.randn(OUT, IN + 1)
    torch.testing.assert_close(narrow.quadratic(D), layer.quadratic(D), rtol=0.05, atol=0.0)  # pyright: ignore


def test_blocks_that_are_none():
    layer = held()[0]
    tensors = layers_to_tensors({"w": layer}) | {"w/inputs_basis": torch.zeros(IN + 1, 9)}
    with pytest.raises(FileFormatError, match="the tensors of 'w' do not fit its shape"):
        layers_from(layers_to_json({"w": layer}), tensors, where="here")
