"""Code of others, by the name of its module."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

from holdfast.errors import HoldfastError, OptionError
from holdfast.lab.foreign import in_a_line, note_foreign


def imported(text: str, *, what: str) -> Any:
    """What "module:attribute" names, or "module" alone; a module of the working folder is found, too.

    Raises:
        OptionError: it cannot be imported.
    """
    module, colon, attribute = text.partition(":")
    note_foreign(module)
    here = os.getcwd()
    sys.path.append(here)
    try:
        found: Any = import_module(module)
        for part in attribute.split(".") if colon else ():
            found = getattr(found, part)
        return found
    except HoldfastError:
        raise
    except Exception as error:
        expected = "module:name, of a module" if colon else "the name of a module, without .py,"
        raise OptionError(
            f"{what} {text!r} cannot be imported: {in_a_line(error)}. Expected {expected} that can be imported here."
        ) from error
    finally:
        sys.path.remove(here)
