import pytest
import torch
from torch import nn

from holdfast.errors import OptionError
from holdfast.lab.training import NETS, ResNet, VisionTransformer, build_net, mlp


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


def num_weights(net: nn.Module) -> int:
    return sum(weight.numel() for weight in net.parameters())


def test_a_resnet_20_has_the_layers_of_its_paper():
    net = ResNet(10)
    convolutions = [
        module for module in net.modules() if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)
    ]
    assert len(convolutions) == 19
    assert [convolutions[at].out_channels for at in (0, 6, 7, 12, 13, 18)] == [16, 16, 32, 32, 64, 64]
    short = sum(weight.numel() for block in net.blocks for weight in block.short.parameters())
    assert num_weights(net) - short == 269_722  # as He et al. have it, 0.27 million
    pictures = torch.rand(2, 3, 32, 32)
    assert net(pictures).shape == (2, 10)
    assert torch.equal(net.eval()(pictures), net.head(net.features(pictures)))
    assert net.features(pictures).shape == (2, 64)
    assert net.norm(net.stem(pictures)).shape[-1] == 32
    assert num_weights(build_net("resnet", (1, 8, 8), 7, width=4, stage_blocks=1)) < 10_000


def test_a_vision_transformer_sees_where_its_patches_are():
    net = VisionTransformer(32, 10).eval()
    assert 2e6 < num_weights(net) < 4e6
    pictures = torch.rand(2, 3, 32, 32)
    assert net(pictures).shape == (2, 10)
    moved = pictures.roll(4, dims=-1)  # a patch to the right
    assert not torch.allclose(net(pictures), net(moved), atol=1e-4)
    with torch.no_grad():
        net.positions.zero_()
    assert torch.allclose(net(pictures), net(moved), atol=1e-4)
    for name in ("vit", "resnet"):
        with pytest.raises(OptionError, match=rf"net {name}: inputs of shape \[1024\]; expected square pictures \[C"):
            build_net(name, (1024,), 10)
    with pytest.raises(OptionError, match="net vit: patch=5; expected a divisor of the pictures' side, 32"):
        build_net("vit", (3, 32, 32), 10, patch=5)


@pytest.mark.parametrize("name", NETS)
def test_every_net_learns_pictures_with_colors(name):
    net = build_net(name, (3, 16, 16), 4, seed=0).train()
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(16) % 4
    pictures = torch.rand(4, 3, 16, 16, generator=generator)[targets]
    pictures = pictures + 0.1 * torch.rand(16, 3, 16, 16, generator=generator)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(pictures), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
