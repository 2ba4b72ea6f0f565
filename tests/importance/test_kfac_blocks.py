"""Kronecker factors of wide layers are the diagonal blocks of the whole factors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import factors as nets
from torch import Tensor, nn

import holdfast as hf
from holdfast.curvature import blocks
from holdfast.errors import OptionError
from holdfast.likelihoods.categorical import Categorical

MOST = 4


def full(matrix: Tensor) -> Tensor:
    return torch.block_diag(*blocks.blocks_of(matrix))


def densely(found: hf.FactoredImportance) -> hf.FactoredImportance:
    """The same, its block-diagonal factors as ordinary matrices."""
    whole = {key: replace(f, inputs=full(f.inputs), outputs=full(f.outputs)) for key, f in found.items()}
    return hf.FactoredImportance(whole, found.diagonal, found.info)


def measured(name: str, **options: Any) -> hf.FactoredImportance:
    torch.manual_seed(3)
    make, kind = nets.NETS[name]
    x, y = nets.drawn(kind, 9, task=3)
    loss = Categorical(causal=False, class_axis=-1 if y.ndim > 1 else None)
    return hf.kfac(make(), [(x[:5], y[:5]), (x[5:], y[5:])], loss=loss, **options)


@pytest.mark.parametrize("name", ["MLP, no positions", "ConvNet, flattened", "attention, mean"])
@pytest.mark.parametrize("rule", ["auto", "expand", "reduce"])
def test_each_block_is_that_of_the_whole_factor(name: str, rule: Any):
    whole, found = measured(name, factors=rule), measured(name, factors=rule, max_size=MOST)
    assert list(found) == list(whole)
    for key, f in found.items():
        for part, matrix in f.tensors().items():
            other = whole[key].tensors()[part]
            width = blocks.block_width(len(other), MOST)
            assert matrix.shape == (len(other), width)
            expected = blocks.reblocked(other, width)
            torch.testing.assert_close(matrix, expected, rtol=1e-5, atol=1e-6 * float(other.abs().max()))
        assert f.trace() == pytest.approx(whole[key].trace(), rel=1e-5)
    for key, value in found.to_diagonal().items():
        expected = whole.to_diagonal()[key]
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6 * float(expected.max()))


def test_what_is_not_wide_is_as_it_was_to_the_bit():
    for name in ("MLP, no positions", "ConvNet, flattened"):
        plain, bounded = measured(name, damping=0.01), measured(name, damping=0.01, max_size=200)
        for key, f in plain.items():
            assert torch.equal(f.inputs, bounded[key].inputs)
            assert torch.equal(f.outputs, bounded[key].outputs)


def test_added_and_scaled_as_whole_matrices_are(tmp_path: Path):
    found = measured("MLP, no positions", max_size=MOST)
    dense = densely(found)
    twice, expected = found + 2.0 * found, dense + 2.0 * dense
    for key, f in twice.items():
        torch.testing.assert_close(full(f.inputs), expected[key].inputs)
        torch.testing.assert_close(full(f.outputs), expected[key].outputs)
    for key, f in (found + measured("MLP, no positions")).items():
        assert f.inputs.shape == found[key].inputs.shape
    found.save(tmp_path / "found")
    loaded = hf.FactoredImportance.load(tmp_path / "found")
    for key, f in found.items():
        assert torch.equal(loaded[key].inputs, f.inputs)
        assert torch.equal(loaded[key].outputs, f.outputs)


def test_memory_falls_to_the_share_of_a_block():
    wide = nn.Linear(31, 64)
    batches = [(torch.randn(8, 31), torch.randint(64, (8,)))]
    found = hf.kfac(wide, batches, kind="sampled", max_size=16)["weight"]
    assert found.inputs.shape == (32, 16)
    assert found.outputs.shape == (64, 16)
    assert sum(t.numel() for t in found.tensors().values()) == 32 * 16 + 64 * 16


def test_smaller_blocks_than_what_is_not_cut():
    found = measured("ConvNet, flattened", max_size=40, block_size=16)
    sides = {n: width for f in found.values() for n, width in (f.inputs.shape, f.outputs.shape)}
    assert sides == {10: 10, 6: 6, 55: 14, 8: 8, 129: 15, 4: 4}


def test_blocks_above_what_is_not_cut_are_an_error():
    with pytest.raises(OptionError, match="block_size=50 is above max_size=40, .* Lower it, or leave it out"):
        measured("MLP, no positions", max_size=40, block_size=50)
    assert measured("MLP, no positions", max_size=40)
    with pytest.warns(UserWarning, match="block_size=50 has no effect without max_size"):
        measured("MLP, no positions", block_size=50)
