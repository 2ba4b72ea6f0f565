from __future__ import annotations

import re
from typing import Any

import pytest

from holdfast.files.typed import Amount, Count, Fraction, listed_mistakes, typed


@pytest.mark.parametrize(
    ("hint", "value", "read"),
    [
        (str, "a", "a"),
        (int, 3, 3),
        (float, 3, 3.0),
        (Fraction, 1, 1.0),
        (Count, 0, 0),
        (Count | None, None, None),
        (list[float], [1, 2.5], [1.0, 2.5]),
        (list[list[Fraction]], [[0, 1]], [[0.0, 1.0]]),
        (dict[str, str], {"a": "b"}, {"a": "b"}),
        (dict[str, Any], {"a": [1, None, {"b": True}]}, {"a": [1, None, {"b": True}]}),
        (Any, float("inf"), float("inf")),
        (Any, {"x": 1}, {"x": 1}),
    ],
)
def test_what_fits(hint, value, read):
    found, mistakes = typed({"field": value, "other": 1}, {"field": hint})
    assert found == {"field": read}
    assert type(found["field"]) is type(read)
    assert not mistakes


@pytest.mark.parametrize(
    ("hint", "value", "mistake"),
    [
        (str, 1, "field is 1, expected a text"),
        (int, 1.0, "field is 1.0, expected a whole number from -9.22337e+18 to 9.22337e+18"),
        (int, True, "field is True, expected a whole number from -9.22337e+18 to 9.22337e+18"),
        (float, "1", "field is '1', expected a number from -1e+300 to 1e+300"),
        (Amount, -0.5, "field is -0.5, expected a number from 0 to 1e+18"),
        (Count | None, "", "field is '', expected a whole number from 0 to 9.22337e+18"),
        (list[float], {"a": 1}, "field is {'a': 1}, expected a list"),
        (list[float], [1, [2]], "field[1] is [2], expected a number from -1e+300 to 1e+300"),
        (dict[str, str], [], "field is [], expected an object"),
        (dict[str, str], {"a": 1}, "field['a'] is 1, expected a text"),
        (Any, [float("nan")], "field is nan, expected a number"),
    ],
)
def test_what_does_not(hint, value, mistake):
    assert typed({"field": value}, {"field": hint})[1] == [mistake]


def test_a_number_without_end_is_told_in_short():
    (mistake,) = typed({"field": 10**400}, {"field": float})[1]
    assert re.fullmatch(r"field is 10+\.\.\.0+, expected a number from -1e\+300 to 1e\+300", mistake)
    assert len(mistake) < 100


def test_what_is_missing():
    hints = {"a": int, "b": str, "c": int}
    assert typed({"a": 1}, hints, optional=["c"]) == ({"a": 1}, ["it lacks b"])


def test_three_mistakes_are_told():
    assert listed_mistakes(["a", "b"]) == "a; b"
    assert listed_mistakes(list("abcde")) == "a; b; c; and 2 more"
