"""What a test registers in the laboratory is gone after it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

OF_TESTS = ("holdfast_example", "mine_of_tests", "my_methods")
"""Modules that tests import anew."""


@contextmanager
def kept() -> Iterator[None]:
    """The registries as they were, where the laboratory is imported at all."""
    if "holdfast.lab.kinds" not in sys.modules:
        yield
        return
    from holdfast.lab import plugins
    from holdfast.lab.kinds import REGISTRIES
    from holdfast.lab.methods import IMPORTANCES, MECHANISMS
    from holdfast.lab.streams.sources import DATA

    before = [(each, dict(each._found)) for each in (*REGISTRIES, DATA, MECHANISMS, IMPORTANCES)]
    named = dict(plugins._named)
    yield
    for registry, found in before:
        registry._found.clear()
        registry._found.update(found)
    plugins._named.clear()
    plugins._named.update(named)
    if any(module in sys.modules for module in OF_TESTS):  # a package is there where a module of it is
        for module in [module for module in sys.modules if module.partition(".")[0] in OF_TESTS]:
            del sys.modules[module]
