import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import OptionError, UnknownNameError
from holdfast.lab.streams.examples import Examples
from holdfast.lab.streams.permuted import permuted, rotated
from holdfast.lab.streams.stream import Task


def images(*shape, num_classes=3):
    """Random images in which no two pixels are equal, so that a permutation can be read off."""

    def part(n):
        return Examples(torch.rand(n, *shape), torch.arange(n) % num_classes)

    return Task("noise", part(7), part(2), part(3), tuple(range(num_classes)))


def order_of(plain, other):
    """The pixel of `plain` that stands at each place of `other`."""
    return (other.inputs[0].flatten()[:, None] == plain.inputs[0].flatten()).int().argmax(dim=1)


def test_task_0_is_plain_and_each_other_has_one_permutation():
    source = images(1, 4, 5)
    stream = permuted(source, 4, seed=0)
    assert (stream.name, stream.scenario, stream.num_classes) == ("permuted-noise", "domain", 3)
    assert stream.input_shape == (1, 4, 5)
    assert stream.task_classes == ((0, 1, 2),) * 4
    assert [task.name for task in stream] == ["plain", "permutation 1", "permutation 2", "permutation 3"]
    assert stream[0].train.inputs is source.train.inputs
    orders = [order_of(source.train, task.train) for task in stream]
    assert len({tuple(order.tolist()) for order in orders}) == 4
    for order, task in zip(orders, stream, strict=True):
        assert sorted(order.tolist()) == list(range(20))
        for part, plain in [(task.train, source.train), (task.validation, source.validation), (task.test, source.test)]:
            assert torch.equal(part.inputs.flatten(1), plain.inputs.flatten(1)[:, order])
            assert torch.equal(part.targets, plain.targets)


def test_permutations_depend_on_the_seed_and_the_number_of_the_task_alone():
    source = images(6)
    short, long = permuted(source, 3, seed=1), permuted(source, 5, seed=1)
    assert torch.equal(short[2].train.inputs, long[2].train.inputs)
    assert not torch.equal(long[2].train.inputs, permuted(source, 5, seed=2)[2].train.inputs)


@given(fraction=st.floats(0.01, 1.0), seed=st.integers(0, 9))
def test_at_most_the_fraction_of_the_pixels_moves(fraction, seed):
    source = images(30)
    for task in permuted(source, 3, seed=seed, fraction=fraction):
        order = order_of(source.train, task.train)
        assert sorted(order.tolist()) == list(range(30))
        assert (order != torch.arange(30)).sum() <= round(30 * fraction)


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.5])
def test_a_fraction_is_a_share(fraction):
    with pytest.raises(OptionError, match=f"permuted: fraction={fraction}, expected a share of the pixels above 0"):
        permuted(images(4), 2, seed=0, fraction=fraction)


@pytest.mark.parametrize("make", [lambda source, n: permuted(source, n, seed=0), rotated])
def test_there_is_a_task(make):
    with pytest.raises(OptionError, match="(permuted|rotated): num_tasks=0, expected at least 1."):
        make(images(1, 4, 4), 0)
    assert len(make(images(1, 4, 4), 1)) == 1


@pytest.mark.parametrize("scenario", ["task", "class"])
def test_columns_of_its_own_for_each_task(scenario):
    for stream in (
        permuted(images(1, 4, 4), 3, seed=0, scenario=scenario),
        rotated(images(1, 4, 4), 3, scenario=scenario),
    ):
        assert stream.num_classes == 9
        assert stream.task_classes == ((0, 1, 2), (3, 4, 5), (6, 7, 8))
        assert stream[2].test.targets.tolist() == [6, 7, 8]
        assert stream[2].classes == (6, 7, 8)


def test_an_unknown_scenario_is_named():
    with pytest.raises(UnknownNameError, match="unknown scenario 'domains'. Did you mean 'domain'\\?"):
        permuted(images(4), 2, seed=0, scenario="domains")  # pyright: ignore[reportArgumentType]


def test_a_right_angle_turns_counterclockwise():
    source = images(2, 5, 5)
    stream = rotated(source, 3, max_angle=180.0)
    assert [task.name for task in stream] == ["plain", "rotated 90°", "rotated 180°"]
    assert stream.name == "rotated-noise"
    assert stream[0].test.inputs is source.test.inputs
    for k in (1, 2):
        torch.testing.assert_close(stream[k].test.inputs, source.test.inputs.rot90(k, dims=(-2, -1)), atol=1e-5, rtol=0)
        assert torch.equal(stream[k].test.targets, source.test.targets)


def test_angles_are_spaced_evenly_up_to_90_degrees():
    assert [task.name for task in rotated(images(1, 4, 4), 5)][1:] == [
        f"rotated {a}°" for a in ("22.5", "45", "67.5", "90")
    ]
    assert [task.name for task in rotated(images(1, 4, 4), 1)] == ["plain"]


def test_other_images_than_squares_keep_their_proportions():
    source = images(1, 4, 8)
    wide = rotated(source, 2, max_angle=30.0)[1].train.inputs
    padded = source.map(
        lambda part: Examples(F.pad(part.inputs, (0, 0, 2, 2)), part.targets), name="padded", classes=source.classes
    )
    square = rotated(padded, 2, max_angle=30.0)[1].train.inputs
    torch.testing.assert_close(wide, square[..., 2:6, :], atol=1e-5, rtol=0)


def test_only_images_can_be_rotated():
    with pytest.raises(OptionError, match="rotated: found inputs of shape \\[16\\], expected images \\[C, H, W\\]."):
        rotated(images(16), 2)
