"""Every bound that the forms state, on numbers of every size."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from holdfast.memory import codes
from holdfast.memory.codes import (
    ANCHOR_ERROR,
    BFLOAT16_ERROR,
    BLOCK,
    IMPORTANCE_ERROR,
    IMPORTANCE_FLOOR,
    decode_anchor,
    decode_importance,
    encode_anchor,
    encode_importance,
    scales_of,
    to_bfloat16,
)

SMALLEST_NORMAL = 2.0**-126


@st.composite
def importances(draw) -> Tensor:
    """Some blocks of numbers over many decades, with zeros, subnormals and the largest of floats among them."""
    count, seed = draw(st.integers(1, 3 * BLOCK + 1)), draw(st.integers(0, 10**6))
    generator = torch.Generator().manual_seed(seed)
    low, high = sorted((draw(st.floats(-44.0, 38.0)), draw(st.floats(-44.0, 38.0))))
    values = 10 ** (low + (high - low) * torch.rand(count, generator=generator, dtype=torch.float64))
    values = values.float().clamp(max=torch.finfo(torch.float32).max)
    values[torch.rand(count, generator=generator) < draw(st.sampled_from([0.0, 0.3, 1.0]))] = 0.0
    extreme = draw(st.sampled_from([None, 1e-45, SMALLEST_NORMAL, 1.0, torch.finfo(torch.float32).max]))
    if extreme is not None:
        values[draw(st.integers(0, count - 1))] = extreme
    return values


def coded(values: Tensor, noise: torch.Generator | None = None) -> Tensor:
    codes, exponents = encode_importance(values, noise)
    return decode_importance(codes, scales_of(exponents, of=codes), out=torch.empty_like(values))


def anchored(values: Tensor) -> Tensor:
    codes, exponents = encode_anchor(values)
    return decode_anchor(codes, scales_of(exponents, of=codes), out=torch.empty_like(values))


def of_blocks(values: Tensor) -> Tensor:
    """For every entry the largest magnitude of its block, in float64."""
    blocks = [part.abs().max().expand(len(part)) for part in values.double().split(BLOCK)]
    return torch.cat(blocks)


@given(importances())
def test_an_importance_is_held_within_its_bound(values):
    held, largest = coded(values).double(), of_blocks(values)
    exact = values.double()
    error = (held - exact).abs()
    # the floor is that of the largest as it is held
    floor = (largest * IMPORTANCE_FLOOR * (1 + IMPORTANCE_ERROR)).clamp(min=SMALLEST_NORMAL)
    inside = exact >= floor
    assert (error[inside] <= exact[inside] * IMPORTANCE_ERROR).all()
    assert (held[~inside] <= floor[~inside] * (1 + IMPORTANCE_ERROR)).all()


@given(importances())
def test_zero_alone_is_zero(values):
    noise = torch.Generator().manual_seed(0)
    for held in (coded(values), coded(values, noise), to_bfloat16(values), to_bfloat16(values, noise)):
        assert torch.equal(held == 0, values == 0)
        assert torch.isfinite(held).all()
        assert (held >= 0).all()


@given(importances())
def test_the_order_within_a_block_is_kept(values):
    for part in values.split(BLOCK):
        held, sorted_part = coded(part), part.sort().indices
        assert (held[sorted_part].diff() >= 0).all()
        assert (to_bfloat16(part)[sorted_part].float().diff() >= 0).all()
        assert (anchored(part)[sorted_part].diff() >= 0).all()


@given(importances())
def test_what_was_decoded_encodes_to_itself(values):
    held = coded(values)
    assert torch.equal(coded(held), held)
    assert torch.equal(coded(held, torch.Generator().manual_seed(1)), held)
    assert torch.equal(anchored(anchored(values)), anchored(values))


def test_the_codes_rise_with_the_values():
    values = torch.logspace(-9, 0, BLOCK)
    found, exponents = encode_importance(values)
    assert (found.int().diff() >= 0).all()
    assert len(found.unique()) > 200
    assert found.min() >= 8
    assert exponents.tolist() == [127 - 31]  # the largest is 2^0, whose exponent is 127, and the code's largest is 31


def test_eight_codes_an_octave():
    octave = torch.tensor([1.0, 1.125, 1.25, 1.375, 1.5, 1.625, 1.75, 1.875])
    assert torch.equal(coded(octave), octave)
    assert coded(torch.tensor([1.0625, 1.0624, 1.9])).tolist() == [1.125, 1.0, 1.875]


def test_a_linear_code_of_eight_bits_would_lose_the_tail():
    values = torch.logspace(-6, 0, BLOCK)
    linear = (values * 255).round() / 255
    assert (linear == 0).float().mean() > 0.4
    assert ((coded(values) - values).abs() <= values * IMPORTANCE_ERROR).all()


@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.9])
def test_sums_in_noise_are_right_on_average(fraction):
    """Where rounding to the nearest would leave 1 + tiny at 1 for ever."""
    step = 0.125 * fraction
    held = torch.ones(40 * BLOCK)
    noise = torch.Generator().manual_seed(0)
    for _ in range(8):
        held = coded(held + step, noise)
    expected = 1 + 8 * step
    deviation = held.std() / math.sqrt(len(held))
    assert held.mean() == pytest.approx(expected, abs=4 * float(deviation))
    if fraction < 0.5:
        assert torch.equal(coded(torch.ones(BLOCK) + step), torch.ones(BLOCK))


def test_noise_rounds_to_a_neighbour():
    values = torch.rand(1000, generator=torch.Generator().manual_seed(0)) + 1
    held = coded(values, torch.Generator().manual_seed(0))
    assert ((held - values).abs() <= 2 * IMPORTANCE_ERROR * values).all()
    rounded = to_bfloat16(values, torch.Generator().manual_seed(0)).float()
    assert ((rounded - values).abs() <= 2 * BFLOAT16_ERROR * values).all()
    assert float(rounded.mean()) == pytest.approx(float(values.mean()), rel=1e-4)


@given(importances())
def test_bfloat16_is_within_its_bound_and_rounds_as_torch_does(values):
    held = to_bfloat16(values)
    inside = values >= SMALLEST_NORMAL
    assert ((held.double() - values.double()).abs() <= values.double() * BFLOAT16_ERROR)[inside].all()
    usual = values.bfloat16()
    ties = (values.view(torch.int32) & 0xFFFF) == 0x8000  # to the even one there
    same = inside & ~ties & torch.isfinite(usual)
    assert torch.equal(held[same], usual[same])


@given(importances(), st.integers(0, 10**6))
def test_an_anchor_is_held_within_its_bound(values, seed):
    signs = torch.randint(0, 2, values.shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    values = values * signs
    held = anchored(values).double()
    bound = of_blocks(values) * ANCHOR_ERROR
    assert ((held - values.double()).abs() <= bound.clamp(min=2.0**-125)).all()
    assert (held[values == 0] == 0).all()
    assert torch.equal(anchored(-values), -anchored(values))


def test_an_anchor_of_a_usual_layer_is_far_better_than_in_bfloat16():
    weights = 0.02 * torch.randn(2**16, generator=torch.Generator().manual_seed(0))
    error, usual = (anchored(weights) - weights).norm(), (weights.bfloat16().float() - weights).norm()
    assert error < usual / 40


def test_exponents_are_recognised():
    found, exponents = encode_importance(torch.rand(300))
    assert codes.are_exponents(exponents, of=found)
    assert not codes.are_exponents(exponents[:1], of=found)
    assert not codes.are_exponents(exponents.int(), of=found)
    assert not codes.are_exponents(torch.full_like(exponents, 224), of=found)
    assert not codes.are_exponents(torch.zeros_like(exponents), of=found.short())


def test_nothing_at_all():
    empty = torch.empty(0)
    assert coded(empty).shape == anchored(empty).shape == to_bfloat16(empty).shape == (0,)
