"""Modules of others that register methods, mechanisms, importances, streams, nets or generators."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib.metadata import entry_points

from holdfast.lab.importing import imported

ENTRY_POINTS = "holdfast.plugins"
"""The group of entry points by which an installed package names its module."""

_named: dict[str, None] = {}


def load_plugins(modules: Iterable[str] = ()) -> None:
    """Import what registers itself: the modules named, and those of installed packages; each once.

    Args:
        modules: dotted names, as `import` takes them; a module of the working folder is found, too.

    Raises:
        OptionError: one cannot be imported.
    """
    _installed()
    for name in modules:
        if name not in _named:
            imported(name, what="plugin")
            _named[name] = None


def named_plugins() -> tuple[str, ...]:
    """The modules that `load_plugins` was given in this process, which other processes of the same work must load."""
    return tuple(_named)


@cache
def _installed() -> None:
    for entry in entry_points(group=ENTRY_POINTS):
        imported(entry.value.partition(":")[0], what=f"plugin {entry.name} of {entry.dist and entry.dist.name},")
