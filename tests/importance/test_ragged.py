"""Every estimator on models whose layers see rows that are no reshape of the batch, against one example at a time."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from tests.moments.ragged_zoo import LONGEST, RAGGED, Batch, C, T, batch, truth
from torch import Tensor, nn

import holdfast as hf

FIRST_EQUAL = [[4, 4, 4], [6, 2, 4], [1, 6, 5], [4, 4, 4]]
FIRST_UNEQUAL = [[6, 2, 4], [4, 4, 4], [1, 6, 5]]

ESTIMATORS: dict[str, tuple[Callable[..., Any], Callable[[Tensor, Tensor], Tensor], str]] = {}


def estimator(name: str, phi: str, measure: Callable[..., Any]) -> Callable[[Any], Any]:
    def register(score: Callable[[Tensor, Tensor], Tensor]) -> Any:
        ESTIMATORS[name] = (measure, score, phi)
        return score

    return register


@estimator("empirical", "square", lambda m, d: hf.fisher(m, d, kind="empirical"))
def nll(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, -2), labels[:, : outputs.shape[1]].flatten(), reduction="sum")


@estimator("exact", "square", lambda m, d: hf.fisher(m, d, kind="exact"))
def exact(outputs: Tensor, labels: Tensor) -> Tensor:
    logs = outputs.flatten(0, -2).log_softmax(-1)
    return (logs * logs.detach().exp().sqrt()).flatten()


@estimator("mas", "abs", lambda m, d: hf.mas(m, d))
def length(outputs: Tensor, labels: Tensor) -> Tensor:
    return outputs.square().sum()


@estimator("taylor", "weighted", lambda m, d: hf.taylor(m, d))
def same_nll(outputs: Tensor, labels: Tensor) -> Tensor:
    return nll(outputs, labels)


def nll_of(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs, labels, reduction="sum")


def check(model: nn.Module, data: list[Batch], name: str) -> None:
    measure, score, phi = ESTIMATORS[name]
    score = nll_of if data[0][1].ndim == 1 and score in (nll, same_nll) else score
    expected = truth(model, data, score, "square" if phi == "square" else "abs")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*right but slow")
        found = measure(model, data)
    for key, value in expected.items():
        weight = dict(model.named_parameters())[key].detach().abs() if phi == "weighted" else 1.0
        value = (value * weight).float()
        atol = 1e-6 * float(value.abs().max())
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=atol, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("estimate", ESTIMATORS)
@pytest.mark.parametrize("name", RAGGED)
def test_rows_of_any_number_belong_to_their_examples(name: str, estimate: str):
    for lengths in (FIRST_EQUAL, FIRST_UNEQUAL):
        check(RAGGED[name]().double().eval(), [batch(some) for some in lengths], estimate)


@pytest.mark.parametrize("estimate", ESTIMATORS)
@pytest.mark.parametrize("longest", [True, False])
@pytest.mark.parametrize("name", LONGEST)
def test_outputs_as_long_as_the_longest_example(name: str, longest: bool, estimate: str):
    lengths = [[4, 4, 4], [6, 2, 6], [1, 6, 5], [6, 6, 6]]
    data = [batch(some, positions=True, longest=longest) for some in lengths if longest or max(some) == T]
    check(LONGEST[name]().double().eval(), data, estimate)


@hypothesis.given(
    name=st.sampled_from(["unpadded", "top_one", "joined_by_cat"]),
    lengths=st.lists(st.lists(st.integers(1, T), min_size=1, max_size=5), min_size=2, max_size=4),
)
@hypothesis.settings(max_examples=25, deadline=None)
def test_any_lengths(name: str, lengths: list[list[int]]):
    check(RAGGED[name]().double().eval(), [batch(some) for some in lengths], "empirical")
