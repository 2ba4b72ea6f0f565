import hashlib
from importlib.resources import files

import pytest
import torch

from holdfast.lab.streams.digits import digits

SHA256 = {
    "digits-images-idx3-ubyte.gz": "c41c947a1014aa9bb82e371b01f16724f9ef929893351173edcc47aa0fc03930",
    "digits-labels-idx1-ubyte.gz": "147c9192405199869317e6d9c62ea444f9770c3f8c6dd65035ba3a3690cc5460",
}


def test_the_files_are_those_that_were_made_with_their_origin_beside_them():
    data = files("holdfast.lab") / "data"
    assert {name: hashlib.sha256((data / name).read_bytes()).hexdigest() for name in SHA256} == SHA256
    assert "CC BY 4.0" in (data / "ORIGIN.md").read_text(encoding="utf-8")
    assert "BSD 3-Clause" in (data / "LICENSE-scikit-learn.txt").read_text(encoding="utf-8")


def test_the_split_is_of_the_stated_sizes_and_by_class():
    task = digits()
    assert (task.name, task.classes) == ("digits", tuple(range(10)))
    assert [len(part) for part in (task.train, task.validation, task.test)] == [1197, 300, 300]
    for part in (task.validation, task.test):
        assert part.targets.bincount().tolist() == [30] * 10
    assert task.train.inputs.shape == (1197, 1, 8, 8)
    assert task.train.inputs.dtype == torch.float32
    assert task.train.targets.dtype == torch.int64
    assert (float(task.train.inputs.min()), float(task.train.inputs.max())) == (0.0, 1.0)


def test_the_split_is_the_same_every_time():
    once, again = digits(), digits()
    assert torch.equal(once.train.inputs, again.train.inputs)
    assert torch.equal(once.test.targets, again.test.targets)


def test_the_parts_together_are_scikit_learn_s_copy():
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    source, task = datasets.load_digits(), digits()
    parts = (task.train, task.validation, task.test)
    found = torch.cat([torch.cat([16 * part.inputs.flatten(1), part.targets[:, None]], dim=1) for part in parts])
    expected = torch.cat([torch.tensor(source.data), torch.tensor(source.target)[:, None]], dim=1)
    assert sorted(found.int().tolist()) == sorted(expected.int().tolist())
