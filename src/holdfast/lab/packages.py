"""Packages that only some of the laboratory's work needs."""

from __future__ import annotations

from importlib import import_module

from holdfast.errors import OptionError


def check_installed(*names: str, what: str, extra: str) -> None:
    """Make sure that packages can be imported, before time is spent on what needs them.

    Args:
        names: of the packages.
        what: is done with them, such as "pictures are drawn".
        extra: of this package, which brings them.

    Raises:
        OptionError: one is not installed; the message names it, and how to install it.
    """
    for name in names:
        try:
            import_module(name)
        except ImportError as error:
            raise OptionError(
                f'{what} with {name}, which is not installed. Install it with: pip install "torch-holdfast[{extra}]"'
            ) from error
