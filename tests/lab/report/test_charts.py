from __future__ import annotations

import re
from itertools import pairwise

import pytest
from tests.lab.made_up import result

from holdfast.lab.methods import METHODS
from holdfast.lab.report.charts import (
    NAME_PIXELS,
    accuracy_plot,
    heat_paths,
    lane_scale,
    level_of,
    percent,
    strength_plot,
)
from holdfast.lab.report.content import Section, sections_of
from holdfast.lab.tables import Estimate


def section(*results) -> Section:
    (found,) = sections_of(results)
    return found


def test_the_curve_goes_through_the_averages():
    plot = accuracy_plot(section(result(kept=0.7)))  # 1, 0.85, 0.8
    (curve,) = plot.curves
    (top,) = {tick.at for tick in plot.y_ticks if tick.text == "100%"}
    (low,) = {tick.at for tick in plot.y_ticks if tick.text == "80%"}
    assert [mark.x for mark in curve.marks] == [0, 50, 100]
    assert [100 - mark.y for mark in curve.marks] == pytest.approx([top, low + (top - low) / 4, low])
    assert curve.value == "80.0%"
    assert curve.band == ""
    assert curve.marks[1].title == "EWC Fisher, 2 tasks: 85.0%"
    assert len(re.findall(r"[ML]", curve.line)) == 3


def test_several_seeds_have_a_band_that_stays_inside():
    plot = accuracy_plot(section(*(result(seed=seed, kept=kept) for seed, kept in enumerate((0.1, 0.9)))))
    (curve,) = plot.curves
    heights = [float(text) for text in re.findall(r"[\d.]+ (-?[\d.]+)", curve.band)]
    assert heights
    assert all(0 <= height <= 100 for height in heights)


def test_names_never_cover_each_other():
    plot = accuracy_plot(section(*(result(name, kept=0.5) for name in METHODS)))
    places = sorted(curve.name_at for curve in plot.curves)
    gaps = [(high - low) * plot.height / 100 for low, high in pairwise(places)]
    assert min(gaps) >= NAME_PIXELS - 1e-6
    assert places[-1] <= 100 + 1e-6


def test_no_strengths_no_picture_of_them():
    assert strength_plot(section(result(strength=1.0), result("none", strength=None))) is None


def test_accuracy_against_strength():
    runs = [
        *(result(seed=s, strength=x, kept=k) for s in (0, 1) for x, k in ((0.1, 0.5), (10.0, 0.9), (1.0, 0.7))),
        result("joint", kept=1.0, strength=None),
    ]
    plot = strength_plot(section(*runs))
    assert plot is not None
    joint, ewc = plot.curves
    assert [mark.x for mark in joint.marks] == [0, 100]
    assert [mark.is_best for mark in ewc.marks] == [False, False, True]
    assert [mark.x for mark in ewc.marks] == sorted(mark.x for mark in ewc.marks)
    assert (
        ewc.marks[-1].title.replace("\u00a0", " ")
        == "EWC Fisher, strength 10: 93.3 ± 0.0%; 88.3 ± 0.0% on validation data, the best"
    )
    assert ewc.value == "93.3%"
    assert all(mark.top is not None for mark in ewc.marks)
    assert all(mark.top is None for mark in joint.marks)


def test_levels_and_paths_of_a_heat_map():
    assert [level_of(value) for value in (0.0, 0.5, 1.0, 1.2, -0.1)] == [0, 10, 20, 20, 0]
    paths = heat_paths([[1.0, 0.0], [0.5, 1.0]])
    assert paths == {10: "M0 1h1v1h-1z", 20: "M0 0h1v1h-1zM1 1h1v1h-1z"}


def test_lanes_hold_their_intervals_and_zero():
    scale = lane_scale([Estimate(0.5, 0.2), Estimate(0.1)])
    assert (scale.low, scale.high) == (0, pytest.approx(0.7))
    scale = lane_scale([Estimate(0.5, 0.2), Estimate(0.9)], from_zero=False)
    assert (scale.low, scale.high) == (pytest.approx(0.3), 0.9)


def test_percent_has_a_real_minus_and_is_never_broken():
    assert percent(Estimate(-0.123, 0.01)) == "−12.3\u00a0±\u00a01.0%"
