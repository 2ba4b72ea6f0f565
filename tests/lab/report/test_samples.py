from __future__ import annotations

import base64
from pathlib import Path

import pytest
from tests.lab.made_up import result

from holdfast.errors import FileFormatError
from holdfast.lab import results
from holdfast.lab.groups import group_results, labelled
from holdfast.lab.report import report
from holdfast.lab.report.samples import MOST_BYTES, samples

PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII=")


def run_folder(path: Path, *names: str, content: bytes = PNG, seed: int = 0) -> Path:
    (path / "plots").mkdir(parents=True)
    for name in names:
        (path / "plots" / name).write_bytes(content)
    result(seed=seed).save(path / "result.json")
    return path


def test_what_runs_drew_becomes_part_of_the_page(tmp_path: Path):
    run_folder(tmp_path / "runs" / "a", "accuracy.png", "matrix.png", "samples-task_2.png")
    page = report([tmp_path / "runs"], tmp_path / "page").path.read_text(encoding="utf-8")
    assert f"data:image/png;base64,{base64.b64encode(PNG).decode()}" in page
    assert page.count("<img") == 1
    assert "EWC Fisher, seed 0: samples task 2" in page


def test_the_first_seed_that_has_some_stands_for_all(tmp_path: Path):
    run_folder(tmp_path / "0")
    run_folder(tmp_path / "1", "b.png", "a.png", seed=1)
    run_folder(tmp_path / "2", "a.png", seed=2)
    found, left_out = samples(labelled(results(tmp_path)))
    assert list(found) == ["EWC Fisher, seed 1: a", "EWC Fisher, seed 1: b"]
    assert left_out == 0


def test_what_is_too_large_is_counted(tmp_path: Path):
    run_folder(tmp_path / "0", "a.png", "b.png", content=PNG + b"0" * (MOST_BYTES // 2 + 1))
    found, left_out = samples(labelled(results(tmp_path)))
    assert (len(found), left_out) == (1, 1)


def test_runs_from_nowhere_have_none():
    assert samples(group_results([result()])) == ({}, 0)


def test_a_picture_that_cannot_be_read(tmp_path: Path):
    run_folder(tmp_path / "0")
    (tmp_path / "0" / "plots" / "a.png").mkdir()
    with pytest.raises(FileFormatError, match=r"a.png cannot be read: .*Delete it"):
        samples(labelled(results(tmp_path)))
    (tmp_path / "0" / "plots" / "a.png").rmdir()
    assert samples(labelled(results(tmp_path))) == ({}, 0)
