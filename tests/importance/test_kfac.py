"""Kronecker factors: against explicit sums over examples, what is factored, and what is not."""

from __future__ import annotations

import copy
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from tests.moments.test_state import assert_same, snapshot
from tests.moments.zoo import ZOO, Apply, build
from torch import Tensor, nn

from holdfast import EWC, FactoredImportance, fisher, kfac
from holdfast.errors import (
    BatchError,
    CoupledExamplesError,
    EmptyDataError,
    LossShapeError,
    NotFiniteError,
    OptionError,
    UnknownNameError,
    UnsupportedLayerError,
)
from holdfast.moments.matrices import patches


def plain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))


def examples(num: int = 23, *shape: int) -> tuple[Tensor, Tensor]:
    return torch.randn(num, *(shape or (5,))), torch.randint(0, 3, (num,))


def batches(x: Tensor, y: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(x.split(size), y.split(size)))


def close(found: FactoredImportance, expected: FactoredImportance, *, rtol: float = 1e-4) -> None:
    assert list(found) == list(expected)
    assert list(found.diagonal) == list(expected.diagonal)
    for name, f in found.items():
        for a, b in ((f.inputs, expected[name].inputs), (f.outputs, expected[name].outputs)):
            torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * float(b.abs().max()))
        assert (f.shape, f.bias) == (expected[name].shape, expected[name].bias)
    for name, value in found.diagonal.items():
        other = expected.diagonal[name]
        torch.testing.assert_close(value, other, rtol=rtol, atol=rtol * float(other.abs().max()))


class Transposed(nn.Module):
    """Two layers with their inputs first, as the GPT-2 family has them, or the same as Linear layers."""

    def __init__(self, *, inputs_first: bool) -> None:
        super().__init__()
        Conv1D = pytest.importorskip("transformers.pytorch_utils").Conv1D
        torch.manual_seed(1)
        self.first, self.last = nn.Linear(5, 6), nn.Linear(6, 3)
        if inputs_first:
            for name, layer in list(self.named_children()):
                other = Conv1D(layer.out_features, layer.in_features)
                with torch.no_grad():
                    other.weight.copy_(layer.weight.T)
                    other.bias.copy_(layer.bias)
                setattr(self, name, other)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).tanh())


@pytest.mark.parametrize("shape", [(5,), (4, 5)])
def test_layers_with_their_inputs_first(tmp_path: Path, shape: tuple[int, ...]):
    linear, transposed = (Transposed(inputs_first=first) for first in (False, True))
    data = [(torch.randn(16, *shape), torch.randint(0, 3, (16, *shape[:-1])))]
    expected, found = kfac(linear, data), kfac(transposed, data)
    assert list(found) == list(expected) == ["first.weight", "last.weight"]
    assert not found.diagonal
    for name, f in found.items():
        assert f.inputs_first
        assert f.matrix_shape == expected[name].matrix_shape
        torch.testing.assert_close(f.inputs, expected[name].inputs)
        torch.testing.assert_close(f.outputs, expected[name].outputs)
    found.save(tmp_path / "kfac")
    loaded = FactoredImportance.load(tmp_path / "kfac", model=transposed)
    for name, diagonal in expected.to_diagonal().items():
        own = loaded.to_diagonal()[name]
        torch.testing.assert_close(own.T if own.ndim == 2 else own, diagonal)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_they_are_held_as_linear_layers_are(optimizer: type[torch.optim.Optimizer]):
    data = [(torch.randn(16, 5), torch.randint(0, 3, (16,)))]
    ends, rises = [], []
    for first in (False, True):
        model = Transposed(inputs_first=first)
        keeper = EWC(model, strength=10.0, accumulate="per_task").retain(kfac(model, data))
        steps = optimizer(model.parameters(), lr=0.1)  # type: ignore[call-arg]
        keeper.attach(steps)
        for repeat in range(10):
            if repeat == 5:
                keeper.retain(kfac(model, data))
            F.cross_entropy(model(data[0][0]), (data[0][1] + 1) % 3).backward()
            steps.step()
            steps.zero_grad()
        rises.append(keeper.predicted_rise())
        ends.append([p.detach().T if first and p.ndim == 2 else p.detach() for p in model.parameters()])
    assert rises[0] > 0
    assert rises[0] == pytest.approx(rises[1], rel=1e-3)
    for a, b in zip(*ends):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def by_hand(model: nn.Module, x: Tensor, layers: dict[str, nn.Module], *, reduce=None) -> dict[str, tuple[Tensor, ...]]:
    """Sums of outer products, an example and a class at a time: inputs and output gradients seen by hooks.

    `reduce` brings a layer's output gradient to [T, out]; inputs are those of `as_rows`.
    """
    found = {}
    for b in range(len(x)):
        seen, handles = {}, []
        for name, layer in layers.items():
            handles.append(
                layer.register_forward_hook(lambda m, args, out, name=name: seen.__setitem__(name, (args[0], out)))
            )
        logits = model(x[b : b + 1])
        for handle in handles:
            handle.remove()
        log_p = logits.flatten(0, -2).log_softmax(-1)
        for name, layer in layers.items():
            inputs, outputs = seen[name]
            a = as_rows(inputs, layer)
            if layer.bias is not None:
                a = torch.cat([a, torch.ones(len(a), 1).to(a)], dim=1)
            A = sum(torch.outer(row, row) for row in a)
            G = 0.0
            for position in log_p:
                for c in range(len(position)):
                    (g,) = torch.autograd.grad(position[c], outputs, retain_graph=True)
                    g = g.flatten(0, -2) if isinstance(layer, nn.Linear) else g[0].flatten(1).T
                    G = G + position[c].detach().exp() * sum(torch.outer(row, row) for row in g) / len(g)
            before = found.get(name, (0.0, 0.0))
            found[name] = (before[0] + A.detach() / len(x), before[1] + G.detach() / len(x))
    return found


