"""The old batches as another task."""

from __future__ import annotations

import torch

from holdfast.calibration import made_up
from holdfast.likelihoods.categorical import IGNORED


def permutation_of(old: torch.Tensor, new: torch.Tensor) -> list[int]:
    """The one column order that turns old rows into new ones."""
    return [int((old == column.unsqueeze(1)).all(dim=0).nonzero().item()) for column in new.T]


def test_every_example_has_its_features_in_the_same_new_order():
    batches = [(torch.randn(4, 2, 5), torch.arange(4)), (torch.randn(3, 2, 5), torch.arange(3))]
    found = made_up(batches, seed=1)
    orders = {tuple(permutation_of(old[0].flatten(1), new[0].flatten(1))) for old, new in zip(batches, found)}
    (order,) = orders
    assert sorted(order) == list(range(10)) != list(order)
    assert all(torch.equal(old[1], new[1]) for old, new in zip(batches, found))
    assert found[0][0].shape == (4, 2, 5)
    other = made_up(batches, seed=2)
    assert not torch.equal(found[0][0], other[0][0])


def test_a_text_is_in_another_language_and_its_labels_with_it():
    ids = torch.tensor([[5, 7, 7, 9], [9, 11, 5, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    labels = ids.masked_fill(mask == 0, IGNORED)
    (found,) = made_up([{"input_ids": ids, "attention_mask": mask, "labels": labels}], seed=3)
    words = {int(old): int(new) for old, new in zip(ids.flatten(), found["input_ids"].flatten())}
    assert set(words) == set(words.values()) == {0, 5, 7, 9, 11}
    assert words != {word: word for word in words}
    assert [words[int(i)] for i in ids.flatten()] == found["input_ids"].flatten().tolist()
    assert torch.equal(found["attention_mask"], mask)
    assert torch.equal(found["labels"], found["input_ids"].masked_fill(mask == 0, IGNORED))


def test_labels_that_are_the_next_tokens_follow_them_too():
    text = torch.randint(2, 50, (3, 9))
    ((ids, labels),) = made_up([(text[:, :-1], text[:, 1:])], seed=0)
    assert torch.equal(ids[:, 1:], labels[:, :-1])
    assert not torch.equal(ids, text[:, :-1])


def test_classes_positions_and_truth_values_stay():
    inputs = {
        "input_ids": torch.tensor([[3, 4], [4, 6]]),
        "position_ids": torch.tensor([[0, 2], [3, 1]]),
        "flags": torch.tensor([[0, 1], [1, 1]]),
        "seen": torch.tensor([[True, False], [True, True]]),
    }
    ((found, labels),) = made_up([(inputs, torch.tensor([3, 4]))], seed=0)
    assert labels.tolist() == [3, 4]
    assert all(torch.equal(found[name], inputs[name]) for name in ("position_ids", "flags", "seen"))
    assert sorted(found["input_ids"].unique().tolist()) == [3, 4, 6]
