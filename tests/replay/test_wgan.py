import pytest
import torch
from tests.replay.drawers import class_of, patterns

import holdfast as hf
from holdfast.replay import WGAN, Alignment, frozen

SHAPE = (1, 8, 8)


def gan(num_classes: int | None = 3, **options) -> WGAN:
    return WGAN(SHAPE, num_classes=num_classes, latent=8, width=8, **{"lr": 1e-3, **options})


def trained(wgan: WGAN, *, classes: tuple[int, ...], steps: int, **options) -> WGAN:
    images, labels = patterns(400, classes=classes)
    optimizers = wgan.optimizers()
    for step in range(steps):
        part = torch.randperm(400, generator=torch.Generator().manual_seed(step))[:160]
        wgan.fit(images[part], labels[part], optimizers=optimizers, **options)
    return wgan


class TestGradientPenalty:
    def test_of_a_linear_critic_in_closed_form(self):
        """D(x) = a sum(x) has a gradient of norm a * 8 everywhere."""
        wgan = gan(None)
        wgan.critic.forward = lambda x: (0.5 * x.flatten(1).sum(1), None)
        images = torch.rand(4, *SHAPE)
        torch.testing.assert_close(wgan._gradient_penalty(images, images.flip(0)), torch.tensor((0.5 * 8 - 1.0) ** 2))

    def test_it_reaches_the_critics_weights(self):
        wgan = gan()
        wgan._gradient_penalty(torch.rand(4, *SHAPE), torch.rand(4, *SHAPE)).backward()
        assert wgan.critic.convolutions[0].weight.grad.abs().max() > 0


class TestFit:
    def test_it_deals_the_batch_out_to_the_critic(self, monkeypatch):
        wgan, seen = gan(critic_steps=3), []
        step = wgan._critic_step
        monkeypatch.setattr(wgan, "_critic_step", lambda x, *rest: (seen.append(len(x)), step(x, *rest))[1])
        images, labels = patterns(20)
        optimizers = wgan.optimizers()
        wgan.fit(images, labels, optimizers=optimizers)
        assert seen == [7, 7, 6]
        steps = [[int(state["step"]) for state in each.state.values()] for each in optimizers]
        assert set(steps[0]) == {1}
        assert set(steps[1]) == {3}

    def test_optimizers_are_those_of_the_paper(self):
        first, second = WGAN(SHAPE).optimizers()
        assert first.defaults["lr"] == second.defaults["lr"] == 1e-4
        assert first.defaults["betas"] == second.defaults["betas"] == (0.0, 0.9)

    def test_the_critic_is_trainable_again(self):
        wgan = trained(gan(), classes=(0,), steps=1)
        assert all(parameter.requires_grad for parameter in wgan.parameters())

    @pytest.mark.slow
    def test_it_learns_the_class_asked_for(self):
        wgan = trained(gan(), classes=(0, 1, 2), steps=250)
        classes = torch.arange(150) % 3
        images = wgan.sample(150, classes=classes)
        assert (class_of(images) == classes).float().mean() > 0.95
        assert images[classes == 1].std(0).mean() > 0.05


class TestAlignment:
    def test_of_itself_there_is_nothing_to_align(self):
        wgan = gan().eval()
        assert wgan._misalignment(20, Alignment(frozen(wgan), (0, 1), 1.0)).item() == 0.0

    def test_the_distance_in_closed_form(self):
        """An old generator of white images and a new one of black: 64 pixels, each 2 apart."""
        wgan, other = gan().eval(), frozen(gan())
        with torch.no_grad():
            wgan.generator.convolutions[-1].bias.fill_(-100.0)
            other.generator.convolutions[-1].bias.fill_(100.0)
        assert wgan._misalignment(20, Alignment(other, (0, 1), 1.0)).item() == 64 * 4.0

    def test_it_holds_what_the_generator_drew(self):
        start = trained(gan(), classes=(0,), steps=60)
        classes = torch.zeros(50, dtype=torch.int64)
        state = torch.Generator().manual_seed(0)
        before = start.sample(50, classes=classes, generator=state)
        distance = {}
        for weight in (None, 0.3):
            wgan, old = gan(), frozen(start)
            wgan.load_state_dict(start.state_dict())
            aligned = None if weight is None else Alignment(old, (0,), weight)
            trained(wgan, classes=(1,), steps=60, alignment=aligned)
            after = wgan.sample(50, classes=classes, generator=torch.Generator().manual_seed(0))
            distance[weight] = float((after - before).square().mean())
        assert distance[0.3] < 0.2 * distance[None]


def test_sampling_leaves_the_mode_alone():
    wgan = gan().train()
    wgan.sample(2, classes=torch.tensor([0, 1]))
    assert wgan.generator.training


def test_its_generator_can_be_held():
    """Like any network, by the library's own Fisher information and EWC."""
    wgan = trained(gan(), classes=(0, 1), steps=2)
    held = wgan.holdable_part(20, classes=(0, 1), seed=0)
    importance = hf.fisher(held.module, held.batches, kind=held.kind, loss=held.loss)
    (z, classes), _ = next(iter(held.batches))
    wgan.eval()
    expected = torch.zeros_like(wgan.generator.linear.weight)
    for one in range(20):
        wgan.zero_grad()
        images = wgan.generator(z[one : one + 1], classes[one : one + 1])
        held.loss(images, (None, classes[one : one + 1])).sum().backward()
        expected += wgan.generator.linear.weight.grad.square() / 20
    torch.testing.assert_close(importance["linear.weight"], expected, rtol=1e-3, atol=1e-8)
    assert (importance["norms.0.scale"][2] == 0).all()
    hf.EWC(held.module, strength=1.0).attach(wgan.optimizers()[0]).retain(importance)


def test_half_precision_only_where_it_was_asked_for():
    seen = []
    for precision in ("float32", "bfloat16"):
        wgan = gan(precision=precision)
        wgan.critic.convolutions[0].register_forward_hook(lambda m, i, output: seen.append(output.dtype))
        images, labels = patterns(10)
        assert wgan.fit(images, labels, optimizers=wgan.optimizers()).dtype == torch.float32
        assert all(parameter.dtype == torch.float32 for parameter in wgan.parameters())
        assert wgan.sample(2, classes=torch.tensor([0, 1])).dtype == torch.float32
        assert (torch.bfloat16 in seen) == (precision == "bfloat16")
        assert torch.float32 in seen  # the gradient penalty


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo looks at it
def test_compiled_networks_do_the_same():
    images, labels = patterns(20)
    weights, names = [], []
    for compiled in (False, True):
        wgan = gan()
        if compiled:
            wgan.compile_networks(backend="eager")
        torch.manual_seed(0)
        wgan.fit(images, labels, optimizers=wgan.optimizers())
        weights.append(torch.nn.utils.parameters_to_vector(wgan.parameters()))
        names.append(list(frozen(wgan).state_dict()))
    torch.testing.assert_close(*weights)
    assert names[0] == names[1]


@pytest.mark.gpu
def test_on_cuda_in_half_precision():
    wgan = gan(precision="bfloat16").cuda()
    images, labels = (tensor.cuda() for tensor in patterns(40))
    optimizers = wgan.optimizers()
    for _ in range(3):
        assert wgan.fit(images, labels, optimizers=optimizers).isfinite()
    assert wgan.sample(4, classes=labels[:4]).device.type == "cuda"
