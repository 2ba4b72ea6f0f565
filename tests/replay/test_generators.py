import copy

import pytest
import torch
from tests.replay.drawers import Stuck, patterns
from torch import nn

from holdfast.errors import BatchError, CollapseError, HoldfastError, NotFiniteError
from holdfast.replay import VAE, WGAN, Generator, Holdable, check_alive, frozen, is_conditional
from holdfast.replay.generators import check_range, drawn_classes

SHAPE = (1, 8, 8)


def generators() -> dict[str, nn.Module]:
    return {
        "vae": VAE(SHAPE, hidden=(16,), latent=3),
        "cvae": VAE(SHAPE, num_classes=4, hidden=(16,), latent=3),
        "wgan": WGAN(SHAPE, latent=4, width=4),
        "acgan": WGAN(SHAPE, num_classes=4, latent=4, width=4),
    }


@pytest.mark.parametrize("name", generators())
class TestProtocol:
    """What every generator of the library must do."""

    def test_it_is_a_generator_that_can_be_held(self, name):
        generator = generators()[name]
        assert isinstance(generator, Generator)
        assert isinstance(generator, Holdable)
        assert is_conditional(generator) == (name in ("cvae", "acgan"))

    def test_samples(self, name):
        generator, classes = generators()[name], torch.arange(6) % 4
        draws = [generator.sample(6, classes=classes, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
        assert draws[0].shape == (6, *SHAPE)
        assert 0 <= draws[0].min() < draws[0].max() <= 1
        assert not draws[0].requires_grad
        assert torch.equal(draws[0], draws[1])
        assert not torch.equal(draws[0], draws[2])

    def test_one_iteration_moves_every_weight(self, name):
        generator = generators()[name]
        before = {key: value.clone() for key, value in generator.named_parameters()}
        images, classes = patterns(20, classes=(0, 1, 2, 3))
        loss = generator.fit(images, classes, optimizers=generator.optimizers())
        assert loss.shape == ()
        assert loss.isfinite()
        assert not loss.requires_grad
        assert [key for key, value in generator.named_parameters() if torch.equal(value, before[key])] == []

    def test_weights_of_examples_count(self, name):
        images, classes = patterns(20, classes=(0, 1, 2, 3))
        weights = torch.arange(20.0) / 190
        after = []
        for given in (None, torch.full((20,), 1 / 20), weights):
            torch.manual_seed(0)
            generator = generators()[name]
            generator.fit(images, classes, weights=given, optimizers=generator.optimizers())
            after.append(nn.utils.parameters_to_vector(generator.parameters()))
        torch.testing.assert_close(after[0], after[1])
        assert not torch.allclose(after[0], after[2], rtol=1e-6, atol=1e-6)

    def test_going_on_from_a_state_is_the_same_to_the_bit(self, name):
        images, classes = patterns(20, classes=(0, 1, 2, 3))
        first, second = generators()[name], generators()[name]
        optimizers = first.optimizers()
        first.fit(images, classes, optimizers=optimizers)
        second.load_state_dict(first.state_dict())
        others = second.optimizers()
        for other, optimizer in zip(others, optimizers):
            other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for generator, each in ((first, optimizers), (second, others)):
            torch.manual_seed(3)
            generator.fit(images, classes, optimizers=each)
        assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values()))

    def test_a_frozen_copy_stays_as_it_is(self, name):
        generator = generators()[name]
        twin = frozen(generator)
        kept = {key: value.clone() for key, value in twin.state_dict().items()}
        images, classes = patterns(20, classes=(0, 1, 2, 3))
        generator.fit(images, classes, optimizers=generator.optimizers())
        assert all(torch.equal(value, kept[key]) for key, value in twin.state_dict().items())
        assert not any(parameter.requires_grad for parameter in twin.parameters())
        assert not any(module.training for module in twin.modules())

    def test_building_one_leaves_the_random_state_alone(self, name):
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        generators()
        assert torch.equal(torch.rand(3), expected)

    def test_it_says_what_range_it_expects(self, name):
        generator = generators()[name]
        images, classes = patterns(20, classes=(0, 1, 2, 3))
        scaled = 2 * images - 1
        with pytest.raises(BatchError, match=r"AN?E?: found inputs from -1 to 0.\d+, expected 0..1. Scale them"):
            generator.fit(scaled, classes, optimizers=generator.optimizers())
        low, high = scaled.aminmax()
        generator.fit((scaled - low) / (high - low), classes, optimizers=generator.optimizers())

    def test_it_is_alive(self, name):
        generator = generators()[name]
        images, classes = patterns(20, classes=(0, 1, 2, 3))
        optimizers = generator.optimizers()
        for _ in range(10):  # a WGAN's classes are all alike before it has learned any
            generator.fit(images, classes, optimizers=optimizers)
        check_alive(generator, classes=(0, 1, 2, 3), where="test")


