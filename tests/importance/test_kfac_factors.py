"""The rules by which `kfac` makes its factors, against the Fisher's own blocks, one ordinary gradient at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from benchmarks import factors as nets
from tests.moments.ragged_zoo import RAGGED, batch, singles
from tests.moments.zoo import ZOO, Apply, build
from torch import Tensor, nn

import holdfast as hf
from holdfast.likelihoods.categorical import Categorical
from holdfast.moments.factors import add_partial_traces
from holdfast.moments.kronecker import KroneckerSums
from holdfast.moments.symmetric import SymmetricSum

Batches = list[tuple[Tensor, Tensor]]


def split(x: Tensor, y: Tensor, *sizes: int) -> Batches:
    return list(zip(x.split(sizes), y.split(sizes)))


def close(a: Tensor, b: Tensor, *, rtol: float = 1e-5) -> None:
    torch.testing.assert_close(a.double(), b.double(), rtol=rtol, atol=rtol * float(b.abs().max()))


def product(f: hf.FactoredImportance, name: str) -> Tensor:
    """A (x) G over the entries of the matrix [out, in (+1)], row by row."""
    return torch.kron(f[name].outputs.double(), f[name].inputs.double())


def fisher_of(M: Tensor) -> Tensor:
    return M.flatten(1).T @ M.flatten(1)


def small(name: str) -> tuple[nn.Module, Tensor, Tensor, Categorical]:
    torch.manual_seed(3)
    make, kind = nets.NETS[name]
    x, y = nets.drawn(kind, 9, task=3)
    loss = Categorical(causal=False, class_axis=-1 if y.ndim > 1 else None)
    return make().double(), x.double() if x.is_floating_point() else x, y, loss


def with_positions(model: nn.Module, name: str) -> list[str]:
    """Weights of the layers that `name` of the nets uses at several positions: all but a head behind the pooling."""
    weights = list(nets.layers_of(model))
    if name.startswith("MLP"):
        return []
    return weights if name.startswith("causal") else weights[:-1]


@pytest.mark.parametrize("name", nets.NETS)
def test_matched_factors_have_the_partial_traces_of_the_block(name: str):
    model, x, y, loss = small(name)
    found = hf.kfac(model, split(x, y, 4, 2, 3), loss=loss, factors="matched")
    for key, M in nets.blocks(model, x).items():
        A, G = torch.einsum("roi,roj->ij", M, M), torch.einsum("roi,rpi->op", M, M)
        close(found[key].inputs, A)
        close(found[key].outputs, G / A.trace())
        close(found[key].outputs * found[key].inputs.trace(), G)


@pytest.mark.parametrize("name", nets.NETS)
def test_auto_is_matched_where_there_are_positions_and_else_unchanged(name: str):
    model, x, y, loss = small(name)
    data = split(x, y, 4, 2, 3)
    auto, matched, expand = (hf.kfac(model, data, loss=loss, factors=rule) for rule in ("auto", "matched", "expand"))
    shared = with_positions(model, name)
    for key in auto:
        other = matched if key in shared else expand
        assert torch.equal(auto[key].inputs, other[key].inputs)
        assert torch.equal(auto[key].outputs, other[key].outputs)
    assert auto.info.details.get("matched", "") == ", ".join(shared)
    assert auto.info.details["factors"] == "auto"


@pytest.mark.parametrize("name", nets.NETS)
def test_the_diagonal_has_the_sums_of_fishers(name: str):
    model, x, y, loss = small(name)
    data = split(x, y, 5, 4)
    found, exact = hf.kfac(model, data, loss=loss).to_diagonal(), hf.fisher(model, data, loss=loss)
    for key in with_positions(model, name):
        bias = key.removesuffix("weight") + "bias"
        own, expected = (nets.matrix(model, each[key], each[bias]) for each in (found, exact))
        close(own.sum(0), expected.sum(0), rtol=1e-4)
        close(own.sum(1), expected.sum(1), rtol=1e-4)


@pytest.mark.parametrize("name", nets.NETS)
def test_reduced_factors_average_inputs_and_sum_gradients(name: str):
    model, x, y, loss = small(name)
    found = hf.kfac(model, split(x, y, 4, 2, 3), loss=loss, factors="reduce")
    layers = nets.layers_of(model)
    A: dict[str, Any] = dict.fromkeys(layers, 0.0)
    G: dict[str, Any] = dict.fromkeys(layers, 0.0)
    for one in x.split(1):
        seen = {}
        handles = [
            layer.register_forward_hook(lambda m, args, out, key=key: seen.__setitem__(key, (args[0].detach(), out)))
            for key, layer in layers.items()
        ]
        logits = model(one).flatten(0, -2)
        num_targets = len(x) * len(logits)
        for handle in handles:
            handle.remove()
        for key, (a, _) in seen.items():
            if isinstance(layers[key], nn.Conv2d):
                a = F.unfold(a, layers[key].kernel_size, padding=layers[key].padding, stride=layers[key].stride).mT
            a = F.pad(a.reshape(-1, a.shape[-1]), (0, 1), value=1.0).mean(0)
            A[key] = A[key] + torch.outer(a, a) / len(x)
        for position in logits.log_softmax(-1):
            for log_p in position:
                outputs = [out for _, out in seen.values()]
                gradients = torch.autograd.grad(log_p, outputs, retain_graph=True, materialize_grads=True)
                for key, g in zip(seen, gradients):
                    g = g.flatten(2).sum((0, 2)) if isinstance(layers[key], nn.Conv2d) else g.flatten(0, -2).sum(0)
                    G[key] = G[key] + log_p.detach().exp() * torch.outer(g, g) / num_targets
    for key in layers:
        close(found[key].inputs, A[key])
        torch.testing.assert_close(found[key].outputs.double(), G[key], rtol=1e-5, atol=1e-9)


def deep_linear(*, average: bool) -> nn.Module:
    forward = lambda self, x: self.b(self.a(x)).mean(1) if average else self.b(self.a(x))  # noqa: E731
    return Apply(forward, a=nn.Linear(3, 4), b=nn.Linear(4, 2)).double()


@pytest.mark.parametrize("average", [False, True])
def test_what_is_exact_for_deep_linear_networks(average: bool):
    """Both propositions of Eschenhagen et al.: each rule in its setting, and the matched factors in both."""
    model, x = deep_linear(average=average), torch.randn(5, 6, 3).double()
    y = torch.zeros_like(model(x))
    found = {rule: hf.kfac(model, [(x, y)], loss="gaussian", factors=rule) for rule in ("expand", "reduce", "matched")}
    exact, other = ("reduce", "expand") if average else ("expand", "reduce")
    for key, layer in nets.layers_of(model).items():
        block = 0.0
        for one in x.split(1):
            for output in model(one).flatten():  # unit variance: the Fisher is the sum over outputs
                gradients = torch.autograd.grad(output, [layer.weight, layer.bias], retain_graph=True)
                M = nets.matrix(layer, *gradients).flatten()
                block = block + torch.outer(M, M) / len(x)
        close(product(found[exact], key), block)
        close(product(found["matched"], key), block)
        assert float((product(found[other], key) - block).norm() / block.norm()) > 0.2


@pytest.mark.parametrize("rule", ["auto", "matched", "expand", "reduce"])
def test_for_one_example_without_positions_all_rules_are_the_fisher(rule: Any):
    model, x, y, loss = small("MLP, no positions")
    found = hf.kfac(model, [(x[:1], y[:1])], loss=loss, factors=rule)
    for key, M in nets.blocks(model, x[:1]).items():
        close(product(found, key), fisher_of(M))


@pytest.mark.parametrize("name", nets.NETS)
def test_auto_is_nearer_to_the_fisher_than_either_convention(name: str):
    found = nets.measured(name, seed=5, num=8 if name.startswith("causal") else 20)
    for rule in ("expand", "reduce", "nearer, scaled"):
        if name.startswith("MLP"):
            assert found["auto"].trace == found["expand"].trace
        else:
            assert sum(found["auto"].diagonal) < sum(found[rule].diagonal)
            assert torch.tensor(found["auto"].random).log().mean() < torch.tensor(found[rule].random).log().mean()
    expected = 0.5 if name.startswith("MLP") else 1e-5
    assert all(abs(trace - 1) < expected for trace in found["auto"].trace)


def test_keys_whose_gradients_cancel_over_positions_are_not_lost():
    model, x, y, loss = small("attention, mean")
    key, bias = "blocks.1.k.weight", "blocks.1.k.bias"
    exact = hf.fisher(model, [(x, y)], loss=loss)
    total = float(exact[key].sum() + exact[bias].sum())
    assert hf.kfac(model, [(x, y)], loss=loss, factors="reduce")[key].trace() < 1e-12 * total
    assert hf.kfac(model, [(x, y)], loss=loss)[key].trace() == pytest.approx(total, rel=1e-5)


@hypothesis.given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 6), st.integers(1, 6))
@hypothesis.example(2, 9, 2, 2)
@hypothesis.example(2, 2, 6, 6)
@hypothesis.settings(max_examples=60, deadline=None)
def test_both_ways_to_the_partial_traces(size: int, length: int, n: int, m: int):
    a, g = torch.randn(size, length, n).double(), torch.randn(size, length, m).double()
    M = torch.stack([g[b].T @ a[b] for b in range(size)])
    inputs, outputs = SymmetricSum(n, like=a), SymmetricSum(m, like=g)
    add_partial_traces(inputs, outputs, a, g)
    torch.testing.assert_close(inputs.taken(), sum((each.T @ each for each in M), torch.zeros(n, n).double()))
    torch.testing.assert_close(outputs.taken(), sum((each @ each.T for each in M), torch.zeros(m, m).double()))


def nll(outputs: Any, targets: Any) -> Tensor:
    logits = outputs["logits"] if isinstance(outputs, dict) else getattr(outputs, "logits", outputs)
    return logits.flatten(1).sin().sum(dim=1)


def one_at_a_time(model: nn.Module, keys: list[str], data: list[Any], loss: Any) -> dict[str, Tensor]:
    """Weight -> M [B, out, in (+1)] of the empirical kind, by ordinary gradients of single examples."""
    layers, found = nets.layers_of(model), {key: [] for key in keys}
    for x, y in data:
        for b in range(len(y)):
            total = loss(model(x[b : b + 1]), (x[b : b + 1], y[b : b + 1])).sum()
            for key in keys:
                own = [p for p in layers[key].parameters() if p.requires_grad]
                gradients = torch.autograd.grad(total, own, retain_graph=True, materialize_grads=True)
                found[key].append(nets.matrix(layers[key], *gradients, *[None] * (2 - len(own))))
    return {key: torch.stack(rows) for key, rows in found.items()}


def check_matched(model: nn.Module, data: list[Any], loss: Any = nll, **options: Any) -> hf.FactoredImportance:
    found = hf.kfac(model, data, kind="empirical", loss=loss, factors="matched", **options)
    keys = [key for key in found if key in nets.layers_of(model)]
    for key, M in one_at_a_time(model, keys, data, loss).items():
        close(found[key].inputs, torch.einsum("boi,boj->ij", M, M) / len(M))
        if float(M.abs().max()) > 0:
            close(found[key].outputs, torch.einsum("boi,bpi->op", M, M) / M.square().sum())
    return found


@pytest.mark.filterwarnings("ignore:kfac. in ", "ignore:.*one example at a time, right but slow")
@pytest.mark.parametrize("name", ZOO)
def test_every_model_of_the_zoo_wherever_its_examples_are(name: str):
    model, call = build(name)
    x, y = call.args[0], torch.zeros(call.size)
    check_matched(model, [(x, y), (x[:1], y[:1]), (x[1:3], y[1:3])])


ARRANGED = {
    "flattened": lambda self, x: self.b(self.a(x.flatten(0, 1)).tanh()).unflatten(0, x.shape[:2]),
    "flattened, time first": lambda self, x: (
        self.b(self.a(x.transpose(0, 1).flatten(0, 1)).tanh()).unflatten(0, (x.shape[1], -1)).transpose(0, 1)
    ),
    "windows": lambda self, x: self.b(self.a(x.unflatten(1, (2, 3)).flatten(0, 1)).tanh()).unflatten(0, (-1, 2)).sum(1),
    "features first": lambda self, x: self.b(self.a(x.permute(2, 0, 1)[:5].permute(1, 2, 0)).tanh()),
    # neither the slow nor the fast index of an axis: the rows of an example cannot be told from the layout
    "in the middle": lambda self, x: (
        self.b(self.a(x.unflatten(1, (2, 3)).transpose(0, 1).flatten(0, 2)).tanh())
        .unflatten(0, (2, -1, 3))
        .transpose(0, 1)
        .flatten(1, 2)
    ),
}


@pytest.mark.parametrize("sizes", [(4, 3), (1, 1, 5), (7,), (1,) * 7])
@pytest.mark.parametrize("name", ARRANGED)
def test_positions_may_lie_in_any_order(name: str, sizes: tuple[int, ...]):
    torch.manual_seed(1)
    model = Apply(ARRANGED[name], a=nn.Linear(5, 6), b=nn.Linear(6, 3)).double()
    x, y = torch.randn(7, 6, 5).double(), torch.zeros(7)
    check_matched(model, split(x, y, *sizes))
    reduced = hf.kfac(model, split(x, y, *sizes), kind="empirical", loss=nll, factors="reduce")
    mean = F.pad(x.mean(1), (0, 1), value=1.0)
    close(reduced["a.weight"].inputs, mean.T @ mean / len(x))


def test_small_chunks_change_nothing():
    for name in ("ConvNet, global average", "causal LM, sum over tokens"):
        model, x, y, loss = small(name)
        for rule in ("matched", "reduce"):
            whole, parts = (
                hf.kfac(model, [(x, y)], loss=loss, factors=rule, chunk_bytes=size) for size in (2**28, 3000)
            )
            for key in whole:
                close(parts[key].inputs, whole[key].inputs)
                torch.testing.assert_close(parts[key].outputs, whole[key].outputs, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("name", ["ConvNet, flattened", "attention, mean", "MLP, no positions"])
def test_patches_take_no_more_memory_at_once_than_activations_of_the_batch(name: str, monkeypatch: pytest.MonkeyPatch):
    model, x, y, loss = small(name)
    sizes: list[int] = []
    add = KroneckerSums.add

    def noted(self: KroneckerSums, call: Any, *args: Any, **kwargs: Any) -> None:
        sizes.append(call.size)
        add(self, call, *args, **kwargs)

    monkeypatch.setattr(KroneckerSums, "add", noted)
    found = hf.kfac(model, [(x, y)], loss=loss)
    assert sum(sizes) == len(x)
    if name.startswith("ConvNet"):  # of an example: 64 and 16 patches, of 10 and 55 entries
        activations = 64 + 64 * 6 + 64 * 6 + 16 * 8 + 128 + nets.CLASSES
        assert sizes == [5, 4]
        assert max(sizes) * (64 * 10 + 16 * 55) <= len(x) * activations < len(x) * (64 * 10 + 16 * 55)
    else:
        assert sizes == [len(x)]
    monkeypatch.setattr(KroneckerSums, "at_once", lambda self, call: call.size)
    for key, f in hf.kfac(model, [(x, y)], loss=loss).items():
        close(found[key].inputs, f.inputs)
        close(found[key].outputs, f.outputs)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["top_one", "regions", "graphs", "last_token"])
def test_rows_that_the_data_choose(name: str):
    model = RAGGED[name]().double().eval()
    data = [batch(lengths) for lengths in ([4, 4, 4], [6, 2, 4], [1, 6, 5])]
    together, alone = (hf.kfac(model, each, kind="empirical", factors="matched") for each in (data, singles(data)))
    assert list(together)
    for key, f in alone.items():
        close(together[key].inputs, f.inputs)
        close(together[key].outputs, f.outputs)


def test_draws_have_the_exact_factors_in_the_mean():
    model, x, y, loss = small("attention, mean")
    exact = hf.kfac(model, [(x, y)], loss=loss)
    runs = [hf.kfac(model, [(x, y)], kind="sampled", num_draws=20, loss=loss, seed=seed) for seed in range(12)]
    for key in exact:
        drawn = torch.stack([run[key].inputs * run[key].outputs.trace() for run in runs])
        expected = exact[key].inputs * exact[key].outputs.trace()
        error = drawn.std(0) / len(runs) ** 0.5
        assert ((drawn.mean(0) - expected).abs() <= 5 * error + 1e-6 * expected.abs().max()).all()


def test_a_folder_says_how_its_factors_were_made(tmp_path: Path):
    model, x, y, loss = small("Linear on a sequence, mean")
    hf.kfac(model, [(x, y)], loss=loss).save(tmp_path / "auto")
    hf.kfac(model, [(x, y)], loss=loss, factors="reduce").save(tmp_path / "reduce")
    details = hf.FactoredImportance.load(tmp_path / "auto", model=model).info.details
    assert details == {"factors": "auto", "matched": "a.weight"}
    written = json.loads((tmp_path / "auto" / "importance_config.json").read_text())
    assert written["details"] == details
    assert hf.FactoredImportance.load(tmp_path / "reduce").info.details == {"factors": "reduce"}


def test_a_layer_that_no_score_reaches_is_zero():
    model = Apply(
        lambda self, x: self.b(x).mean(1) + 0.0 * self.a(x).detach().mean(), a=nn.Linear(5, 4), b=nn.Linear(5, 3)
    )
    x, y = torch.randn(6, 4, 5), torch.randint(0, 3, (6,))
    found = hf.kfac(model, [(x, y)])
    assert found["a.weight"].trace() == 0
    assert found["b.weight"].trace() > 0


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_a_keeper_holds_by_them_and_foresees_the_block(optimizer: Any):
    model, x, y, loss = small("Linear on a sequence, mean")
    model.float()
    found = hf.kfac(model, [(x.float(), y)], loss=loss)
    keeper = hf.EWC(model, strength=1.0).retain(found)
    keeper.attach(steps := optimizer(model.parameters(), lr=1e-2))
    before = {
        key: nets.matrix(layer, layer.weight, layer.bias).detach() for key, layer in nets.layers_of(model).items()
    }
    for _ in range(3):
        steps.zero_grad()
        F.cross_entropy(model(x.float()), (y + 1) % 4).backward()
        steps.step()
    expected = 0.0
    for key, layer in nets.layers_of(model).items():
        D = nets.matrix(layer, layer.weight, layer.bias).detach() - before[key]
        expected += 0.5 * float((D * (found[key].outputs @ D @ found[key].inputs)).sum())
    assert keeper.predicted_rise() == pytest.approx(expected, rel=1e-4)
