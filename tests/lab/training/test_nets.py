import pytest
import torch
from torch import nn

from holdfast.lab.training import build_net, mlp


def linears(net: nn.Sequential) -> list[nn.Linear]:
    return [layer for layer in net if isinstance(layer, nn.Linear)]


def test_shape_and_activations():
    net = mlp(64, (300, 150), 10, slope=0.2)
    assert [tuple(layer.weight.shape) for layer in linears(net)] == [(300, 64), (150, 300), (10, 150)]
    assert [type(layer) for layer in net] == [
        nn.Flatten,
        nn.Linear,
        nn.LeakyReLU,
        nn.Linear,
        nn.LeakyReLU,
        nn.Linear,
    ]
    assert net[2].negative_slope == 0.2
    assert net(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
    assert isinstance(mlp(4, (3,), 2)[2], nn.ReLU)


def test_weights_are_truncated_normal_and_biases_zero():
    for layer in linears(mlp(400, (500, 300), 200, seed=4)):
        std = 2 / layer.in_features**0.5
        weight = layer.weight.detach()
        assert weight.abs().max() <= 2 * std
        assert weight.abs().max() > 1.9 * std
        # a normal cut at two standard deviations keeps 0.8796 of them
        assert weight.std().item() == pytest.approx(0.8796 * std, rel=0.02)
        assert abs(weight.mean().item()) < 4 * std / weight.numel() ** 0.5
        assert not layer.bias.any()
        assert layer.weight.requires_grad
        assert layer.bias.requires_grad


def test_the_seed_decides_and_the_global_random_state_is_left_alone():
    state = torch.get_rng_state()
    first = mlp(8, (5,), 3, seed=1).state_dict()
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(12345)
    again, other = mlp(8, (5,), 3, seed=1).state_dict(), mlp(8, (5,), 3, seed=2).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["1.weight"], other["1.weight"])


@pytest.mark.parametrize("name", ["mlp", "convolution", "attention"])
@pytest.mark.parametrize("side", [8, 28])
def test_every_net_by_name_is_decided_by_its_seed_alone(name, side):
    def net(seed: int) -> nn.Module:
        return build_net(name, (1, side, side), 7, seed=seed, **({"hidden": (5,)} if name == "mlp" else {}))

    state = torch.get_rng_state()
    first, again, other = net(0), net(0), net(1)
    assert torch.equal(state, torch.get_rng_state())
    images = torch.rand(3, side * side)
    assert first(images).shape == (3, 7)
    assert torch.equal(first(images), again(images))
    assert not torch.equal(first(images), other(images))
    assert torch.equal(first(images), first(images.reshape(3, 1, side, side)))


def test_attention_mixes_the_rows_and_knows_their_order():
    net, images = build_net("attention", (8, 8), 4), torch.rand(1, 8, 8)
    assert not torch.allclose(net(images), net(images.flip(1)), atol=1e-4)
