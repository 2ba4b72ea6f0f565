from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from tests.lab.made_up import result

from holdfast.lab.frame import runs_table
from holdfast.lab.report.pictures import write_pictures
from holdfast.lab.report.sections import sections_of

TEXT = "{http://www.w3.org/2000/svg}text"
KINDS = ("accuracy", "matrix", "transfer", "strength", "cost")
STRENGTHS = (0.0, 0.1, 1.0, 1e4, float("inf"))


def drawn(folder: Path, *results) -> dict[str, Path]:
    (section,) = sections_of(runs_table(results))
    return {path.name.removeprefix("permuted-digits-domain-"): path for path in write_pictures(section, folder)}


def test_every_picture_is_whole(tmp_path: Path):
    runs = [result(seed=seed, kept=0.5 + 0.1 * seed, strength=x) for seed in range(3) for x in STRENGTHS]
    found = drawn(tmp_path, *runs, result("joint", strength=None, held_bytes=10**6), result("none", strength=None))
    assert set(found) == {f"{kind}{suffix}" for kind in KINDS for suffix in (".png", ".svg")}
    for path in found.values():
        if path.suffix == ".svg":
            assert ElementTree.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"
        else:
            content = path.read_bytes()
            assert content.startswith(b"\x89PNG\r\n\x1a\n")
            assert content.endswith(b"IEND\xaeB`\x82")


@pytest.mark.parametrize("num_tasks", [1, 30])
def test_any_number_of_tasks_and_no_spread(num_tasks: int, tmp_path: Path):
    found = drawn(tmp_path, result(num_tasks=num_tasks), result("none", num_tasks=num_tasks))
    assert "strength.png" not in found
    assert all(path.stat().st_size > 1000 for path in found.values())


def test_text_is_text_and_strengths_have_an_axis(tmp_path: Path):
    runs = [result(strength=x, kept=0.5) for x in (0.0, 1e-6, 1e6, float("inf"))]
    found = drawn(tmp_path, *runs, result("joint", strength=None))
    texts = {kind: [each.text for each in ElementTree.parse(found[f"{kind}.svg"]).iter(TEXT)] for kind in KINDS}
    assert {"0", "1e-06", "∞", "strength (ring: best on validation data)"} <= set(texts["strength"])
    assert {"forgetting", "learning accuracy", "0"} <= set(texts["transfer"])
    assert "permuted-digits, domain-incremental" in texts["accuracy"]


@pytest.mark.parametrize("kept", [0.2, 0.95])
def test_a_budget_is_drawn_at_no_strength(kept: float, tmp_path: Path):
    """Where it is better than every strength the line says so, and no point of it is ringed."""
    runs = [result(strength=x, budget=None, kept=0.5) for x in (1.0, 10.0)]
    runs += [result(strength=None, budget=0.05, kept=kept), result("wva-fisher", strength=3.0)]
    text = drawn(tmp_path, *runs)["strength.svg"].read_text()
    assert ("EWC Fisher, budget 0.05" in text) == (kept == 0.95)
    assert "EWC Fisher" in text
