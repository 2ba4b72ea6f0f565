"""Random numbers of examples: evenly spread, unrelated, and the same however the examples come."""

from __future__ import annotations

import itertools

import pytest
import torch

import holdfast as hf
from holdfast.likelihoods.draws import Draws

LIKE = torch.empty(0, dtype=torch.float64)


def test_they_are_even_and_unrelated():
    found = Draws(range(4000), seed=3).uniform((4000, 25), LIKE)
    assert found.min() >= 0
    assert found.max() < 1
    assert found.mean().item() == pytest.approx(0.5, abs=4 / (12 * 1e5) ** 0.5)
    counts = torch.histc(found, 50, 0, 1)
    assert ((counts - 2000).square() / 2000).sum() < 95  # chi square of 49 degrees: one in 10,000 is above
    neighbours = [found[1:] - 0.5, found[:, 1:] - 0.5]
    before = [found[:-1] - 0.5, found[:, :-1] - 0.5]
    for a, b in zip(neighbours, before):
        assert abs((a * b).mean() * 12) < 4 / 1e5**0.5


@pytest.mark.parametrize("pair", list(itertools.combinations(range(4), 2)))
def test_seeds_and_streams_are_unrelated(pair):
    draws = [Draws(range(4000)), Draws(range(4000), seed=1), Draws(range(4000)).other(0), Draws(range(4000)).other(1)]
    a, b = (draws[each].uniform((4000, 25), LIKE) - 0.5 for each in pair)
    assert abs((a * b).mean() * 12) < 4 / 1e5**0.5


def test_normal_ones():
    found = Draws(range(4000)).normal((4000, 25), LIKE)
    assert found.mean().item() == pytest.approx(0, abs=4 / 1e5**0.5)
    assert found.var().item() == pytest.approx(1, abs=4 * (2 / 1e5) ** 0.5)
    assert found.pow(4).mean().item() == pytest.approx(3, abs=4 * (96 / 1e5) ** 0.5)


def test_an_example_keeps_its_own_wherever_it_comes():
    whole = Draws(range(6), seed=5).uniform((6, 4), LIKE)
    assert torch.equal(Draws([4, 1], seed=5).uniform((2, 4), LIKE), whole[[4, 1]])
    assert torch.equal(Draws(range(6), seed=5).uniform((6, 3), LIKE), whole[:, :3])  # padded less


@pytest.mark.parametrize("options", [{"kind": "sampled", "num_draws": 2}, {"kind": "exact", "top_k": 2}])
@pytest.mark.parametrize("estimator", [hf.fisher, hf.kfac])
def test_what_is_drawn_does_not_depend_on_the_batches(estimator, options):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.Tanh(), torch.nn.Linear(6, 4))
    inputs, targets = torch.randn(24, 5), torch.randint(4, (24,))
    found = []
    for sizes in ([24], [7, 1, 16], [4] * 6):
        data = list(zip(inputs.split(sizes), targets.split(sizes)))
        measured = estimator(model, data, seed=9, **options)
        found.append(measured.to_diagonal())
    for other in found[1:]:
        for name, value in found[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-5, atol=1e-9)
    again = estimator(model, [(inputs, targets)], seed=10, **options).to_diagonal()
    assert any(not torch.allclose(again[name], value, rtol=1e-3) for name, value in found[0].items())