@pytest.mark.parametrize("name", ["cvae", "acgan"])
def test_a_conditional_generator_asks_for_classes(name):
    generator = generators()[name]
    with pytest.raises(BatchError, match="found no classes, and this one is conditional on 4. Pass classes, int64"):
        generator.sample(2)
    assert len(generator.sample(2, classes=torch.tensor([0, 3]))) == 2


class TestAlive:
    def test_a_collapsed_one_is_told(self):
        check_alive(Stuck(), where="here")
        with pytest.raises(CollapseError, match="here: the generator has collapsed: 64 samples are one and the same"):
            check_alive(Stuck(1e-5), where="here")
        assert issubclass(CollapseError, HoldfastError)

    def test_each_class_is_looked_at(self):
        check_alive(Stuck(num_classes=4), classes=(0, 1, 2), where="here")
        with pytest.raises(
            CollapseError, match="64 samples of class 3 are one and the same, with a standard deviation "
        ):
            check_alive(Stuck(num_classes=4), classes=(0, 3), where="here")

    @pytest.mark.parametrize("source", ["passed", "global"])
    @pytest.mark.parametrize("heeds", [0.0, 1e-3])
    def test_one_that_ignores_its_class_is_told(self, source, heeds, monkeypatch):
        """From whatever its random numbers come; and its samples of one class may differ as much as they will."""
        if source == "global":
            sample = Stuck.sample
            monkeypatch.setattr(
                Stuck, "sample", lambda self, n, *, classes, generator: sample(self, n, classes=classes)
            )
        check_alive(Stuck(num_classes=3), classes=(0, 1, 2), where="here")
        before = torch.random.get_rng_state()
        with pytest.raises(
            CollapseError, match=r"here: the generator ignores the class .* samples of 3 classes differ by"
        ):
            check_alive(Stuck(num_classes=3, heeds=heeds), classes=(0, 1, 2), where="here")
        assert torch.equal(torch.random.get_rng_state(), before)
        check_alive(Stuck(heeds=heeds), classes=(0, 1, 2), where="here")  # the remedy: not conditional
        check_alive(Stuck(num_classes=3, heeds=heeds), classes=(1,), where="here")  # with one class nothing can be told

    def test_a_trained_one_whose_class_is_cut_off_is_told(self):
        class Deaf(VAE):
            def sample(self, n, *, classes=None, generator=None):
                return super().sample(n, classes=torch.zeros_like(classes), generator=generator)

        images, classes = patterns(20, classes=(0, 1, 2, 3))
        for kind in (VAE, Deaf):
            drawer = kind(SHAPE, num_classes=4, hidden=(16,), latent=3)
            optimizers = drawer.optimizers()
            for _ in range(20):
                drawer.fit(images, classes, optimizers=optimizers)
            if kind is VAE:
                check_alive(drawer, classes=(0, 1, 2, 3), where="here")
            else:
                with pytest.raises(CollapseError, match="ignores the class"):
                    check_alive(drawer, classes=(0, 1, 2, 3), where="here")

    def test_a_diverged_one_is_told(self):
        broken = Stuck()
        with torch.no_grad():
            broken.weight[1, 0] = float("nan")
        with pytest.raises(NotFiniteError, match="here: the generator has diverged: not finite are weight. Lower the"):
            check_alive(broken, where="here")

    def test_samples_that_are_not_finite(self):
        with pytest.raises(CollapseError):
            check_alive(Stuck(float("inf")), where="here")


def test_classes_are_drawn_alike_often():
    drawn = drawn_classes(3000, (2, 5, 7), device=torch.device("cpu"), generator=torch.Generator().manual_seed(0))
    values, counts = drawn.unique(return_counts=True)
    assert values.tolist() == [2, 5, 7]
    assert counts.min() > 900


def test_the_range_that_is_checked():
    check_range(torch.tensor([0.0, 1.0]), where="x")
    with pytest.raises(BatchError):
        check_range(torch.tensor([0.0, float("nan")]), where="x")
