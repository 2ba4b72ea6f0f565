import hashlib
import importlib
import os

import numpy as np
import pytest
import torch
from tests.lab.idx_files import NAMES, fake_files, idx, write

from holdfast.errors import DataFileError
from holdfast.lab.streams.catalog import build_stream
from holdfast.lab.streams.mnist import mnist

module = importlib.import_module("holdfast.lab.streams.mnist")  # its package names the function alike


@pytest.fixture
def no_variable(monkeypatch):
    monkeypatch.delenv("HOLDFAST_DATA", raising=False)


@pytest.fixture
def mirror(tmp_path, monkeypatch, no_variable):
    """A mirror that is a folder of fake files, with their digests, and an empty cache beside it."""
    folder = write(tmp_path / "mirror", fake_files())
    monkeypatch.setattr(module, "MIRRORS", (folder.as_uri() + "/",))
    digests = {name: (hashlib.sha256((folder / name).read_bytes()).hexdigest(),) for name in NAMES}
    monkeypatch.setattr(module, "FILES", digests)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def check_fake(task):
    assert [len(part) for part in (task.train, task.validation, task.test)] == [22, 2, 10]
    assert task.train.inputs.shape == (22, 1, 28, 28)
    assert task.train.inputs.dtype == torch.float32
    assert task.train.targets.dtype == torch.int64
    torch.testing.assert_close(task.validation.inputs[:, 0, 3, 5], torch.tensor([22 / 255, 23 / 255]))
    assert task.validation.targets.tolist() == [2, 3]


@pytest.mark.parametrize("inside", ["", "mnist"])
@pytest.mark.parametrize("compress", [True, False])
def test_files_of_the_folder_given(tmp_path, monkeypatch, inside, compress):
    write(tmp_path / "data" / inside, fake_files(), compress=compress)
    monkeypatch.setenv("HOLDFAST_DATA", "/nowhere")
    check_fake(mnist(tmp_path / "data"))
    check_fake(mnist(str(tmp_path / "data")))


def test_files_of_the_variable(tmp_path, monkeypatch):
    write(tmp_path / "mnist", fake_files())
    monkeypatch.setenv("HOLDFAST_DATA", str(tmp_path))
    check_fake(mnist())


def test_a_folder_without_the_files_is_named(tmp_path):
    write(tmp_path, fake_files())
    (tmp_path / NAMES[3]).unlink()
    with pytest.raises(DataFileError) as caught:
        mnist(tmp_path)
    assert str(caught.value) == (
        f"mnist: found not all of {', '.join(NAMES)} in {tmp_path / 'mnist'}, nor in {tmp_path}. "
        "Put them there, or give neither data_dir nor HOLDFAST_DATA to have them downloaded."
    )


@pytest.mark.usefixtures("mirror")
def test_a_download_happens_once(tmp_path, monkeypatch):
    check_fake(mnist())
    cache = tmp_path / "cache" / "holdfast" / "mnist"
    assert sorted(path.name for path in cache.iterdir()) == sorted(NAMES)
    monkeypatch.setattr(module, "MIRRORS", ("http://127.0.0.1:9/",))
    check_fake(mnist())


@pytest.mark.parametrize("variable", [None, ""])
def test_the_cache_is_in_the_home_folder_by_default(tmp_path, monkeypatch, mirror, variable):
    if variable is None:
        monkeypatch.delenv("XDG_CACHE_HOME")
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", variable)
        monkeypatch.setenv("HOLDFAST_DATA", variable)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    check_fake(mnist())
    assert (tmp_path / "home" / ".cache" / "holdfast" / "mnist" / NAMES[0]).exists()


def test_without_a_network_the_remedy_works(tmp_path, monkeypatch, mirror):
    monkeypatch.setattr(module, "MIRRORS", ("http://127.0.0.1:9/",))
    with pytest.raises(DataFileError) as caught:
        mnist()
    cache = tmp_path / "cache" / "holdfast" / "mnist"
    assert f"cannot download {NAMES[0]}: http://127.0.0.1:9/{NAMES[0]}: " in str(caught.value)
    assert f"put the file at {cache / NAMES[0]} by hand" in str(caught.value)
    write(cache, fake_files())
    check_fake(mnist())


@pytest.mark.usefixtures("mirror")
def test_a_damaged_file_of_the_cache_is_fetched_again_once_deleted(tmp_path):
    mnist()
    damaged = tmp_path / "cache" / "holdfast" / "mnist" / NAMES[0]
    damaged.write_bytes(damaged.read_bytes()[:-20])
    with pytest.raises(DataFileError, match="Delete it and get an intact copy."):
        mnist()
    damaged.unlink()
    check_fake(mnist())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            NAMES[1],
            np.zeros(23),
            "found shape [24, 28, 28] in {0} and [23] in {1}, expected [N, 28, 28] and [N]. Replace",
        ),
        (
            NAMES[0],
            np.zeros((24, 8, 8)),
            "found shape [24, 8, 8] in {0} and [24] in {1}, expected [N, 28, 28] and [N].",
        ),
        (NAMES[1], np.full(24, 10), "found the label 10 in {1}, expected 0..9. Replace it."),
    ],
)
def test_files_that_do_not_fit_are_named(tmp_path, name, content, message):
    write(tmp_path, {**fake_files(), name: idx(content)})
    with pytest.raises(DataFileError) as caught:
        mnist(tmp_path)
    assert str(caught.value).startswith("mnist: " + message.format(tmp_path / NAMES[0], tmp_path / NAMES[1]))


def test_the_mirrors_are_safe_addresses_of_folders():
    assert all(mirror.startswith("https://") and mirror.endswith("/") for mirror in module.MIRRORS)


@pytest.mark.skipif(not os.environ.get("HOLDFAST_DATA"), reason="HOLDFAST_DATA does not say where MNIST is")
def test_the_real_files():
    stream = build_stream("permuted-mnist")
    assert (len(stream), stream.num_classes, stream.input_shape) == (10, 10, (1, 28, 28))
    task = stream[0]
    assert [len(part) for part in (task.train, task.validation, task.test)] == [55_000, 5_000, 10_000]
    assert task.train.targets[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert float(task.train.inputs.max()) == 1.0
    assert float(task.train.inputs.mean()) == pytest.approx(0.1307, abs=5e-4)
    other = stream[9].test
    assert torch.equal(other.inputs.flatten(1).sort(dim=1).values, task.test.inputs.flatten(1).sort(dim=1).values)


@pytest.mark.network
def test_the_mirrors_have_the_files(tmp_path, monkeypatch, no_variable):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert len(mnist().train) == 55_000
