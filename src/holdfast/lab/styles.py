"""How a method looks in every picture: its colour, its line, its marker."""

from __future__ import annotations

import hashlib
from typing import Any

from holdfast.lab.canvas import INK, MUTED
from holdfast.lab.methods import METHODS

# A method's colour says its importance, or the mechanism that has none; stroke and marker say the mechanism. The hues
# of the importances are those of Okabe and Ito, which people who see no red or green can tell apart too, darkened until
# text in them reads well on white. Methods that replay share a red, methods that merge weights a grey blue.
_HUES = {
    "fisher": "#0068a8",
    "mas": "#c94f00",
    "si": "#008361",
    "signal": "#b0438f",
    "taylor": "#a67600",
    "kfac": "#5b3fb0",
    "uniform": "#7a5c3a",
    "er": "#b3202c",
    "der": "#b3202c",
    "agem": "#b3202c",
    "lwf": "#00788a",
    "imm": "#4a5a78",
    "sfa": "#4a5a78",
    "hat": "#5f6b00",
    "joint": INK,
    "cumulative": INK,
    "dgr": "#b0203a",
    "dgr-distilled": "#7a1f6b",
}
_STROKES: dict[str, dict[str, Any]] = {
    "joint": {"linestyle": (0, (5, 2)), "marker": ""},
    "cumulative": {"linestyle": (0, (5, 2)), "marker": "x"},
    "frozen": {"linestyle": (0, (1, 1.4)), "marker": "x"},
    "none": {"linestyle": (0, (1, 1.4)), "marker": ""},
    "dgr": {"linestyle": "-", "marker": "s"},
    "ewc": {"linestyle": "-", "marker": "o"},
    "wva": {"linestyle": (0, (7, 1.6, 1.4, 1.6)), "marker": "^"},
    "er": {"linestyle": "-", "marker": "s"},
    "der": {"linestyle": "-", "marker": "D"},
    "agem": {"linestyle": (0, (4, 1.5)), "marker": "v"},
    "lwf": {"linestyle": "-", "marker": "P"},
    "imm": {"linestyle": (0, (4, 1.5)), "marker": "<"},
    "sfa": {"linestyle": (0, (4, 1.5)), "marker": ">"},
    "hat": {"linestyle": "-", "marker": "p"},
}
_OTHER_HUES = ("#8a1c7c", "#00695c", "#a33a00", "#3949ab", "#6d5800", "#ad1457", "#33691e", "#455a64")
_OTHER_MARKERS = ("h", "8", "X", "d", "*", "H", "1", "2")
"""Of methods that this package does not know, in colours that text can be read in, too."""


def stroke(method: str, variant: int = 0, num_variants: int = 1, *, palest: float = 0.7) -> dict[str, Any]:
    """Colour, line style and marker of a method: the same in every picture, whatever else is drawn.

    Args:
        method: its name. One that this package does not know, such as a plug-in's, has a look that follows from it.
        variant: number of the configuration among the method's, which share its colour, from full to pale.
        num_variants: how many those are.
        palest: the share of white that none reaches.
    """
    colour, line = _look(method)
    return {"color": _mixed_with_white(colour, palest * variant / num_variants), **line}


def _look(name: str) -> tuple[str, dict[str, Any]]:
    method = METHODS.get(name)
    if method is None:
        digest = hashlib.sha256(name.encode(errors="replace")).digest()
        marker = _OTHER_MARKERS[digest[1] % len(_OTHER_MARKERS)]
        return _OTHER_HUES[digest[0] % len(_OTHER_HUES)], {"linestyle": "-", "marker": marker}
    hue = _HUES.get(name) or _HUES.get(method.importance or method.mechanism, MUTED)
    return hue, _STROKES[method.mechanism]


def _mixed_with_white(colour: str, share: float) -> str:
    channels = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(channel + (255 - channel) * share):02x}" for channel in channels)
