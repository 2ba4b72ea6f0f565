from __future__ import annotations

import struct
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.lab.made_up import result

from holdfast.errors import OptionError, OutputError
from holdfast.lab.groups import group_results
from holdfast.lab.methods import METHODS
from holdfast.lab.plots import accuracy_curves, accuracy_matrices, spread

DRAWINGS = (accuracy_curves, accuracy_matrices)


def size_of(path: Path) -> tuple[int, int]:
    """Width and height of a whole PNG, in pixels."""
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert content.endswith(b"IEND\xaeB`\x82")
    width, height = struct.unpack(">II", content[16:24])
    return width, height


@pytest.mark.parametrize("draw", DRAWINGS)
@pytest.mark.parametrize("num_tasks", [1, 2, 30])
def test_pictures_of_any_number_of_tasks(draw, num_tasks: int, tmp_path: Path):
    groups = group_results([result(seed=seed, kept=0.8, num_tasks=num_tasks) for seed in (0, 1)])
    path = draw(groups, tmp_path / "new" / "picture.png")
    width, height = size_of(path)
    assert 500 < width < 2000
    assert 300 < height < 1200
    assert [child.name for child in path.parent.iterdir()] == ["picture.png"]


@pytest.mark.parametrize("draw", DRAWINGS)
def test_pictures_grow_with_what_they_show(draw, tmp_path: Path):
    few = group_results([result()])
    many = group_results([result(name, strength=strength) for name in METHODS for strength in (1.0, 2.0)])
    assert size_of(draw(many, tmp_path / "many.png"))[1] > size_of(draw(few, tmp_path / "few.png"))[1]


@pytest.mark.parametrize("draw", DRAWINGS)
def test_nothing_to_draw(draw, tmp_path: Path):
    with pytest.raises(OptionError, match=r"accuracy_\w+: there is nothing to draw; expected at least one group"):
        draw(group_results([]), tmp_path / "picture.png")


@pytest.mark.parametrize("draw", DRAWINGS)
def test_a_place_that_cannot_be_written(draw, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*file: .*Choose a place that can be written"):
        draw(group_results([result()]), tmp_path / "file" / "picture.png")
    (tmp_path / "picture.png").mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*picture.png: .*Choose a place that can be written"):
        draw(group_results([result()]), tmp_path / "picture.png")
    draw(group_results([result()]), tmp_path / "another.png")


@pytest.mark.parametrize("draw", DRAWINGS)
def test_no_matplotlib(draw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    runs = group_results([result()])
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(OptionError, match=r'not installed. Install it with: pip install "torch-holdfast\[plots\]"'):
        draw(runs, tmp_path / "picture.png")


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.floats(0.001, 0.2))
def test_spread_places_are_apart_in_order_and_balanced(places: list[float], gap: float):
    moved = spread(places, gap)
    ordered = sorted(moved)
    assert all(high - low >= gap - 1e-9 for low, high in pairwise(ordered))
    assert sum(moved) == pytest.approx(sum(places), abs=1e-9)
    assert all(moved[i] < moved[j] for i in range(len(places)) for j in range(len(places)) if places[i] < places[j])


def test_spread_leaves_alone_what_is_apart():
    assert spread([0.9, 0.1, 0.5], 0.2) == pytest.approx([0.9, 0.1, 0.5])
    assert spread([0.5, 0.5], 0.2) == pytest.approx([0.4, 0.6])
