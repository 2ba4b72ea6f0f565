import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import UnknownNameError
from holdfast.likelihoods.masks import active_classes, predict

SPLIT = ((4, 5), (0, 1), (2, 3))


def test_active_classes_of_every_mask():
    assert active_classes("task", SPLIT, 0) == (4, 5)
    assert active_classes("task", SPLIT, 2) == (2, 3)
    assert active_classes("seen", SPLIT, 0) == (4, 5)
    assert active_classes("seen", SPLIT, 1) == (0, 1, 4, 5)
    assert active_classes("all", SPLIT, 1) is None


def test_classes_that_return_are_seen_once():
    assert active_classes("seen", [(0, 1)] * 3, 2) == (0, 1)


def test_an_unknown_mask_is_named():
    with pytest.raises(UnknownNameError, match="unknown mask 'sen'. Did you mean 'seen'\\? Known: all, seen, task."):
        active_classes("sen", SPLIT, 0)  # pyright: ignore[reportArgumentType]


def test_predictions_stay_among_the_classes():
    logits = torch.tensor([[9.0, 1.0, 2.0, 0.0], [0.0, 3.0, 1.0, 9.0]])
    assert predict(logits, None).tolist() == [0, 3]
    assert predict(logits, (1, 2)).tolist() == [2, 1]
    assert predict(logits, [2, 1]).tolist() == [2, 1]
    assert predict(logits.reshape(2, 1, 4), (3,)).tolist() == [[3], [3]]


@given(st.sets(st.integers(0, 6), min_size=1).map(sorted))
def test_prediction_is_the_argmax_under_a_mask_of_minus_infinity(classes):
    logits = torch.randn(5, 7)
    masked = torch.full_like(logits, -torch.inf)
    masked[:, classes] = logits[:, classes]
    assert torch.equal(predict(logits, classes), masked.argmax(dim=1))
