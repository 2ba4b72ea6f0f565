"""Folders of pictures: decoded once, of one size and as many channels, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from holdfast.errors import DataFileError, OptionError
from holdfast.lab.streams import PictureSettings, as_task, fingerprint, load_data, pictures, split

Image = pytest.importorskip("PIL.Image")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def folder_of(where: Path, arrays: dict[str, list[np.ndarray]]) -> Path:
    for label, own in arrays.items():
        (where / label).mkdir(parents=True, exist_ok=True)
        for number, array in enumerate(own):
            Image.fromarray(array).save(where / label / f"{number:03}.png")
    return where


def insects(where: Path, *, side: int = 6, count: int = 12) -> Path:
    return folder_of(
        where, {name: list(noise(count, side, side, 3, seed=seed)) for seed, name in enumerate(("ant", "bee"))}
    )


class TestDecodedOnce:
    def test_the_bytes_are_mapped_from_a_file_and_no_picture_is_opened_again(self, tmp_path, monkeypatch):
        folder = insects(tmp_path / "insects")
        first = load_data(folder)
        assert first.train.stored.dtype == torch.uint8
        assert first.train.stored is first.test.stored
        (kept,) = (tmp_path / "cache" / "holdfast" / "pictures").glob("*.bytes")
        assert kept.stat().st_size == 24 * 3 * 36
        monkeypatch.setattr(Image, "open", lambda path: pytest.fail(f"{path} is opened again"))
        again, labels = pictures.read_pictures(folder, PictureSettings())
        assert torch.equal(torch.from_numpy(again), first.train.stored)
        assert labels.tolist() == ["ant"] * 12 + ["bee"] * 12

    def test_a_picture_that_changes_is_decoded_again(self, tmp_path):
        folder = insects(tmp_path / "insects")
        before, _ = pictures.read_pictures(folder, PictureSettings())
        Image.fromarray(noise(6, 6, 3, seed=9)).save(folder / "ant" / "000.png", compress_level=1)
        after, _ = pictures.read_pictures(folder, PictureSettings())
        assert not np.array_equal(before[0], after[0])
        assert np.array_equal(before[1:], after[1:])

    def test_where_nothing_can_be_kept_they_stay_in_memory(self, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("no folder")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        found, _ = pictures.read_pictures(insects(tmp_path / "insects"), PictureSettings())
        assert found.shape == (24, 3, 6, 6)

    def test_the_fingerprint_is_that_of_the_numbers(self, tmp_path):
        task = load_data(insects(tmp_path / "insects"))
        numbers = task.map(lambda part: type(part)(part.inputs, part.targets), name="x", classes=task.classes)
        assert fingerprint(task) == fingerprint(numbers)

    def test_a_task_of_a_split_takes_no_memory_of_its_own(self, tmp_path):
        task = load_data(insects(tmp_path / "insects"))
        stream = split(task, 1)
        assert all(part.stored is task.train.stored for one in stream for part in (one.train, one.validation, one.test))
        assert sorted(stream[0].train.targets.tolist() + stream[1].train.targets.tolist()) == sorted(
            task.train.targets.tolist()
        )


class TestMadeAlike:
    def test_sizes(self, tmp_path):
        folder = folder_of(tmp_path / "sizes", {"a": [noise(8, 12, 3)] * 9, "b": [noise(20, 8, 3)] * 9})
        with pytest.raises(
            DataFileError,
            match=r"several sizes: a/000.png has 12x8 pixels of 3 channels and b/000.png has 8x20 .*--side",
        ):
            load_data(folder)
        task = load_data(folder, pictures=PictureSettings(side=8))
        assert task.train.input_shape == (3, 8, 8)
        # of the first the middle 8 columns; only the shorter side was to be 8
        wide = torch.from_numpy(noise(8, 12, 3)).permute(2, 0, 1)[..., 2:10]
        assert torch.equal(task.train.stored[0], wide)

    def test_colors(self, tmp_path):
        folder = folder_of(tmp_path / "mixed", {"a": [noise(6, 6)] * 9, "b": [noise(6, 6, 3)] * 9})
        with pytest.raises(DataFileError, match=r"gray pictures among colored ones: a/000.png .*--colors rgb or --col"):
            load_data(folder)
        assert load_data(folder, pictures=PictureSettings(colors="rgb")).train.input_shape == (3, 6, 6)
        gray = load_data(folder, pictures=PictureSettings(colors="gray"))
        assert gray.train.input_shape == (1, 6, 6)
        pillow = np.asarray(Image.fromarray(noise(6, 6, 3)).convert("L")).astype(int)
        assert np.abs(gray.train.stored[-1, 0].numpy().astype(int) - pillow).max() <= 1

    def test_what_is_no_folder_too(self, tmp_path):
        np.savez(tmp_path / "a.npz", x=noise(24, 6, 6, 3), y=np.arange(24) % 2)
        task = load_data(tmp_path / "a.npz", pictures=PictureSettings(side=12, colors="gray"))
        assert (task.train.input_shape, task.train.stored.dtype) == ((1, 12, 12), torch.uint8)
        assert load_data("digits", pictures=PictureSettings(side=16, colors="rgb")).test.input_shape == (3, 16, 16)
        np.savez(tmp_path / "rows.npz", x=noise(24, 6), y=np.arange(24) % 2)
        with pytest.raises(OptionError, match=r"inputs of shape \[6\]; expected pictures of 1 or 3 channels for side"):
            load_data(tmp_path / "rows.npz", pictures=PictureSettings(side=12))

    def test_of_the_same_size_nothing_changes(self):
        task = as_task((noise(24, 6, 6, 3), np.arange(24) % 2), name="x")
        assert torch.equal(pictures.fitted(task, PictureSettings(side=6)).train.inputs, task.train.inputs)


class TestUnreadable:
    def test_is_named_and_left_out_only_where_asked(self, tmp_path):
        folder = insects(tmp_path / "insects")
        (folder / "ant" / "x.png").write_text("no picture")
        (folder / "bee" / "y.jpg").write_bytes((folder / "bee" / "000.png").read_bytes()[:60])
        with pytest.raises(DataFileError, match=r"x.png: no picture that can be read: .*--unreadable skip"):
            load_data(folder)
        assert not list((tmp_path / "cache").rglob("*.json"))
        for _ in range(2):  # also when it is read back
            with pytest.warns(UserWarning, match=r"2 files that cannot be read are left out: ant/x.png, bee/y.jpg"):
                found, labels = pictures.read_pictures(folder, PictureSettings(unreadable="skip"))
            assert (len(found), labels.tolist()) == (24, ["ant"] * 12 + ["bee"] * 12)

    def test_none_that_can_be_read(self, tmp_path):
        (tmp_path / "bad" / "a").mkdir(parents=True)
        (tmp_path / "bad" / "a" / "x.png").write_text("no picture")
        with pytest.raises(DataFileError, match="none of its 1 pictures can be read. Replace them."):
            load_data(tmp_path / "bad", pictures=PictureSettings(unreadable="skip"))
