"""How a method looks on a light page and on a dark one, and the colours of the heat maps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from holdfast.lab.canvas import INK
from holdfast.lab.groups import RunGroup
from holdfast.lab.plots import stroke

LIGHT, DARK = "#ffffff", "#181b1f"
"""What pictures lie on."""

NUM_LEVELS = 21
"""Heat maps have a colour for every 5%."""

LINE_WIDTH = 2.0
_LEAST = 3.5
_LEAST_IN_THE_DARK = 6.0
_DARK_INK = "#e6e8ea"


@dataclass(frozen=True)
class Look:
    """Colour, line and marker of a method, as `plots.stroke` has them.

    Attributes:
        light: the colour on a light page.
        dark: the same hue on a dark one.
        dash: SVG's stroke-dasharray.
        marker: name of matplotlib's marker; empty without one.
    """

    light: str
    dark: str
    dash: str
    marker: str


def look(group: RunGroup) -> Look:
    """The look of a group: that of the pictures, in colours that stand out from both pages."""
    drawn = stroke(group)
    colour, line = drawn["color"], drawn["linestyle"]
    dash = "none" if line == "-" else " ".join(f"{LINE_WIDTH * length:g}" for length in line[1])
    return Look(
        light=_standing_out(colour, LIGHT, "#000000", _LEAST),
        dark=_DARK_INK if colour == INK else _standing_out(colour, DARK, "#ffffff", _LEAST_IN_THE_DARK),
        dash=dash,
        marker=drawn["marker"],
    )


@dataclass(frozen=True)
class MarkerShape:
    """A marker as SVG has it.

    Attributes:
        name: as `Look.marker`.
        id: of the shape on the page.
        path: in pixels about its middle.
        filled: whether it has an inside.
    """

    name: str
    id: str
    path: str
    filled: bool


def marker_shapes(names: Iterable[str], *, size: float = 8.0) -> dict[str, MarkerShape]:
    """The shapes of matplotlib's markers of these names, `size` pixels wide."""
    return {name: _shape(name, f"marker-{number}", size) for number, name in enumerate(sorted(set(names) - {""}))}


def heat_colours() -> list[dict[str, str]]:
    """Background and text of each level, light and dark: low values fade into the page, high ones stand out."""
    from matplotlib import colormaps

    ramp = colormaps["YlGnBu"]
    found = []
    for level in range(NUM_LEVELS):
        share = level / (NUM_LEVELS - 1)
        light, dark = (_hex(ramp(value)) for value in (share, 1 - 0.9 * share))
        found.append({"light": light, "light_ink": _ink_on(light), "dark": dark, "dark_ink": _ink_on(dark)})
    return found


def contrast(first: str, second: str) -> float:
    """The contrast of two colours, 1 to 21. Source: Web Content Accessibility Guidelines 2.2, contrast ratio."""
    low, high = sorted((_luminance(first), _luminance(second)))
    return (high + 0.05) / (low + 0.05)


def _standing_out(colour: str, page: str, towards: str, least: float) -> str:
    """The colour mixed with another until its contrast with the page is the least that is asked."""
    for step in range(21):
        mixed = _mixed(colour, towards, step / 20)
        if contrast(mixed, page) >= least:
            return mixed
    return towards


def _ink_on(background: str) -> str:
    return max(("#000000", "#ffffff"), key=lambda ink: contrast(ink, background))


def _mixed(colour: str, other: str, share: float) -> str:
    pairs = zip(_channels(colour), _channels(other))
    return "#" + "".join(f"{round(own + (another - own) * share):02x}" for own, another in pairs)


def _luminance(colour: str) -> float:
    shares = [channel / 255 for channel in _channels(colour)]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _channels(colour: str) -> list[int]:
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]


def _hex(rgba: Any) -> str:
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in rgba[:3])


def _shape(name: str, id: str, size: float) -> MarkerShape:
    from matplotlib.markers import MarkerStyle
    from matplotlib.transforms import Affine2D

    style = MarkerStyle(name)
    path = style.get_path().transformed(style.get_transform() + Affine2D().scale(size, -size))
    letters = {1: "M", 2: "L", 3: "Q", 4: "C", 79: "Z"}
    parts = []
    for points, code in path.iter_segments(simplify=False):
        parts.append(letters[int(code)] + ("" if code == 79 else " ".join(f"{value:.2f}" for value in points)))
    return MarkerShape(name, id, "".join(parts), style.is_filled())
