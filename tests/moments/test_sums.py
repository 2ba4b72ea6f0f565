"""Every route, on every kind of layer, against one example at a time by plain autograd in float64."""

from __future__ import annotations

import itertools
import warnings

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from tests.moments.zoo import ZOO, Apply, Doubling, build
from torch import Tensor, nn

from holdfast.errors import BatchError, LossShapeError, NotFiniteError, StateError
from holdfast.likelihoods.likelihood import logits_of
from holdfast.moments.calls import Call
from holdfast.moments.gradients import OutputGradients, gradient
from holdfast.moments.oracle import oracle_sums
from holdfast.moments.per_example import per_example_sums
from holdfast.moments.sums import MomentSums, SumRoute

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
            model.zero_grad()  # of what the forward pass may have added
            score.backward()  # reentrant checkpoints refuse autograd.grad
            for name, parameter in named.items():
                if parameter.grad is not None:
                    totals[name] += parameter.grad.square() if phi == "square" else parameter.grad.abs()
                    parameter.grad = None
    return {name: total.detach() for name, total in totals.items()}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], *, rtol: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        atol = rtol * float(value.abs().max())
        torch.testing.assert_close(
            found[name], value.to(found[name]), rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}"
        )


def by_route(route: SumRoute, model: nn.Module, call: Call, phi: str) -> dict[str, Tensor]:
    at_outputs = OutputGradients(call(model), call.size, scores)
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    return route(model, call, at_outputs, phi=phi, names=names)