def as_rows(inputs: Tensor, layer: nn.Module) -> Tensor:
    """[T, in]: one row for each position of one example."""
    if isinstance(layer, nn.Linear):
        return inputs.reshape(-1, layer.in_features).detach()
    assert isinstance(layer, nn.Conv2d)
    padded = F.pad(inputs, [n for p in reversed(layer.padding) for n in (p, p)])
    unfolded = F.unfold(padded, layer.kernel_size, dilation=layer.dilation, stride=layer.stride)
    return unfolded[0].T.detach()


def check(model: nn.Module, x: Tensor, y: Tensor, layers: dict[str, nn.Module]) -> None:
    found = kfac(model, batches(x, y, 4), factors="expand")
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False  # or the hooks below see what follows the layer
    expected, share = by_hand(model.eval(), x, layers), len(y) / y.numel()
    assert list(found) == [f"{name}.weight" for name in layers]
    for name, (A, G) in expected.items():
        torch.testing.assert_close(found[f"{name}.weight"].inputs.double(), A.double(), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(found[f"{name}.weight"].outputs.double(), G.double() * share, rtol=1e-5, atol=1e-7)


def test_factors_of_linear_layers_are_sums_of_outer_products():
    model, (x, y) = plain().double(), examples()
    check(model, x.double(), y, {"0": model[0], "2": model[2]})
    assert not kfac(model, batches(x.double(), y, 4)).diagonal


def test_a_layer_without_bias_has_no_appended_input():
    model = nn.Sequential(nn.Linear(5, 4, bias=False), nn.ReLU(inplace=True), nn.Linear(4, 3)).double()
    x, y = examples()
    check(model, x.double(), y, {"0": model[0], "2": model[2]})
    found = kfac(model, [(x.double(), y)])
    assert (found["0.weight"].bias, found["2.weight"].bias) == (None, "2.bias")
    assert found["0.weight"].inputs.shape == (5, 5)


def test_over_a_sequence_inputs_are_summed_and_gradients_averaged():
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    x, y = torch.randn(6, 7, 5).double(), torch.randint(0, 3, (6, 7))
    check(model, x, y, {"0": model[0], "2": model[2]})


def test_convolutions_take_patches():
    convs = [nn.Conv2d(2, 4, (3, 2), stride=2, padding=(1, 2)), nn.Conv2d(4, 3, 2, dilation=2, bias=False)]
    model = nn.Sequential(convs[0], nn.ReLU(inplace=True), convs[1], nn.Flatten(), nn.Linear(18, 3)).double()
    x, y = examples(5, 2, 7, 7)
    check(model, x.double(), y, {"0": model[0], "2": model[2], "4": model[4]})
    close(
        kfac(model, batches(x.double(), y, 4), chunk_bytes=1000),
        kfac(model, batches(x.double(), y, 4)),
    )


@pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel")
@hypothesis.given(
    kind=st.sampled_from([nn.Conv1d, nn.Conv2d, nn.Conv3d]),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    padding=st.sampled_from(["valid", "same", 0, 1]),
    mode=st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
)
@hypothesis.settings(max_examples=60, deadline=None)
def test_a_convolution_is_a_product_with_its_patches(kind, kernel, stride, dilation, padding, mode):
    if padding == "same":
        stride = 1
    conv = kind(2, 3, kernel, stride=stride, dilation=dilation, padding=padding, padding_mode=mode, bias=False).double()
    x = torch.randn(2, 2, *[6, 5, 7][: {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}[kind]]).double()
    expected = conv(x).flatten(2).transpose(1, 2)
    torch.testing.assert_close(patches(x, conv) @ conv.weight.flatten(1).T, expected)


def test_for_one_example_the_product_is_the_fisher():
    model, (x, y) = plain().double(), examples(1)
    model, x = model, x.double()
    found, diagonal = kfac(model, [(x, y)]), fisher(model, [(x, y)])
    for name, value in found.to_diagonal().items():
        torch.testing.assert_close(value, diagonal[name], rtol=1e-4, atol=1e-8)
    log_p = model(x).log_softmax(1)[0]
    for name, f in found.items():
        layer = model.get_submodule(name.removesuffix(".weight"))
        F_block = 0.0
        for c in range(3):
            dW, db = torch.autograd.grad(log_p[c], [layer.weight, layer.bias], retain_graph=True)
            g = torch.cat([dW, db[:, None]], 1).flatten()
            F_block = F_block + log_p[c].detach().exp() * torch.outer(g, g)
        torch.testing.assert_close(torch.kron(f.outputs, f.inputs).double(), F_block, rtol=1e-5, atol=1e-8)


def test_the_other_kinds():
    model, (x, y) = plain(), examples()
    exact = kfac(model, batches(x, y, 5))
    runs = [kfac(model, [(x, y)], kind="sampled", num_draws=10, seed=seed) for seed in range(30)]
    for name in exact:
        drawn = torch.stack([run[name].outputs for run in runs])
        error = drawn.std(0) / len(runs) ** 0.5
        assert ((drawn.mean(0) - exact[name].outputs).abs() <= 4 * error + 1e-7).all()
        torch.testing.assert_close(runs[0][name].inputs, exact[name].inputs)
    again = kfac(model, [(x, y)], kind="sampled", num_draws=10, seed=0)
    assert all(torch.equal(again[name].outputs, runs[0][name].outputs) for name in again)
    empirical = kfac(model, [(x, y)], kind="empirical")
    g = model(x).softmax(1).detach() - F.one_hot(y, 3)
    torch.testing.assert_close(empirical["2.weight"].outputs, g.T @ g / len(x))
    mine = lambda outputs, batch: F.cross_entropy(outputs, batch[1], reduction="none")  # noqa: E731
    close(kfac(model, [(x, y)], kind="empirical", loss=mine), empirical)


def test_what_it_says_of_itself():
    model, (x, y) = plain(), examples()
    info = kfac(model, batches(x, y, 5), num_examples=12).info
    assert (info.kind, info.num_examples, info.loss) == ("kfac-exact", 12, "categorical")
    assert (info.unit, info.nats_per_unit, info.model) == ("nats/weight^2", 1.0, "Sequential")
    close(kfac(model, batches(x, y, 5), num_examples=12), kfac(model, [(x[:12], y[:12])]))
    sampled = kfac(model, [(x, y)], kind="sampled", num_draws=2)
    assert sampled.info.details == {"factors": "auto", "num_draws": 2, "seed": 0}
    with_seed = kfac(model, iter([(x, y)]), loss="categorical")
    assert with_seed.info.details == {"factors": "auto"}


def test_damped_factors_are_those_without_and_a_share_of_their_trace():
    model, (x, y) = plain(), examples()
    found, bare = kfac(model, batches(x, y, 5), damping=0.01), kfac(model, batches(x, y, 5))
    assert (found.info.details["damping"], "damping" in bare.info.details) == (0.01, False)
    for name, f in bare.items():
        for own, factor in ((found[name].inputs, f.inputs), (found[name].outputs, f.outputs)):
            torch.testing.assert_close(own, factor + 0.01 * factor.trace() / len(factor) * torch.eye(len(factor)))


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_damping_holds_directions_that_the_data_do_not_have(optimizer: type[torch.optim.Optimizer]):
    model, (x, y) = nn.Sequential(nn.Linear(5, 3, bias=False)), examples()
    x[:, 4] = 0.0
    start = model[0].weight.detach().clone()
    moved = []
    for damping in (0.0, 0.01):
        model[0].weight.data.copy_(start)
        steps = optimizer(model.parameters(), lr=0.05)  # type: ignore[call-arg]
        EWC(model, strength=1e4).retain(kfac(model, [(x, y)], damping=damping)).attach(steps)
        for _ in range(30):
            steps.zero_grad()
            (model(torch.eye(5)[4:])[0] * torch.tensor([-1.0, 0.5, 0.5])).sum().backward()
            steps.step()
        moved.append(float((model[0].weight.detach() - start)[:, 4].norm()))
    assert moved[0] > 1.0
    assert moved[1] < 0.1 * moved[0]


def test_it_does_not_hang_on_batches_mode_or_wrappers():
    model, (x, y) = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.Linear(6, 3)), examples()
    model(x)
    found = kfac(model, [(x, y)])
    assert list(found.diagonal) == ["1.weight", "1.bias"]
    close(kfac(model.eval(), batches(x.flip(0), y.flip(0), 4)), found)
    close(kfac(nn.DataParallel(model), [(x, y)]), found)
    close(kfac(torch.compile(model, backend="eager"), [(x, y)]), found)


