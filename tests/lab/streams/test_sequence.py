"""Data sets one after the other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from holdfast.errors import OptionError
from holdfast.lab import configure
from holdfast.lab.streams import as_task, build_stream, fingerprint, load_data, sequence


def made(name: str, classes: int, *, shape: tuple[int, ...] = (3, 4, 4), seed: int = 0):
    inputs = np.random.default_rng(seed).integers(0, 256, (24, *shape), dtype=np.uint8)
    return as_task((inputs, np.arange(24) % classes), name=name)


def test_each_task_is_a_data_set_with_columns_of_its_own():
    a, b = made("a", 2), made("b", 3, seed=1)
    stream = sequence([a, b])
    assert (stream.scenario, stream.num_classes, stream.task_classes) == ("task", 5, ((0, 1), (2, 3, 4)))
    assert [task.name for task in stream] == ["a", "b"]
    assert torch.equal(stream[1].test.inputs, b.test.inputs)
    assert torch.equal(stream[1].test.targets, b.test.targets + 2)
    assert stream[1].train.stored is b.train.stored
    assert len(sequence([a, b], num_tasks=1)) == 1


def test_columns_are_shared_in_the_domain_scenario():
    stream = sequence([made("a", 3), made("b", 3)], scenario="domain")
    assert (stream.num_classes, stream.task_classes) == (3, ((0, 1, 2), (0, 1, 2)))


@pytest.mark.parametrize(
    ("sets", "scenario", "told"),
    [
        (
            [made("a", 2), made("b", 2, shape=(3, 5, 5))],
            "task",
            r"several shapes: a \[3, 4, 4\], b \[3, 5, 5\].*--side",
        ),
        ([made("a", 2), made("b", 3)], "domain", "numbers of classes: a 2, b 3; expected one for scenario domain"),
        ([as_task((np.zeros((24, 3)), np.zeros((24, 1))), name="n")], "task", "the targets of n are numbers"),
    ],
)
def test_what_does_not_fit_together(sets, scenario, told):
    with pytest.raises(OptionError, match=told):
        sequence(sets, scenario=scenario)


def test_by_name_with_commas_and_made_alike(tmp_path):
    inputs = np.random.default_rng(0).integers(0, 256, (24, 10, 10, 3), dtype=np.uint8)
    np.savez(tmp_path / "photos.npz", x=inputs, y=np.arange(24) % 2)
    given = {"data": f"digits, {tmp_path / 'photos.npz'}", "side": 8, "colors": "gray"}
    config = configure("sequence", "none", **given)
    stream = config.build_stream()
    assert (len(stream), stream.input_shape, stream.num_classes) == (2, (1, 8, 8), 12)
    assert config.fingerprint not in (fingerprint(load_data("digits")), "")
    assert configure("sequence", "none", **{**given, "side": 4}).name != config.name
    with pytest.raises(OptionError, match="several shapes: digits .* Make pictures alike by --side and --colors"):
        configure("sequence", "none", data=given["data"]).build_stream()
    with pytest.raises(OptionError, match="stream sequence: of which data"):
        build_stream("sequence")