def relative(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Norm of the difference over norm, of all parameters together."""
    flat = [torch.cat([values[name].double().flatten() for name in expected]) for values in (found, expected)]
    return float((flat[0] - flat[1]).norm() / flat[1].norm().clamp(min=1e-12))


def check_missed(sums: MomentSums, name: str) -> None:
    *_, missed, fallback = ZOO[name]
    assert sums.missed == set(missed)
    assert not missed or sums.fallback == fallback


@pytest.mark.parametrize("phi", ["square", "abs"])
@pytest.mark.parametrize("name", ZOO)
def test_sums_are_those_of_one_example_at_a_time(name: str, phi: str):
    model, call = build(name)
    expected = by_hand(model, call, phi)
    if "checkpoints" not in name:
        assert_close(by_route(oracle_sums, model, call, phi), expected, rtol=1e-9)
    sums = MomentSums(model, phi=phi, where="test", chunk_bytes=20_000)  # a few examples and rows at a time
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if ZOO[name][3] == "oracle_sums" else "error")
        sums.add(call, scores)
        sums.add(call, scores)
    check_missed(sums, name)
    assert sums.num_examples == 2 * call.size
    assert_close({name: total / 2 for name, total in sums.totals.items()}, expected, rtol=1e-9)


@pytest.mark.parametrize("name", [name for name in ZOO if ZOO[name][3] != "oracle_sums"])
def test_float32_sums_are_close_to_float64(name: str):
    model, call = build(name)
    expected = by_hand(model, call, "square")
    single = Call(tuple(x.float() if x.is_floating_point() else x for x in call.args), {}, call.size)
    sums = MomentSums(model.float(), phi="square", where="test")
    sums.add(single, scores)
    assert all(total.dtype == torch.float32 for total in sums.totals.values())
    check_missed(sums, name)
    assert relative(sums.totals, expected) < 1e-5


@pytest.mark.parametrize(
    "name", [name for name in ZOO if ZOO[name][3] != "oracle_sums" and not name.startswith("Conv")]
)
def test_autocast_sums_are_those_of_one_example_at_a_time_under_autocast(name: str):
    model, call = build(name)
    single = Call(tuple(x.float() if x.is_floating_point() else x for x in call.args), {}, call.size)
    sums = MomentSums(model.float(), phi="square", where="test")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = by_hand(model, single, "square")
        sums.add(single, scores)
    assert all(total.dtype == torch.float32 for total in sums.totals.values())
    check_missed(sums, name)
    assert relative(sums.totals, expected) < 1e-2


@hypothesis.given(
    sizes=st.lists(st.integers(1, 6), min_size=2, max_size=4),
    batch=st.integers(1, 6),
    axes=st.lists(st.integers(1, 4), max_size=2),
    bias=st.booleans(),
    chunk_bytes=st.integers(1, 10_000),
)
def test_any_shape_of_linear_network(sizes: list[int], batch: int, axes: list[int], bias: bool, chunk_bytes: int):
    layers = [nn.Linear(a, b, bias=bias) for a, b in itertools.pairwise(sizes)]
    model = nn.Sequential(*(step for layer in layers for step in (layer, nn.ELU())))
    check_any(model, torch.randn(batch, *axes, sizes[0]), chunk_bytes)


@hypothesis.given(
    dims=st.integers(1, 3),
    batch=st.integers(1, 4),
    groups=st.integers(1, 2),
    channels=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    mode=st.sampled_from(["zeros", "reflect", "replicate", "circular", "transposed"]),
    bias=st.booleans(),
)
def test_any_shape_of_convolution(dims, batch, groups, channels, kernel, stride, padding, dilation, mode, bias):
    name = f"ConvTranspose{dims}d" if mode == "transposed" else f"Conv{dims}d"
    options = {"stride": stride, "dilation": dilation, "groups": groups, "bias": bias, "padding": padding}
    if mode != "transposed":
        options["padding_mode"] = mode
    conv = getattr(nn, name)(groups * channels[0], groups * channels[1], kernel, **options)
    x = torch.randn(batch, groups * channels[0], *range(5, 5 + dims))
    check_any(nn.Sequential(conv, nn.Softplus()), x, 1000)


@hypothesis.given(
    batch=st.integers(1, 5),
    length=st.integers(1, 12),
    padding=st.one_of(st.none(), st.integers(-3, 2)),
    tied=st.booleans(),
)
def test_any_embedding_with_many_repeats(batch: int, length: int, padding: int | None, tied: bool):
    embedding, head = nn.Embedding(3, 4, padding_idx=padding), nn.Linear(4, 3, bias=False)
    head.weight = embedding.weight if tied else head.weight
    check_any(nn.Sequential(embedding, nn.Tanh(), head), torch.randint(0, 3, (batch, length)), 1000)


@hypothesis.given(
    batch=st.integers(1, 4),
    channels=st.sampled_from([2, 4]),
    axes=st.lists(st.integers(2, 4), min_size=1, max_size=3),
    kind=st.sampled_from(["layer", "rms", "group", "batch"]),
)
def test_any_shape_of_norm(batch: int, channels: int, axes: list[int], kind: str):
    norm = {
        "layer": lambda: nn.LayerNorm(axes[-2:]),
        "rms": lambda: nn.RMSNorm(axes[-1]),
        "group": lambda: nn.GroupNorm(2, channels),
        "batch": lambda: (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[len(axes) - 1](channels),
    }[kind]()
    for parameter in norm.parameters():
        nn.init.uniform_(parameter, 0.5, 2.0)
    check_any(nn.Sequential(norm, nn.Tanh()), torch.randn(batch, channels, *axes), 1000)


def check_any(model: nn.Module, x: Tensor, chunk_bytes: int) -> None:
    """In float64 and in float32, without a warning and with nothing missed."""
    wide = x.double() if x.is_floating_point() else x
    for phi in ("square", "abs"):
        expected = by_hand(model.double().eval(), Call((wide,), {}, len(x)), phi)
        for dtype, inputs in ((torch.float64, wide), (torch.float32, x)):
            sums = MomentSums(model.to(dtype), phi=phi, where="test", chunk_bytes=chunk_bytes)
            sums.add(Call((inputs,), {}, len(x)), scores)
            assert not sums.missed
            if dtype == torch.float64:
                assert_close(sums.totals, expected, rtol=1e-9)
            else:
                assert relative(sums.totals, expected) < 1e-5


@pytest.mark.parametrize("route", [per_example_sums, oracle_sums])
def test_signed_sums_are_the_ordinary_gradient(route: SumRoute):
    model, call = build("mlp")
    assert_close(by_route(route, model, call, "signed"), gradient(model, call, scores), rtol=1e-9)


def test_two_layers_with_one_weight_are_not_two_weights():
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    model[2].weight = model[0].weight
    call = Call((torch.randn(4, 3, dtype=torch.float64),), {}, 4)
    sums = MomentSums(model, phi="square", where="test")
    sums.add(call, scores)
    assert "2.weight" not in sums.totals
    assert_close(sums.totals, by_hand(model, call, "square"), rtol=1e-9)


def untraceable() -> nn.Module:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return self.a(x) if float(x.sum()) < 1e6 else self.a(-x)

    return Apply(forward, a=Doubling(3, 2), b=nn.Linear(2, 2)).double()


def test_what_cannot_be_traced_is_measured_with_a_warning():
    model = nn.Sequential(untraceable(), nn.Linear(2, 2).double())
    call = Call((torch.randn(4, 3, dtype=torch.float64),), {}, 4)
    sums = MomentSums(model, phi="square", where="fisher")
    with pytest.warns(
        UserWarning, match=r"fisher: of Sequential '0.a.weight' is measured one example at a time, right but slow.*vmap"
    ):
        sums.add(call, scores)
    sums.add(call, scores)  # warned once
    assert sums.missed == {"0.a.weight"}
    assert sums.fallback == "oracle_sums"
    assert_close({n: t / 2 for n, t in sums.totals.items()}, by_hand(model, call, "square"), rtol=1e-9)


def test_a_later_batch_of_another_form_is_looked_at_anew():
    model, call = build("mlp")
    longer = Call((torch.randn(4, 2, 6, dtype=torch.float64),), {}, 4)
    sums = MomentSums(model, phi="square", where="test")
    for one in (call, longer, call, longer):
        sums.add(one, scores)
    first, second = by_hand(model, call, "square"), by_hand(model, longer, "square")
    assert not sums.missed
    assert_close(sums.totals, {name: 2 * (first[name] + second[name]) for name in first}, rtol=1e-9)


@pytest.mark.parametrize("name", ["gpt", "gpt, positions with an axis", "reentrant checkpoints", "attention"])
def test_batches_of_other_sizes_and_lengths(name: str):
    model, call = build(name)
    sums = MomentSums(model, phi="abs", where="test")
    expected = {key: torch.zeros_like(p) for key, p in model.named_parameters()}
    for size, length in ((1, 4), (3, 1), (4, 4), (2, 3)):
        one = Call((call.args[0][:size, :length],), {}, size)
        sums.add(one, scores)
        expected = {key: value + expected[key] for key, value in by_hand(model, one, "abs").items()}
    assert not sums.missed
    assert_close(sums.totals, expected, rtol=1e-9)


def test_positions_that_become_those_of_each_example():
    def forward(self: nn.Module, ids: Tensor, positions: Tensor) -> Tensor:
        places = positions if positions[0, 0] > 0 else torch.arange(ids.shape[1])[None]
        return self.head((self.tokens(ids) + self.positions(places)).tanh())

    model = Apply(forward, tokens=nn.Embedding(7, 5), positions=nn.Embedding(9, 5), head=nn.Linear(5, 2)).double()
    sums = MomentSums(model, phi="square", where="test")
    ids = torch.randint(0, 7, (4, 4))
    calls = [Call((ids, torch.full((4, 4), value)), {}, 4) for value in (0, 2, 0)]
    calls.append(Call((ids, torch.randint(1, 9, (4, 4))), {}, 4))
    expected = {key: torch.zeros_like(p) for key, p in model.named_parameters()}
    for one in calls:
        sums.add(one, scores)
        expected = {key: value + expected[key] for key, value in by_hand(model, one, "square").items()}
    assert not sums.missed
    assert_close(sums.totals, expected, rtol=1e-9)


def test_a_use_that_nothing_can_see_and_that_comes_late_is_an_error():
    class Hidden(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
            return x + weight.sum()

        @staticmethod
        def backward(ctx, g: Tensor) -> tuple[Tensor, Tensor]:
            return g, g.sum().expand(2, 3)

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        y = self.a(x)
        return Hidden.apply(y, self.a.weight) if self.late else y

    model, x = Apply(forward, a=nn.Linear(3, 2)), torch.randn(4, 3)
    model.late = False
    sums = MomentSums(model, phi="square", where="fisher")
    sums.add(Call((x,), {}, 4), scores)
    model.late = True
    with pytest.raises(StateError, match=r"fisher: 'a.weight' took part in a batch in a way .* Let the first batch"):
        sums.add(Call((x,), {}, 4), scores)
    with pytest.warns(UserWarning, match="one example at a time"):
        MomentSums(model, phi="square", where="fisher").add(Call((x,), {}, 4), scores)


def test_a_detached_weight_has_no_importance_there():
    model = Apply(lambda self, x: F.linear(self.a(x).tanh(), self.a.weight.detach()), a=nn.Linear(3, 3)).double()
    call = Call((torch.randn(4, 3, dtype=torch.float64),), {}, 4)
    sums = MomentSums(model, phi="abs", where="test")
    sums.add(call, scores)
    assert not sums.missed
    assert_close(sums.totals, by_hand(model, call, "abs"), rtol=1e-9)


def test_gradients_and_graph_are_left_alone():
    for name in ("mlp", "reentrant checkpoints"):
        model, call = build(name)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        before = [parameter.grad for parameter in model.parameters()]
        MomentSums(model, phi="abs", where="test").add(call, scores)
        assert all(parameter.grad is old and (old == 1).all() for parameter, old in zip(model.parameters(), before))


def test_draws_are_made_once_a_batch_whatever_the_route():
    drawn = []

    def counted(outputs: object) -> Tensor:
        drawn.append(1)
        return scores(outputs)

    for name in ("mlp", "sequence", "subclass"):
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
        MomentSums(model, phi="square", where="test").add(
            Call((torch.randn(4, 3),), {}, 4), lambda o: o["loss"].expand(1, 4)
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["mlp", "norms", "batch norm"])
def test_half_precision_keeps_its_fast_route(name: str, dtype: torch.dtype):
    model, call = build(name, dtype=dtype)
    sums = MomentSums(model, phi="square", where="test")
    sums.add(call, lambda outputs: scores(outputs.float()))
    check_missed(sums, name)
