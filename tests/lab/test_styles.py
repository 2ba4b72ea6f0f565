from __future__ import annotations

from holdfast.lab.methods import METHODS
from holdfast.lab.styles import stroke

PLUGINS = ("slow", "mine", "ewc-hessian", "mergan-ra", "mergan-jtr", "mergan-jtr-ra")


def contrast(colour: str) -> float:
    """With white. Source: Web Content Accessibility Guidelines 2.2, contrast ratio."""
    shares = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 1.05 / (0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05)


def test_no_two_methods_look_alike():
    assert len({str(stroke(name)) for name in METHODS}) == len(METHODS)
    assert stroke("joint")["linestyle"] != "-"


def test_methods_of_others_have_looks_of_their_own_that_stay():
    looks = [str(stroke(name)) for name in PLUGINS]
    assert len(set(looks)) == len(PLUGINS)
    assert not set(looks) & {str(stroke(name)) for name in METHODS}
    assert stroke("slow") == stroke("slow") == {"color": "#33691e", "linestyle": "-", "marker": "*"}
    assert stroke("\ud800")["color"]


def test_names_in_their_colours_can_be_read():
    assert all(contrast(stroke(f"plugin-{number}")["color"]) >= 4.5 for number in range(100))
    assert all(contrast(stroke(name)["color"]) >= 3.5 for name in METHODS)


def test_configurations_of_one_method_pale():
    colours = [stroke("ewc-fisher", variant, 3)["color"] for variant in range(3)]
    assert colours == sorted(colours)  # towards #ffffff
    assert len(set(colours)) == 3
