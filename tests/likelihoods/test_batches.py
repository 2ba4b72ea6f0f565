from collections import UserDict, namedtuple

import numpy as np
import pytest
import torch

from holdfast.errors import BatchError
from holdfast.likelihoods.batches import (
    batch_readings,
    batch_size,
    batch_to,
    has_opaque_entries,
    model_inputs,
    slice_batch,
    targets_of,
)

X, Y, Z = torch.arange(12.0).reshape(4, 3), torch.arange(4), torch.arange(4.0)
Points = namedtuple("Points", ["x", "z"])


@pytest.mark.parametrize(
    "batch",
    [
        (X, Y),
        [X, Y],
        ((X, Z), Y),
        ({"x": X, "z": Z}, Y),
        {"x": X, "labels": Y, "note": "text"},
        UserDict(x=X),
        (Points(X, Z), Y),
    ],
)
def test_batch_size_is_the_common_first_axis(batch):
    assert batch_size(batch) == 4


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ("text", "found no tensor in a str. Pass (inputs, targets)"),
        ({"labels": [1, 2]}, "found no tensor in a mapping with 'labels'"),
        ({}, "found no tensor in a mapping with nothing in it"),
        ((X, Y[:3]), "found tensors of shapes [(4, 3), (3,)], expected one first axis"),
        ((X, torch.tensor(1)), "found tensors of shapes [(4, 3), ()]"),
    ],
)
def test_batch_size_names_what_it_cannot_read(batch, message):
    with pytest.raises(BatchError) as caught:
        batch_size(batch)
    assert message in str(caught.value)


def test_model_inputs_of_every_form():
    def model(x, z=1.0, labels=None):
        return x, z, labels

    def call(batch):
        args, kwargs = model_inputs(batch)
        return model(*args, **kwargs)

    assert call((X, Y)) == (X, 1.0, None)
    assert call([X, Y]) == (X, 1.0, None)
    assert call(((X, Z), Y)) == (X, Z, None)
    assert call(({"z": Z, "x": X}, Y)) == (X, Z, None)
    assert call({"x": X, "labels": Y}) == (X, 1.0, Y)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (X, "batch: found a Tensor. Pass (inputs, targets)"),
        ((X, Y, Z), "batch: found a tuple of (Tensor, Tensor, Tensor)"),
        (("text", Y), "batch: found inputs of type str"),
    ],
)
def test_model_inputs_names_what_it_cannot_read(batch, message):
    with pytest.raises(BatchError) as caught:
        model_inputs(batch)
    assert message in str(caught.value)


def test_targets_of_both_forms():
    assert targets_of((X, Y)) is Y
    assert targets_of({"x": X, "labels": Y}) is Y


@pytest.mark.parametrize(
    ("batch", "found"),
    [
        ({"x": X}, "a mapping with 'x'"),
        ((X, [1, 2]), "a tuple of (Tensor, list)"),
        ({"labels": None}, "a mapping with 'labels'"),
    ],
)
def test_targets_of_says_where_targets_belong(batch, found):
    with pytest.raises(BatchError) as caught:
        targets_of(batch)
    assert str(caught.value) == (
        f"batch: found no tensor of targets in {found}. Pass (inputs, targets) or a mapping with 'labels'."
    )


def test_slices_keep_the_form_and_copy_nothing():
    (point, mapping), labels = slice_batch(((Points(X, Z), {"z": Z, "note": "text"}), [Y]), 1, 3)
    assert isinstance(point, Points)
    assert torch.equal(point.x, X[1:3])
    assert mapping["note"] == "text"
    assert torch.equal(mapping["z"], Z[1:3])
    assert isinstance(labels, list)
    assert labels[0].data_ptr() == Y[1:].data_ptr()


def test_batch_to_moves_every_tensor():
    inputs, targets = batch_to(({"x": X, "z": [Z]}, Y), "meta")
    assert inputs["x"].is_meta
    assert inputs["z"][0].is_meta
    assert targets.is_meta


def test_readings_cut_what_has_an_entry_an_example():
    words, array = ["a", "b", "c", "d"], np.arange(4)
    batch = {"x": X, "more": [Points(Y, array), (1, 2)], "words": words, "note": "text", "none": None}
    cut, whole = batch_readings(batch, 1, 3)
    for found in (cut, whole):
        assert torch.equal(found["x"], X[1:3])
        assert torch.equal(found["more"][0].x, Y[1:3])
        assert found["more"][0].z.tolist() == [1, 2]
        assert (found["more"][1], found["note"], found["none"]) == ((1, 2), "text", None)
    assert (cut["words"], whole["words"]) == (["b", "c"], words)
    assert len(list(batch_readings((X, Y), 0, 1))) == 1  # there is no doubt about tensors


def test_opaque_is_what_cannot_be_cut():
    assert not has_opaque_entries(({"x": X, "words": ["a", None, 1.0, True, b"b"]}, np.arange(4)))
    assert has_opaque_entries((X, {"inner": [object()]}))
