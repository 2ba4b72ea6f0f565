"""A folder of pictures from the command line to a result, without a line of code; and what is wrong with one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from holdfast.cli import main

Image = pytest.importorskip("PIL.Image")

SMALL = ["--net", "resnet", "--width", "4", "--stage-blocks", "1", "--epochs", "1", "--batch-size", "16"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def photos(folder: Path, *, classes: str = "abcd", side: int = 12) -> Path:
    generator = np.random.default_rng(0)
    for label in classes:
        (folder / label).mkdir(parents=True)
        for number in range(24):
            pixels = generator.integers(0, 128, (side, side, 3), dtype=np.uint8) + ord(label) % 4 * 32
            Image.fromarray(pixels.astype(np.uint8)).save(folder / label / f"{number:02}.jpg")
    return folder


def ran(*words: str) -> dict[str, object]:
    assert main(["run", "split", *words, "--output", "runs", "--quiet"]) == 0
    (found,) = Path("runs").glob("*/result.json")
    return json.loads(found.read_text())


def test_kronecker_factors_hold_a_resnet_that_learns_a_folder(tmp_path):
    photos(tmp_path / "photos")
    found = ran("--data", "photos", *SMALL, "--method", "ewc-kfac", "--augment", "crop", "flip")
    assert len(found["accuracy_matrix"]) == 2
    assert found["config"]["augment"] == ["crop", "flip"]
    assert main(["report", "runs"]) == 0


def test_several_sets_one_after_the_other(tmp_path):
    photos(tmp_path / "photos")
    np.savez("more.npz", x=np.random.default_rng(1).integers(0, 256, (36, 9, 9), dtype=np.uint8), y=np.arange(36) % 3)
    words = ["--data", "photos,more.npz", "--side", "8", "--colors", "rgb", *SMALL, "--method", "none"]
    assert main(["run", "sequence", *words, "--output", "runs", "--quiet"]) == 0
    (found,) = Path("runs").glob("sequence-*/result.json")
    assert len(json.loads(found.read_text())["accuracy_matrix"]) == 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--data", "one"], "one class alone, a; expected two or more"),
        (["--data", "photos", "--side", "1"], "side is 1; expected a whole number from 2 to 4096"),
        (["--data", "photos", "--augment", "spin"], "spin"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(tmp_path, words, told, capsys):
    photos(tmp_path / "photos")
    photos(tmp_path / "one", classes="a")
    assert main(["run", "split", *words, *SMALL, "--method", "none", "--output", "runs"]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert "Traceback" not in error
    assert not Path("runs").exists()
