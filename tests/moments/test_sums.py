"""Every route, on every kind of layer, against one example at a time by plain autograd in float64."""

from __future__ import annotations

import itertools
import warnings

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from tests.moments.zoo import ZOO, Apply, build
from torch import Tensor, nn

from holdfast.errors import BatchError, LossShapeError, NotFiniteError
from holdfast.heads.likelihoods import logits_of
from holdfast.moments.calls import Call
from holdfast.moments.gradients import RouteDeclinedError, gradient
from holdfast.moments.linear import linear_sums
from holdfast.moments.oracle import oracle_sums
from holdfast.moments.per_example import per_example_sums
from holdfast.moments.sums import MomentSums

K = 3


def scores(outputs: object) -> Tensor:
    """[K, B], nonlinear in the logits and different for each row."""
    logits = logits_of(outputs).flatten(1)
    rows = torch.linspace(0.5, 1.5, K).to(logits)
    return torch.stack([(row * logits).sin().sum(dim=1) for row in rows])


def by_hand(model: nn.Module, call: Call, phi: str) -> dict[str, Tensor]:
    """Sums over examples and rows, each gradient by a forward and backward pass of its own."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    totals = {name: torch.zeros_like(p) for name, p in named.items()}
    for b in range(call.size):
        for k in range(K):
            score = scores(call.examples(b, b + 1)(model))[k, 0]
            found = torch.autograd.grad(score, list(named.values()), allow_unused=True, materialize_grads=True)
            for name, value in zip(named, found):
                totals[name] += value.square() if phi == "square" else value.abs()
    return {name: total.detach() for name, total in totals.items()}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], *, rtol: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        atol = rtol * float(value.abs().max())
        torch.testing.assert_close(
            found[name], value.to(found[name]), rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("phi", ["square", "abs"])
@pytest.mark.parametrize("name", ZOO)
def test_sums_are_those_of_one_example_at_a_time(name: str, phi: str):
    model, call = build(name)
    expected = by_hand(model, call, phi)
    assert_close(oracle_sums(model, call, scores, phi=phi), expected, rtol=1e-9)
    sums = MomentSums(model, phi=phi, where="test", chunk_bytes=20_000)  # a few examples and rows at a time
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if name == "lstm" else "error")
        sums.add(call, scores)
        sums.add(call, scores)
    assert sums.route == ZOO[name][2]
    assert sums.num_examples == 2 * call.size
    assert_close({name: total / 2 for name, total in sums.totals.items()}, expected, rtol=1e-9)


@pytest.mark.parametrize("name", [name for name in ZOO if name != "lstm"])
def test_float32_sums_are_close_to_float64(name: str):
    model, call = build(name)
    expected = oracle_sums(model, call, scores, phi="square")
    single = Call(tuple(x.float() if x.is_floating_point() else x for x in call.args), {}, call.size)
    sums = MomentSums(model.float(), phi="square", where="test")
    sums.add(single, scores)
    assert all(total.dtype == torch.float32 for total in sums.totals.values())
    assert sums.route == ZOO[name][2]
    assert_close(sums.totals, expected, rtol=1e-3)


@hypothesis.given(
    sizes=st.lists(st.integers(1, 6), min_size=2, max_size=4),
    batch=st.integers(1, 6),
    positions=st.integers(0, 4),
    bias=st.booleans(),
    chunk_bytes=st.integers(1, 10_000),
)
@hypothesis.settings(max_examples=15)
def test_any_shape_of_linear_network(sizes: list[int], batch: int, positions: int, bias: bool, chunk_bytes: int):
    layers = [nn.Linear(a, b, bias=bias) for a, b in itertools.pairwise(sizes)]
    model = nn.Sequential(*(step for layer in layers for step in (layer, nn.ELU()))).double()
    x = torch.randn((batch, positions, sizes[0]) if positions else (batch, sizes[0]), dtype=torch.float64)
    call = Call((x,), {}, batch)
    sums = MomentSums(model, phi="abs", where="test", chunk_bytes=chunk_bytes)
    sums.add(call, scores)
    assert sums.route == ("per_example_sums" if positions else "linear_sums")
    assert_close(sums.totals, by_hand(model, call, "abs"), rtol=1e-9)


@pytest.mark.parametrize("route", [linear_sums, per_example_sums, oracle_sums])
def test_signed_sums_are_the_ordinary_gradient(route):
    model, call = build("mlp")
    assert_close(route(model, call, scores, phi="signed"), gradient(model, call, scores), rtol=1e-9)


def test_the_closed_form_declines_what_it_cannot_see():
    for name, words in {
        "sequence": "inputs of shapes",
        "called twice": "inputs of shapes",
        "norms": "LayerNorm",
    }.items():
        with pytest.raises(RouteDeclinedError, match=words):
            linear_sums(*build(name), scores, phi="square")


def test_two_layers_with_one_weight_are_not_two_weights():
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    model[2].weight = model[0].weight
    call = Call((torch.randn(4, 3, dtype=torch.float64),), {}, 4)
    sums = MomentSums(model, phi="square", where="test")
    sums.add(call, scores)
    assert "2.weight" not in sums.totals
    assert_close(sums.totals, by_hand(model, call, "square"), rtol=1e-9)


def test_a_model_that_cannot_be_traced_is_measured_with_a_warning():
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return self.a(x) if float(x.sum()) < 1e6 else self.a(-x)

    model = Apply(forward, a=nn.Linear(3, 2)).double()
    model.extra = nn.LayerNorm(2)  # keeps the closed form away
    call = Call((torch.randn(4, 3, dtype=torch.float64),), {}, 4)
    sums = MomentSums(model, phi="square", where="fisher")
    with pytest.warns(UserWarning, match=r"fisher: Apply is measured one example at a time, right but slow.*vmap"):
        sums.add(call, scores)
    sums.add(call, scores)  # warned once
    assert sums.route == "oracle_sums"
    assert_close({n: t / 2 for n, t in sums.totals.items()}, by_hand(model, call, "square"), rtol=1e-9)


def test_a_later_batch_of_another_form_takes_another_route():
    model, call = build("mlp")
    longer = Call((torch.randn(4, 2, 6, dtype=torch.float64),), {}, 4)
    sums = MomentSums(model, phi="square", where="test")
    sums.add(call, scores)
    sums.add(longer, scores)
    first, second = by_hand(model, call, "square"), by_hand(model, longer, "square")
    assert_close(sums.totals, {name: first[name] + second[name] for name in first}, rtol=1e-9)


def test_draws_are_made_once_a_batch_whatever_the_route():
    drawn = []

    def counted(outputs: object) -> Tensor:
        drawn.append(1)
        return scores(outputs)

    for name in ("mlp", "sequence"):
        model, call = build(name)
        drawn.clear()
        MomentSums(model, phi="square", where="test").add(call, counted)
        assert len(drawn) == 1


def test_half_precision_is_squared_in_float32():
    model = nn.Linear(3, 2).half()
    call = Call((torch.full((4, 3), 1e-3).half(),), {}, 4)
    sums = MomentSums(model, phi="square", where="test")
    sums.add(call, lambda outputs: outputs.float().sum(dim=1).unsqueeze(0) / 10)
    assert all((total > 0).all() for total in sums.totals.values())


def test_scores_of_a_wrong_shape():
    model, call = build("mlp")
    with pytest.raises(LossShapeError, match=r"fisher: found scores of shape \[4\] for 4 examples, expected \[K, 4\]"):
        MomentSums(model, phi="square", where="fisher").add(call, lambda outputs: outputs.sum(dim=1))


def test_a_loss_that_is_not_finite():
    model, call = build("mlp")
    with pytest.raises(NotFiniteError, match="not finite for 1 of 4 examples of a batch, the first being number 2"):
        MomentSums(model, phi="square", where="fisher").add(
            call, lambda outputs: scores(outputs) / torch.tensor([1.0, 1.0, 0.0, 1.0])
        )


def test_outputs_that_are_means():
    model = Apply(lambda self, x: {"logits": self.a(x), "loss": self.a(x).mean()}, a=nn.LayerNorm(3))
    with pytest.raises(BatchError, match=r"reads a tensor of shape \[\] for a batch of 4 examples"):
        per_example_sums(model, Call((torch.randn(4, 3),), {}, 4), lambda o: o["loss"].expand(1, 4), phi="square")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["mlp", "norms", "batch norm"])
def test_half_precision_keeps_its_fast_route(name: str, dtype: torch.dtype):
    model, call = build(name, dtype=dtype)
    sums = MomentSums(model, phi="square", where="test")
    sums.add(call, lambda outputs: scores(outputs.float()))
    assert sums.route == ZOO[name][2]