@pytest.mark.filterwarnings("ignore:kfac. in ", "ignore:.*one example at a time, right but slow")
@pytest.mark.parametrize("name", ZOO)
def test_every_trainable_parameter_is_covered_once(name):
    model, call = build(name)

    def loss(outputs, batch):
        logits = outputs["logits"] if isinstance(outputs, dict) else getattr(outputs, "logits", outputs)
        return logits.flatten(1).sin().sum(dim=1)

    found = kfac(model, [(call.args[0], torch.zeros(call.size))], kind="empirical", loss=loss)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert sorted([*found.parameter_names(), *found.diagonal]) == sorted(names)
    diagonal = fisher(model, [(call.args[0], torch.zeros(call.size))], kind="empirical", loss=loss)
    for key, value in found.diagonal.items():
        torch.testing.assert_close(value, diagonal[key])


FACTORED = {
    "mlp": ["0.weight", "2.weight", "4.weight"],
    "frozen": ["4.weight"],
    "functional second use": ["b.weight"],
    "called twice": ["b.weight"],
    "subclass": ["0.weight"],
    "weight norm": [],
    "raw parameter": ["a.weight"],
    "attention": ["attention.out_proj.weight", "head.weight"],
    "grouped circular": ["2.weight", "4.weight"],
    "transposed": ["2.weight"],
    "tied": ["mix.weight"],
    "unused": ["a.weight", "b.weight"],
    "time first": ["a.weight"],
    "conv1d": ["0.weight", "2.weight", "4.weight"],
}


