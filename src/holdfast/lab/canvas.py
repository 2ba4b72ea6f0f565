"""What every picture is drawn on: a figure in inches, written as PNG or SVG, whole or not at all.

matplotlib is asked for only when something is drawn, and is drawn on by itself: no pyplot, no window, no global state.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

from holdfast.errors import OutputError
from holdfast.files import write_bytes
from holdfast.lab.packages import check_installed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
INK = "#222222"
MUTED = "#767676"
GRID = "#e3e3e3"
FONT = 9.0


def check_matplotlib() -> None:
    """Make sure that pictures can be drawn, before time is spent on what they are to show.

    Raises:
        OptionError: matplotlib is not installed, or pandas or scipy, by which runs become what is drawn.
    """
    check_installed("matplotlib", "pandas", "scipy", what="pictures are drawn", extra="plots")


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, that belongs to no window.

    Raises:
        OptionError: matplotlib is not installed.
    """
    check_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def write_picture(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write a figure as its suffix says, whole or not at all; the folder is made if it is not there.

    Args:
        figure: what to write.
        path: ending in .png or .svg. The same figure gives the same bytes.

    Returns:
        The path.

    Raises:
        OutputError: the file cannot be written.
    """
    import matplotlib

    target = Path(path)
    kind = target.suffix[1:]
    picture = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "holdfast", "svg.fonttype": "none"}):
        figure.savefig(picture, format=kind, dpi=DPI, metadata={"Date": None} if kind == "svg" else None)
    make_folder(target.parent)
    write_bytes(target, picture.getvalue())
    return target


def make_folder(path: Path) -> Path:
    """The folder, made if it is not there.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error}. Choose a place that can be written.") from error
    return path


def axes_at(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a place in inches: nothing moves when labels grow."""
    across, up = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / up, width / across, height / up))
