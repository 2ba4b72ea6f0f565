"""The signal importance: closed forms, one tap and example at a time, and the recorder."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests.moments.zoo import Apply, build
from torch import Tensor, nn

from holdfast.errors import StateError, UnknownNameError, UnsupportedLayerError
from holdfast.importance import SignalRecorder, signal


def unlabelled(x: Tensor, size: int = 4) -> list[tuple[Tensor, Tensor]]:
    return [(some, torch.zeros(len(some), dtype=torch.long)) for some in x.split(size)]


def test_signal_of_linear_layers():
    model, x = nn.Sequential(nn.Linear(5, 6), nn.LeakyReLU(0.2, inplace=True), nn.Linear(6, 3)), torch.randn(11, 5)
    found = signal(model, unlabelled(x))
    z = model[0](x).detach()
    y, out = F.leaky_relu(z, 0.2), model(x).detach()
    torch.testing.assert_close(found["0.weight"], (model[0].weight * x[:, None, :]).abs().mean(0).detach())
    torch.testing.assert_close(found["2.weight"], (model[2].weight * y[:, None, :]).abs().mean(0).detach())
    torch.testing.assert_close(found["0.bias"], z.abs().mean(0))
    torch.testing.assert_close(found["2.bias"], out.abs().mean(0))
    activated = signal(model, unlabelled(x), bias="activation")
    torch.testing.assert_close(activated["0.bias"], y.abs().mean(0))
    torch.testing.assert_close(activated["2.bias"], out.softmax(1).mean(0))
    torch.testing.assert_close(activated["0.weight"], found["0.weight"])
    assert (found.info.kind, found.info.unit, found.info.num_examples) == ("signal", "activation", 11)


def test_signal_over_a_sequence_is_the_mean_over_positions():
    model, x = nn.Linear(5, 3), torch.randn(6, 7, 5)
    found = signal(model, unlabelled(x))
    torch.testing.assert_close(found["weight"], model.weight.detach().abs() * x.abs().mean((0, 1)))
    torch.testing.assert_close(found["bias"], model(x).detach().abs().mean((0, 1)))


@pytest.mark.parametrize(
    "conv",
    [
        lambda: nn.Conv2d(4, 6, 3, padding=1, stride=2, groups=2),
        lambda: nn.Conv2d(4, 4, (2, 3), dilation=2, bias=False),
        lambda: nn.Conv2d(4, 8, 3, padding="same", padding_mode="reflect", groups=4),
        lambda: nn.Conv2d(4, 2, 1),
    ],
)
def test_signal_of_a_convolution_one_tap_at_a_time(conv):
    model, x = conv(), torch.randn(3, 4, 7, 6)
    found = signal(model, unlabelled(x))
    for tap in torch.cartesian_prod(*(torch.arange(n) for n in model.weight.shape)).tolist():
        place = tuple(tap)
        kernel = torch.zeros_like(model.weight)
        kernel[place] = model.weight[place].detach()
        with torch.no_grad():
            passed = model._conv_forward(x, kernel, None)[:, place[0]]
        torch.testing.assert_close(found["weight"][place], passed.abs().mean())
    if model.bias is not None:
        torch.testing.assert_close(found["bias"], model(x).detach().abs().mean((0, 2, 3)))


def test_the_softmax_of_a_convolution_goes_over_channels():
    model, x = nn.Conv1d(2, 3, 1), torch.randn(3, 2, 5)
    found = signal(model, unlabelled(x), bias="activation")
    torch.testing.assert_close(found["bias"], model(x).softmax(1).detach().mean((0, 2)))


def test_a_weight_used_twice_gets_the_mean_of_its_uses():
    model, call = build("functional second use", dtype=torch.float32)
    found = signal(model, unlabelled(call.args[0]))
    expected = model.a.weight.detach().abs() * call.args[0].abs().mean(0)  # both uses have the same input
    torch.testing.assert_close(found["a.weight"], expected)


def test_an_unused_layer_has_no_importance():
    model, call = build("unused", dtype=torch.float32)
    found = signal(model, unlabelled(call.args[0]))
    assert (found["a.weight"] == 0).all()


@pytest.mark.parametrize("name", ["norms", "tied", "transposed", "attention", "raw parameter", "lstm", "batch norm"])
def test_parameters_without_a_signal_are_listed_and_the_remedy_works(name: str):
    model, call = build(name, dtype=torch.float32)
    data = unlabelled(call.args[0])
    with pytest.raises(
        UnsupportedLayerError, match="used by something else than a Linear or convolution layer"
    ) as error:
        signal(model, data)
    found = signal(model, data, others="zero")
    assert found.keys() == dict(model.named_parameters()).keys()
    zero = [key for key, value in found.items() if not value.any()]
    if name != "tied":  # there the shared weight has a signal as the head's, and none as the embedding's
        assert zero
    for key in zero:
        assert repr(key) in str(error.value)
        dict(model.named_parameters())[key].requires_grad_(False)
    if name != "tied":
        signal(model, data)


def test_the_recorder_gathers_what_signal_measures():
    model, x = nn.Sequential(nn.Linear(5, 6), nn.ReLU(inplace=True), nn.Linear(6, 3)), torch.randn(12, 5)
    for bias in ("output", "activation"):
        expected = signal(model, unlabelled(x), bias=bias)
        with SignalRecorder(model.train(), bias=bias) as recorder:
            for some in x.split(4):
                model(some).sum().backward()
            model.eval()
            with torch.no_grad():
                model(100 * x)  # evaluation in between
        model.train()
        model(100 * x)  # after it is over
        found = recorder.importance()
        assert found.info.num_examples == recorder.num_examples == 12
        for name in expected:
            torch.testing.assert_close(found[name], expected[name])
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_recorder_takes_the_weights_of_the_end():
    model, x = nn.Linear(5, 3), torch.randn(8, 5)
    with SignalRecorder(nn.DataParallel(model)) as recorder:
        model(x)
    model.weight.data *= 2
    torch.testing.assert_close(recorder.importance()["weight"], model.weight.detach().abs() * x.abs().mean(0))


def test_training_is_the_same_with_the_recorder():
    def trained(record: bool) -> Tensor:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Conv1d(2, 3, 2), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(12, 2))
        optimizer = torch.optim.Adam(model.parameters())
        recorder = SignalRecorder(model, bias="activation")
        if record:
            recorder.attach()
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(4, 2, 5)).square().sum().backward()
            optimizer.step()
        recorder.detach()
        return model[0].weight.detach()

    assert torch.equal(trained(False), trained(True))


def test_the_recorder_survives_an_error_in_the_forward_pass():
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        if x.isnan().any():
            raise RuntimeError("of the user")
        return self.a(x)

    model = Apply(forward, a=nn.Linear(3, 2))
    x = torch.randn(4, 3)
    with SignalRecorder(model) as recorder:
        with pytest.raises(RuntimeError, match="of the user"):
            model(x * float("nan"))
        assert torch.overrides._get_current_function_mode_stack() == []
        model(x)
    torch.testing.assert_close(recorder.importance()["a.weight"], model.a.weight.detach().abs() * x.abs().mean(0))


def test_the_recorder_says_what_is_wrong():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    recorder = SignalRecorder(model)
    with pytest.raises(StateError, match=r"no forward pass in training mode was seen.*use hf.signal\(model, data\)"):
        recorder.importance()
    recorder.attach()
    with pytest.raises(StateError, match=r"attached already.*Call detach\(\) first"):
        recorder.attach()
    with pytest.raises(UnsupportedLayerError, match=r"SignalRecorder: 2 parameters.*others='zero'"):
        model(torch.randn(4, 3))
    recorder.detach()
    recorder.attach()
    recorder.detach()
    with SignalRecorder(model, others="zero") as recorder:
        model(torch.randn(4, 3))
    assert (recorder.importance()["1.weight"] == 0).all()


def test_unknown_choices():
    model = nn.Linear(3, 2)
    for make in (
        lambda **more: signal(model, unlabelled(torch.randn(4, 3)), **more),
        lambda **m: SignalRecorder(model, **m),
    ):
        with pytest.raises(UnknownNameError, match="unknown bias of signal 'activations'. Did you mean 'activation'"):
            make(bias="activations")
        with pytest.raises(UnknownNameError, match="unknown value of others 'none'"):
            make(others="none")


def test_the_recorder_cannot_see_into_a_compiled_model_and_says_so():
    model, x = nn.Linear(5, 3), torch.randn(8, 5)
    compiled = torch.compile(model, backend="eager")
    with SignalRecorder(compiled) as recorder:
        compiled(x)
    with pytest.raises(
        StateError, match=r"a model under torch.compile cannot be watched: use hf.signal\(model, data\)"
    ):
        recorder.importance()
    signal(compiled, unlabelled(x))
