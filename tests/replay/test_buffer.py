from __future__ import annotations

import json
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import OptionError, UnknownNameError
from holdfast.replay import Buffer


def offer(buffer: Buffer, targets: list[int], *, batch: int = 10, start: int = 0) -> None:
    """Examples whose input is their number."""
    for i in range(0, len(targets), batch):
        chosen = torch.tensor(targets[i : i + batch])
        numbers = torch.arange(start + i, start + i + len(chosen))
        buffer.offer(inputs=numbers.float()[:, None], targets=chosen)


@given(
    st.lists(st.integers(0, 4), max_size=60), st.integers(1, 12), st.sampled_from(["reservoir", "balanced"]), st.data()
)
def test_what_it_holds_was_offered_and_belongs_together(targets, capacity, keep, data):
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    buffer = Buffer(capacity, keep=keep)
    offer(buffer, targets, batch=data.draw(st.integers(1, 20)))
    assert len(buffer) == min(capacity, len(targets))
    if targets:
        numbers = buffer["inputs"].squeeze(1).long().tolist()
        assert len(set(numbers)) == len(numbers)
        assert buffer["targets"].tolist() == [targets[number] for number in numbers]


def test_a_reservoir_keeps_every_example_as_often():
    """60 of 300 in each of 400 buffers: each example 80 times, within five standard errors."""
    torch.manual_seed(0)
    kept: Counter[int] = Counter()
    for _ in range(400):
        buffer = Buffer(60)
        offer(buffer, [0] * 300, batch=100)
        kept.update(buffer["inputs"].squeeze(1).long().tolist())
    assert len(kept) == 300
    error = (400 * 0.2 * 0.8) ** 0.5
    assert all(abs(count - 80) < 5 * error for count in kept.values())


def test_balance_in_an_unbalanced_stream():
    targets = [0] * 500 + [1] * 50 + [2] * 10 + [0] * 100
    sizes = {}
    for keep in ("reservoir", "balanced"):
        torch.manual_seed(0)
        buffer = Buffer(30, keep=keep)
        offer(buffer, targets)
        sizes[keep] = Counter(buffer["targets"].tolist())
    assert sizes["balanced"] == {0: 10, 1: 10, 2: 10}
    assert sizes["reservoir"][0] > 20


def test_within_a_class_the_balanced_buffer_is_a_reservoir():
    """12 places, 4 a class of 40 offered: each example in a tenth of 600 buffers, within five standard errors."""
    torch.manual_seed(0)
    kept: Counter[int] = Counter()
    for _ in range(600):
        buffer = Buffer(12, keep="balanced")
        offer(buffer, [0, 1, 2] * 40)
        assert Counter(buffer["targets"].tolist()) == {0: 4, 1: 4, 2: 4}
        kept.update(buffer["inputs"].squeeze(1).long().tolist())
    error = (600 * 0.1 * 0.9) ** 0.5
    assert all(abs(kept[number] - 60) < 5 * error for number in range(120))


def test_draws_are_different_examples():
    buffer = Buffer(20)
    offer(buffer, [0, 1] * 10)
    drawn = buffer.draw(15)
    assert len(drawn["targets"]) == len(drawn["inputs"].unique()) == 15
    assert len(buffer.draw(50)["targets"]) == 20
    even = buffer.draw(50, among=buffer["targets"] == 0)
    assert even["targets"].tolist() == [0] * 10
    assert len(buffer.draw(5, among=torch.zeros(20, dtype=torch.bool))["targets"]) == 0


def test_what_is_kept_is_no_view_and_has_no_graph():
    inputs = torch.ones(3, 2, requires_grad=True)
    buffer = Buffer(5)
    buffer.offer(inputs=inputs * 2, targets=torch.zeros(3, dtype=torch.long))
    with torch.no_grad():
        inputs.zero_()
    assert (buffer["inputs"] == 2).all()
    assert not buffer["inputs"].requires_grad
    buffer.draw(3)["inputs"].zero_()
    assert (buffer["inputs"] == 2).all()


@pytest.mark.parametrize("keep", ["reservoir", "balanced"])
@pytest.mark.parametrize("before", [0, 7, 200])
def test_state_goes_on(keep, before):
    torch.manual_seed(0)
    first, second = Buffer(20, keep=keep), Buffer(20, keep=keep)
    offer(first, [0, 1, 1, 2, 2, 2] * (before // 6))
    tensors, notes = first.state()
    second.load_state({name: value.clone() for name, value in tensors.items()}, json.loads(json.dumps(notes)))
    for buffer in (first, second):
        torch.manual_seed(1)
        offer(buffer, [3, 0] * 30, start=1000)
    assert torch.equal(first["inputs"], second["inputs"])
    assert torch.equal(first.draw(20)["targets"].sort()[0], second.draw(20)["targets"].sort()[0])
    assert first.state()[1] == second.state()[1]


def test_bad_options():
    with pytest.raises(OptionError, match=r"Buffer: capacity=0, expected a whole number >= 1."):
        Buffer(0)
    with pytest.raises(UnknownNameError, match=r"unknown way to keep examples 'fifo'. .*Known: balanced, reservoir"):
        Buffer(3, keep="fifo")  # pyright: ignore[reportArgumentType]
