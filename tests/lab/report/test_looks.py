from __future__ import annotations

import re

import pytest
from tests.lab.made_up import result

from holdfast.lab.groups import group_results
from holdfast.lab.methods import METHODS
from holdfast.lab.report.looks import DARK, LIGHT, contrast, heat_colours, look, marker_shapes


def test_contrast_by_the_guidelines():
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)
    assert contrast("#0068a8", "#0068a8") == 1


@pytest.mark.parametrize("name", METHODS)
def test_every_method_stands_out_from_both_pages(name: str):
    found = look(group_results([result(name)])[0])
    assert contrast(found.light, LIGHT) >= 3
    assert contrast(found.dark, DARK) >= 4.5


def test_no_two_methods_look_alike_in_the_dark():
    looks = [look(group) for group in group_results([result(name) for name in METHODS])]
    assert len({(each.dark, each.dash, each.marker) for each in looks}) == len(METHODS)


def test_pale_configurations_stand_out_too():
    groups = group_results([result(strength=float(k)) for k in range(8)])
    assert all(contrast(look(group).light, LIGHT) >= 3 for group in groups)


def test_numbers_can_be_read_on_every_level():
    for level in heat_colours():
        assert contrast(level["light"], level["light_ink"]) >= 4.5
        assert contrast(level["dark"], level["dark_ink"]) >= 4.5


def test_high_values_stand_out_from_the_page_and_low_ones_do_not():
    levels = heat_colours()
    for page, theme in ((LIGHT, "light"), (DARK, "dark")):
        assert contrast(levels[-1][theme], page) > 10 > 2 > contrast(levels[0][theme], page)


def test_markers_are_paths_of_their_size():
    shapes = marker_shapes(["o", "^", "x", "", "o"])
    assert set(shapes) == {"o", "^", "x"}
    assert len({shape.id for shape in shapes.values()}) == 3
    assert shapes["o"].filled
    assert not shapes["x"].filled
    for shape in shapes.values():
        numbers = [float(text) for text in re.findall(r"-?\d+\.\d+", shape.path)]
        assert max(numbers) == pytest.approx(4, abs=0.01)
        assert re.fullmatch(r"[MLQCZ\d. -]+", shape.path)
    apex = re.match(r"M([-\d.]+) ([-\d.]+)", shapes["^"].path)
    assert apex is not None
    assert float(apex[2]) < 0  # SVG's axis runs down: the triangle points up
