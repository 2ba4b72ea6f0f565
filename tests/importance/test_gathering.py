"""Small batches go through the model together, and nothing else changes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import holdfast as hf
from holdfast.errors import CoupledExamplesError, RandomOutputsError
from holdfast.importance.gathering import gathered_batches, pieces
from holdfast.importance.measure import Batch
from holdfast.moments.calls import Call


def batch(start: int, size: int, *, width: int = 2, note: object = None) -> Batch:
    x, y = torch.arange(start, start + size).unsqueeze(1).repeat(1, width), torch.arange(start, start + size)
    content = (x, y) if note is None else ((x, note), y)
    return Batch(content, Call((x,), {}, size), range(start, start + size))


def sizes(batches: list[Batch], *, room: int) -> list[int]:
    found = []
    for joined in gathered_batches(iter(batches), lambda: room):
        assert all(len(tensor) == joined.call.size for tensor in (*joined.call.args[:1], joined.content[1]))
        assert list(joined.numbers) == joined.content[1].tolist()
        found.append(joined.call.size)
    return found


@pytest.mark.parametrize(
    ("given", "room", "expected"),
    [
        ([2, 2, 2, 2, 2], 4, [4, 4, 2]),
        ([2, 2, 3, 2], 5, [4, 3, 2]),
        ([2, 2, 9, 2], 6, [4, 9, 2]),
        ([2, 2], 0, [2, 2]),
        ([2, 3, 2], 5, [2, 3, 2]),
        ([], 5, []),
    ],
)
def test_as_many_as_there_is_room_for_in_their_order(given: list[int], room: int, expected: list[int]):
    starts = [sum(given[:i]) for i in range(len(given))]
    batches = [batch(start, size) for start, size in zip(starts, given)]
    assert sizes(batches, room=room) == expected
    seen = [y.clone() for joined in gathered_batches(iter(batches), lambda: room) for y in (joined.content[1],)]
    assert not given or torch.equal(torch.cat(seen), torch.arange(sum(given)))


def test_only_batches_of_one_form_go_together():
    assert sizes([batch(0, 2), batch(2, 2, width=3), batch(4, 2, width=3)], room=8) == [2, 4]
    assert sizes([batch(0, 2), batch(2, 2, note="words"), batch(4, 2)], room=8) == [2, 2, 2]


class Sizes(nn.Module):
    """Notes how many examples it is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.seen = nn.Linear(3, 4), []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        return self.layer(x)


def reused(examples: list[tuple[Tensor, Tensor]]) -> Iterator[Any]:
    """Every batch in the same memory, as some loaders have it."""
    x, y = examples[0][0].clone(), examples[0][1].clone()
    for inputs, targets in examples:
        x.copy_(inputs), y.copy_(targets)
        yield x, y
        x.fill_(torch.nan), y.fill_(0)


@pytest.mark.parametrize("kind", ["exact", "sampled", "empirical"])
def test_data_may_use_their_memory_again(kind: Any):
    torch.manual_seed(0)
    examples = [(torch.randn(2, 3), torch.randint(4, (2,))) for _ in range(20)]
    model = Sizes()
    once = [tuple(torch.cat(tensors) for tensors in zip(*examples))]
    expected = hf.fisher(model, once, kind=kind)
    model.seen.clear()
    found = hf.fisher(model, reused(examples), kind=kind)
    assert max(model.seen) == 38  # all but the first batch, which is looked at alone
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


LAYERWISE: dict[str, Any] = {
    "signal": hf.signal,
    "signal of activations": partial(hf.signal, bias="activation"),
    "local mas": partial(hf.mas, local=True),
    "kfac": hf.kfac,
    "empirical kfac": partial(hf.kfac, kind="empirical"),
}


@pytest.mark.parametrize("kind", LAYERWISE)
def test_layer_by_layer_small_batches_go_together_as_well(kind: str):
    torch.manual_seed(0)
    measure, model = LAYERWISE[kind], Sizes().double()
    examples = [(torch.randn(2, 3).double(), torch.randint(4, (2,))) for _ in range(20)]
    singles = [(x[b : b + 1], y[b : b + 1]) for x, y in examples for b in range(2)]
    expected = measure(model, singles[::-1])  # of which nothing is studied, and each is run alone
    model.seen.clear()
    found = measure(model, reused(examples))
    assert max(model.seen) == 38
    if not kind.endswith("kfac"):
        assert {*found} == {*expected} == {"layer.weight", "layer.bias"}
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-6, atol=0.0)
        return
    assert {*found} == {*expected} == {"layer.weight"}
    for name, factors in expected.items():
        for side in ("inputs", "outputs"):
            ours, theirs = getattr(found[name], side), getattr(factors, side)
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("measure", [hf.signal, partial(hf.mas, local=True)])
def test_examples_that_mix_are_found_on_the_way(measure: Any):
    class Centred(nn.Module):
        """Subtracts the mean over the examples."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.layer(x)
            return x - x.mean(dim=0)

    drops = nn.Sequential(nn.Linear(3, 4), Drops())
    data = [(torch.randn(2, 3), torch.randint(4, (2,))) for _ in range(3)]
    one = (torch.randn(1, 3), torch.randint(4, (1,)))
    for batches in (data, [one, *data]):
        with pytest.raises(CoupledExamplesError, match="differ from those for each of them alone"):
            measure(Centred(), batches)
    for batches in (data, [one], [one, *data]):
        with pytest.raises(RandomOutputsError, match="draws random numbers in evaluation mode: its outputs"):
            measure(drops, batches)


class Drops(nn.Module):
    """Drops out in evaluation mode, too."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.5, training=True)


