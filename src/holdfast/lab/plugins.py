"""Modules of others that register methods, mechanisms, importances, streams, nets or generators."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points

from holdfast.errors import HoldfastError, OptionError

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
            _imported(name, told=f"plugin {name}")
            _named[name] = None


def named_plugins() -> tuple[str, ...]:
    """The modules that `load_plugins` was given in this process, which other processes of the same work must load."""
    return tuple(_named)


@cache
def _installed() -> None:
    for entry in entry_points(group=ENTRY_POINTS):
        _imported(entry.value.partition(":")[0], told=f"plugin {entry.name} of {entry.dist and entry.dist.name}")


def _imported(name: str, *, told: str) -> None:
    here = os.getcwd()
    sys.path.append(here)
    try:
        import_module(name)
    except HoldfastError:
        raise
    except Exception as error:
        raise OptionError(
            f"{told}: {type(error).__name__}: {error}. Expected the name of a module that can be imported, without .py."
        ) from error
    finally:
        sys.path.remove(here)
