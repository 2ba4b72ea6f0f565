"""Pictures that are seen otherwise in each epoch."""

from __future__ import annotations

import pytest
import torch

from holdfast.errors import OptionError, UnknownNameError
from holdfast.lab import configure, run
from holdfast.lab.training import augmented


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_flipped_pictures_are_mirrored_or_not():
    pictures = torch.rand(64, 3, 5, 6)
    flip = augmented(["flip"], (3, 5, 6))
    assert flip is not None
    found = flip(pictures, generator())
    mirrored = (found == pictures.flip(-1)).flatten(1).all(1)
    same = (found == pictures).flatten(1).all(1)
    assert bool((mirrored ^ same).all())
    assert 16 < int(mirrored.sum()) < 48
    assert torch.equal(flip(pictures, generator()), found)


def test_cropped_pictures_are_moved_by_up_to_an_eighth_of_their_side():
    pictures = torch.rand(200, 2, 16, 16) + 1
    crop = augmented(["crop"], (2, 16, 16))
    assert crop is not None
    found = crop(pictures, generator())
    padded = torch.nn.functional.pad(pictures, [2] * 4)
    moves = set()
    for before, after in zip(padded, found):
        (move,) = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if torch.equal(before[:, top : top + 16, left : left + 16], after)
        ]
        moves.add(move)
    assert len(moves) == 25


def test_what_cannot_be():
    assert augmented([], (3,)) is None
    with pytest.raises(OptionError, match=r"augment: inputs of shape \[3\]; expected pictures"):
        augmented(["flip"], (3,))
    with pytest.raises(UnknownNameError, match="unknown augment 'spin'"):
        configure("split-digits", "none", augment=["spin"])


def test_a_run_learns_from_other_pictures_and_to_the_same_bits_again(tmp_path):
    given = {"epochs": 2, "num_tasks": 1, "hidden": (8,)}
    plain = run(configure("split-digits", "none", **given), output=tmp_path / "plain")
    one, two = (
        run(configure("split-digits", "none", augment=("crop", "flip"), **given), output=tmp_path / name)
        for name in ("one", "two")
    )
    assert (one.accuracy_matrix, one.validation_accuracy) == (two.accuracy_matrix, two.validation_accuracy)
    losses = [(tmp_path / name).glob("*/metrics.jsonl") for name in ("plain", "one")]
    assert len({next(found).read_text().partition('"loss"')[2][:20] for found in losses}) == 2
    assert plain.config["seed"] == one.config["seed"]
