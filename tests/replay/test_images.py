import pytest
import torch
import torch.nn.functional as F
from torch import nn

from holdfast.errors import OptionError
from holdfast.replay.images import ConditionalBatchNorm, ImageCritic, ImageGenerator


def one_hot(classes: list[int], num_classes: int) -> torch.Tensor:
    return F.one_hot(torch.tensor(classes), num_classes).float()


class TestConditionalBatchNorm:
    def test_with_one_class_it_is_batch_norm(self):
        ours, torchs = ConditionalBatchNorm(1, 3), nn.BatchNorm2d(3)
        with torch.no_grad():
            scale, shift = torch.rand(3), torch.rand(3)
            ours.scale.copy_(scale), torchs.weight.copy_(scale), ours.shift.copy_(shift), torchs.bias.copy_(shift)
        x = torch.randn(6, 3, 4, 4) * 2 + 1
        members = torch.ones(6, 1)
        torch.testing.assert_close(ours(x, members), torchs(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.running_mean[0], torchs.running_mean)
        # torch keeps the unbiased variance, of n - 1
        torch.testing.assert_close(ours.running_variance[0] - 0.9, (torchs.running_var - 0.9) * 95 / 96)
        ours.eval(), torchs.eval()
        torch.testing.assert_close(ours(x, members), torchs(x), rtol=0.01, atol=0.01)

    def test_classes_in_one_batch_do_not_meet(self):
        x, classes = torch.randn(6, 2, 3, 3), [0, 2, 0, 2, 2, 0]
        together = ConditionalBatchNorm(3, 2)
        out = together(x, one_hot(classes, 3))
        for label in (0, 2):
            chosen = torch.tensor(classes) == label
            alone = ConditionalBatchNorm(3, 2)
            torch.testing.assert_close(alone(x[chosen], one_hot([label] * 3, 3)), out[chosen])
            torch.testing.assert_close(alone.running_mean[label], together.running_mean[label])
        assert torch.equal(together.running_mean[1], torch.zeros(2))
        assert torch.equal(together.running_variance[1], torch.ones(2))

    def test_a_class_that_is_not_there_learns_nothing(self):
        norm = ConditionalBatchNorm(3, 2)
        norm(torch.randn(6, 2, 3, 3), one_hot([0, 2, 0, 2, 2, 0], 3)).square().sum().backward()
        assert norm.scale.grad is not None
        assert (norm.scale.grad[1] == 0).all()
        assert (norm.scale.grad[[0, 2]] != 0).all()


@pytest.mark.parametrize(
    ("side", "sides", "channels"),
    [(28, [4, 7, 14, 28], [128, 64, 32]), (32, [4, 8, 16, 32], [128, 64, 32]), (8, [2, 4, 8], [64, 32])],
)
def test_sizes_are_those_of_the_paper(side, sides, channels):
    generator = ImageGenerator((1, side, side), num_classes=10, latent=128, width=32)
    critic = ImageCritic((1, side, side), num_classes=10, width=32)
    assert generator.linear.out_features == channels[0] * sides[0] ** 2
    assert [norm.scale.shape for norm in generator.norms] == [(10, width) for width in channels]
    assert all(each.kernel_size == (5, 5) and each.stride == (2, 2) for each in generator.convolutions)
    assert [each.out_channels for each in critic.convolutions] == channels[::-1]
    seen = []
    for convolution in generator.convolutions:
        convolution.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[-1]))
    images = generator(torch.randn(3, 128), torch.tensor([0, 4, 9]))
    assert seen == sides[1:]
    assert images.shape == (3, 1, side, side)
    assert images.abs().max() <= 1
    value, logits = critic(images)
    assert (value.shape, logits.shape) == ((3,), (3, 10))


def test_without_classes():
    generator = ImageGenerator((3, 16, 16), num_classes=None, latent=5, width=4)
    value, logits = ImageCritic((3, 16, 16), num_classes=None, width=4)(generator(torch.randn(2, 5)))
    assert value.shape == (2,)
    assert logits is None


@pytest.mark.parametrize("shape", [(784,), (1, 8, 6), (1, 2, 2)])
def test_what_is_no_small_image(shape):
    with pytest.raises(
        OptionError, match=r"expected \(channels, side, side\) with a side of at least 4. For other inp"
    ):
        ImageCritic(shape, num_classes=None, width=4)