def test_a_loss_of_the_users_own_sees_the_batches_of_the_data():
    seen: list[int] = []

    def loss(outputs: Tensor, content: Any) -> Tensor:
        seen.append(len(content[1]))
        return outputs.square().sum(dim=1)

    examples = [(torch.randn(2, 3), torch.randint(4, (2,))) for _ in range(6)]
    hf.fisher(Sizes(), examples, kind="empirical", loss=loss)
    assert set(seen) == {1, 2}  # two, and one alone where the loss is checked


class Probe(nn.Module):
    """A small head on a frozen backbone that fills much memory, and notes how many examples it is called with."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(1, channels, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.backbone.requires_grad_(False)
        self.head, self.seen = nn.Linear(channels, 2), []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        return self.head(self.backbone(x))


def images(side: int, count: int) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(2, 1, side, side), torch.randint(2, (2,))) for _ in range(count)]


@pytest.mark.parametrize("measure", [hf.fisher, hf.mas, hf.taylor, hf.signal, partial(hf.mas, local=True), hf.kfac])
@pytest.mark.parametrize(("channels", "most"), [(4, 2**23 // (3 * 4 * 4 * 62**2)), (256, 3)])
def test_what_passes_through_frozen_layers_counts(measure: Any, channels: int, most: int):
    model = Probe(channels)
    measure(model, images(64, 20))
    assert max(model.seen) <= max(3, most)
    assert channels > 4 or max(model.seen) > 3


def test_no_more_go_together_than_chunk_bytes_allow():
    examples = [(torch.randn(2, 3), torch.randint(4, (2,))) for _ in range(40)]
    model = Sizes()
    hf.fisher(model, examples, kind="empirical", chunk_bytes=500)
    assert 2 < max(model.seen) <= 500 // (4 * (3 + 4))


def test_memory_is_taken_as_batches_come():
    kept = [batch(start, 2) for start in range(0, 20, 2)]
    joined = next(iter(gathered_batches(iter(kept), lambda: 10_000)))
    assert joined.call.size == 20
    assert joined.content[0].untyped_storage().nbytes() <= 4 * joined.content[0].nbytes


@pytest.mark.parametrize(("width", "together"), [(2, 16), (4, 8), (32, 2)])
def test_larger_examples_than_those_measured_have_less_room(width: int, together: int):
    rooms = iter([0, *[24] * 40])
    found = [
        joined.call.size
        for joined in gathered_batches(
            iter([batch(0, 2), *(batch(start, 2, width=width) for start in range(0, 16, 2))]), lambda: next(rooms)
        )
    ]
    assert found[0] == 2
    assert found[1] == together


def test_targets_count_as_well():
    wide = [Batch((x, torch.zeros(2, 2**20)), Call((x,), {}, 2), range(2)) for x in torch.zeros(4, 2, 1)]
    assert [joined.call.size for joined in gathered_batches(iter(wide), lambda: 1000)] == [2, 2, 2, 2]


def test_pieces_hold_the_same_examples_in_order_as_views():
    whole = batch(0, 7)
    found = list(pieces(whole, 3))
    assert [piece.call.size for piece in found] == [3, 3, 1]
    assert torch.equal(torch.cat([piece.content[1] for piece in found]), whole.content[1])
    assert torch.equal(torch.cat([piece.call.args[0] for piece in found]), whole.call.args[0])
    assert found[1].content[0].untyped_storage().data_ptr() == whole.content[0].untyped_storage().data_ptr()


@pytest.mark.parametrize(
    "given", [batch(0, 7, note="words"), Batch((torch.zeros(7), torch.tensor(1.0)), Call((), {}, 7), range(7))]
)
def test_what_has_no_rows_for_its_examples_stays_whole(given: Batch):
    assert list(pieces(given, 3)) == [given]