@pytest.mark.filterwarnings("ignore:kfac. in ")
@pytest.mark.parametrize("name", FACTORED)
def test_what_is_factored(name):
    model, call = build(name)

    def loss(outputs, batch):
        return outputs.flatten(1).sin().sum(dim=1)

    found = kfac(model, [(call.args[0], torch.zeros(call.size))], kind="empirical", loss=loss)
    # attention calls its out_proj by a function, so that no hook sees it
    expected = [weight for weight in FACTORED[name] if "out_proj" not in weight]
    assert list(found) == expected


def test_a_weight_used_by_a_function_too_has_the_diagonal_and_a_warning():
    model, call = build("functional second use")
    y = torch.zeros(call.size, dtype=torch.long)
    with pytest.warns(
        UserWarning, match="kfac: in Apply these have the diagonal instead of factors: 'a.weight': the sum"
    ):
        found = kfac(model, [(call.args[0], y)])
    diagonal = fisher(model, [(call.args[0], y)])
    assert list(found.diagonal) == ["a.weight", "a.bias"]
    torch.testing.assert_close(found.diagonal["a.weight"], diagonal["a.weight"])


def test_a_layer_that_does_not_see_the_examples_has_the_diagonal():
    model = Apply(lambda self, x: self.b(x + self.a(torch.eye(5).to(x))), a=nn.Linear(5, 4), b=nn.Linear(4, 3))
    x, y = torch.randn(4, 5, 4), torch.randint(0, 3, (4, 5))
    with pytest.warns(UserWarning, match="'a.weight': its inputs do not grow with the number of examples"):
        found = kfac(model, [(x, y)])
    torch.testing.assert_close(found.diagonal["a.weight"], fisher(model, [(x, y)])["a.weight"])


def test_a_layer_called_more_often_later_is_an_error():
    def forward(self, x):
        h = self.a(x)
        return self.b(self.a(h) if len(x) > 3 else h)

    model, (x, y) = Apply(forward, a=nn.Linear(5, 5), b=nn.Linear(5, 3)), examples(8)
    with pytest.raises(UnsupportedLayerError, match="kfac: the layer of 'a.weight' is called 2 times for a batch"):
        kfac(model, [(x[:3], y[:3]), (x[3:], y[3:])])


