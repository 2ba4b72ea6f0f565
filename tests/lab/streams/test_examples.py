import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import BatchError, OptionError
from holdfast.lab.streams.examples import Examples


def numbered(n):
    return Examples(torch.arange(n * 2.0).reshape(n, 2), torch.arange(n))


def test_iterating_yields_batches_of_256_in_order_again_and_again():
    examples = numbered(600)
    for batches in (list(examples), list(examples)):
        assert [len(targets) for _, targets in batches] == [256, 256, 88]
        assert torch.equal(torch.cat([inputs for inputs, _ in batches]), examples.inputs)
        assert torch.equal(torch.cat([targets for _, targets in batches]), examples.targets)
        assert batches[0][0].data_ptr() == examples.inputs.data_ptr()  # views


@given(n=st.integers(0, 40), size=st.integers(1, 45), seed=st.integers(0, 5))
def test_shuffled_batches_have_every_example_once_beside_its_target(n, size, seed):
    examples = numbered(n)
    batches = list(examples.batches(size, generator=torch.Generator().manual_seed(seed)))
    assert [len(targets) for _, targets in batches] == [min(size, n - i) for i in range(0, n, size)]
    assert sorted(int(y) for _, targets in batches for y in targets) == list(range(n))
    assert all(torch.equal(inputs[:, 0], 2.0 * targets) for inputs, targets in batches)


def test_the_order_is_torch_s_permutation_of_the_generator():
    examples = numbered(10)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(4))
    batches = list(examples.batches(4, generator=torch.Generator().manual_seed(4)))
    assert torch.equal(torch.cat([targets for _, targets in batches]), order)


def test_the_order_is_drawn_when_asked_for():
    generator = torch.Generator().manual_seed(0)
    pending = numbered(8).batches(8, generator=generator)
    after = generator.get_state()
    list(pending)
    assert torch.equal(generator.get_state(), after)
    assert not torch.equal(torch.Generator().manual_seed(0).get_state(), after)


def test_take_and_to():
    examples = numbered(5)
    assert torch.equal(examples.take(2).targets, torch.tensor([0, 1]))
    assert len(examples.take(9)) == 5
    moved = examples.to("meta")
    assert moved.inputs.is_meta
    assert moved.targets.is_meta


def test_each_input_has_a_target():
    with pytest.raises(BatchError, match="Examples: found 3 inputs and 2 targets, expected as many of both."):
        Examples(torch.zeros(3), torch.zeros(2))


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_has_an_example(size):
    with pytest.raises(OptionError, match=f"Examples.batches: size={size}, expected at least 1."):
        numbered(3).batches(size)
