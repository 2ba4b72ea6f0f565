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
from tests.moments.ragged_zoo import LONGEST, RAGGED, Batch, T, batch, singles, truth
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
    per_target = 1.0 if name == "mas" else len(singles(data)) / sum(y.numel() for _, y in data)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*right but slow")
        found = measure(model, data)
    for key, value in expected.items():
        weight = dict(model.named_parameters())[key].detach().abs() if phi == "weighted" else 1.0
        value = (value * weight * per_target).float()
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


def layers_alone(model: nn.Module, data: list[Batch], visit: Callable[[nn.Module, Tensor, Tensor], None]) -> None:
    """Visit every Linear layer with its inputs and outputs, both still in the graph, one example at a time."""
    for inputs, labels in singles(data):
        met: list[tuple[nn.Module, Tensor, Tensor]] = []
        handles = [
            module.register_forward_hook(lambda m, x, y: met.append((m, x[0], y)))
            for module in model.modules()
            if isinstance(module, nn.Linear)
        ]
        outputs = model(*inputs)
        for handle in handles:
            handle.remove()
        loss = nll_of(outputs, labels)
        for module, x, y in met:
            (g,) = torch.autograd.grad(loss, y, retain_graph=True, allow_unused=True)
            visit(module, x.detach(), torch.zeros_like(y) if g is None else g)


@pytest.mark.parametrize("name", ["top_one", "regions", "graphs", "last_token"])
def test_factors_take_the_number_of_rows_that_each_example_has(name: str):
    model = RAGGED[name]().double().eval()
    data = [batch(some) for some in FIRST_EQUAL]
    size = sum(len(some) for some in FIRST_EQUAL)
    A: dict[nn.Module, Tensor] = {}
    G: dict[nn.Module, Tensor] = {}

    def visit(module: nn.Module, x: Tensor, g: Tensor) -> None:
        x, g = F.pad(x.reshape(-1, x.shape[-1]), (0, 1), value=1.0), g.reshape(-1, g.shape[-1])
        A[module] = A.get(module, 0.0) + x.T @ x / size
        G[module] = G.get(module, 0.0) + g.T @ g / max(1, len(g)) / size

    layers_alone(model, data, visit)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = hf.kfac(model, data, kind="empirical", factors="expand")
    compared = 0
    for key, module in model.named_modules():
        if module in A and f"{key}.weight" in found:
            factors = found[f"{key}.weight"]
            torch.testing.assert_close(factors.inputs, A[module].float(), rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(factors.outputs, G[module].float(), rtol=1e-5, atol=1e-6)
            compared += 1
    assert compared


@pytest.mark.parametrize("name", ["top_one", "top_two", "by_length", "regions", "last_token"])
def test_local_importances_of_rows_that_the_data_choose(name: str):
    model = RAGGED[name]().double().eval()
    data = [batch(some) for some in FIRST_EQUAL]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = hf.mas(model, data, local=True, others="zero")
        alone = hf.mas(model, singles(data), local=True, others="zero")
    for key, value in alone.items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["unpadded", "top_two"])
def test_positions_as_examples_of_their_own(name: str):
    model = RAGGED[name]().double().eval()
    data = [batch(some) for some in FIRST_EQUAL]
    found = hf.fisher(model, data, kind="empirical", per="token")
    alone = hf.fisher(model, singles(data), kind="empirical", per="token")
    for key, value in alone.items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["unpadded", "top_one", "regions"])
def test_signals_are_means_over_rows_whatever_the_batches(name: str):
    model = RAGGED[name]().double().eval()
    data = [batch(some) for some in FIRST_EQUAL]
    found, alone = (hf.signal(model, some, others="zero") for some in (data, singles(data)))
    for key, value in alone.items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-6)


def test_a_loss_that_cuts_the_targets_itself():
    model = LONGEST["trimmed"]().double().eval()
    data = [batch(some, positions=True) for some in [[4, 3, 4], [2, 5, 1]]]

    def loss(outputs: Tensor, content: Any) -> Tensor:
        labels = content[1][:, : outputs.shape[1]]
        return F.cross_entropy(outputs.movedim(-1, 1), labels, reduction="none").sum(1)

    expected = truth(model, data, nll, "square")
    found = hf.fisher(model, data, kind="empirical", loss=loss)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value.float(), rtol=1e-5, atol=1e-6)