@pytest.mark.parametrize("fail", [False, True])
def test_the_model_is_left_as_it_was(fail: bool):
    model, (x, y) = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.Linear(6, 3)), examples()
    model[1].eval()
    model[0].bias.requires_grad_(False)
    F.cross_entropy(model(x), y).backward()
    before, weights = snapshot(model), copy.deepcopy(model.state_dict())
    if fail:
        with pytest.raises(BatchError):
            kfac(model, [(x, y), "nonsense"])
    else:
        assert kfac(model, [(x, y)])["0.weight"].bias is None
    assert_same(before, snapshot(model))
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


def test_bad_input_is_named():
    model, (x, y) = plain(), examples()
    with pytest.raises(EmptyDataError, match="kfac: the data held no example"):
        kfac(model, [])
    with pytest.raises(BatchError, match=r"kfac: data is one batch.*Pass \[batch\]"):
        kfac(model, (x, y))
    kfac(model, [(x, y)])
    with pytest.warns(UserWarning, match='kfac: num_draws=3 has no effect with kind="exact"'):
        kfac(model, [(x, y)], num_draws=3)
    with pytest.raises(UnknownNameError, match="unknown kind of kfac 'exat'. Did you mean 'exact'"):
        kfac(model, [(x, y)], kind="exat")
    with pytest.raises(UnknownNameError, match="unknown rule for the factors of kfac 'mached'. Did you mean 'matched'"):
        kfac(model, [(x, y)], factors="mached")
    with pytest.raises(OptionError, match='Pass kind="empirical"'):
        kfac(model, [(x, y)], loss=lambda outputs, batch: outputs.sum(1))
    with pytest.raises(LossShapeError, match="Pass reduction='none'"):
        kfac(model, [(x, y)], kind="empirical", loss=lambda outputs, batch: F.cross_entropy(outputs, batch[1]))
    with pytest.raises(OptionError, match="Sequential has no trainable parameters"):
        kfac(plain().requires_grad_(False), [(x, y)])
    mixing = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6, affine=False, track_running_stats=False), nn.Linear(6, 3))
    with pytest.raises(CoupledExamplesError, match="BatchNorm1d, no running statistics"):
        kfac(mixing, [(x, y)])
    x[3, 2] = float("nan")
    with pytest.raises(NotFiniteError, match="kfac: the loss is not finite for an example of a batch"):
        kfac(model, [(x, y)])


def test_a_change_in_place_of_a_sequence_does_not_cost_the_factors():
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(inplace=True), nn.Linear(4, 3)).double()
    x, y = torch.randn(6, 7, 5).double(), torch.randint(0, 3, (6, 7))
    check(model, x, y, {"0": model[0], "2": model[2]})


def test_reentrant_checkpoints_have_the_diagonal_and_a_remedy():
    model, call = build("reentrant checkpoints")
    y = torch.zeros(call.size, 4, dtype=torch.long)
    with pytest.warns(UserWarning, match="'1.head.weight': .* reentrant checkpoints; pass use_reentrant=False"):
        found = kfac(model, [(call.args[0], y)])
    assert not found
    diagonal = fisher(model, [(call.args[0], y)])
    for name, value in found.diagonal.items():
        torch.testing.assert_close(value, diagonal[name])
    model, call = build("checkpoints")
    assert "1.b.0.weight" in kfac(model, [(call.args[0], y)])


def test_few_labels_exactly_and_one_draw_for_the_others():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 7))
    x, y = torch.randn(6, 5), torch.randint(7, (6,))
    exact, most = kfac(model, [(x, y)]), kfac(model, [(x, y)], top_k=7)
    runs = [kfac(model, [(x, y)], top_k=2, seed=seed) for seed in range(200)]
    assert runs[0].info.details == {"factors": "auto", "top_k": 2, "seed": 0}
    for name, factors in exact.items():
        torch.testing.assert_close(most[name].outputs, factors.outputs, rtol=1e-5, atol=1e-7)
        mean = torch.stack([run[name].outputs for run in runs]).mean(0)
        torch.testing.assert_close(mean, factors.outputs, rtol=0.1, atol=0.1 * float(factors.outputs.abs().max()))
        assert torch.equal(runs[0][name].inputs, factors.inputs)
    with pytest.raises(OptionError, match='kfac: top_k=2 with kind="sampled"'):
        kfac(model, [(x, y)], kind="sampled", top_k=2)
