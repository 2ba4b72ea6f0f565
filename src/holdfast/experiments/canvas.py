"""What every picture is drawn on: a figure in inches, written as PNG whole or not at all.

matplotlib is asked for only when something is drawn, and is drawn on by itself: no pyplot, no window, no global state.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

from holdfast.errors import OptionError, OutputError

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
        OptionError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise OptionError(
            'pictures are drawn with matplotlib, which is not installed. Install it with: pip install "holdfast[plots]"'
        ) from error


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


def write_png(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write a figure as PNG, whole or not at all; the folder is made if it is not there.

    Returns:
        The path.

    Raises:
        OutputError: the file cannot be written.
    """
    target = Path(path)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=DPI)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.new")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(picture.getvalue())
        temporary.replace(target)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error}. Choose a place that can be written.") from error
    finally:
        if temporary.parent.is_dir():
            temporary.unlink(missing_ok=True)
    return target


def axes_at(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a place in inches: nothing moves when labels grow."""
    across, up = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / up, width / across, height / up))
