"""Code of others, by the name of its module."""

from __future__ import annotations

import ast
import hashlib
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
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


def check_takes(make: Callable[..., Any], given: Sequence[Any], *, what: str) -> None:
    """Raise `OptionError` unless a function or class can be called with these arguments."""
    try:
        inspect.signature(make).bind(*given)
    except TypeError as error:
        kinds = ", ".join(type(each).__name__ for each in given) or "nothing"
        raise OptionError(f"{what}: {error}; expected one that is called with ({kinds}).") from error
    except ValueError:  # it tells no signature
        return


def source_of(module: str) -> str:
    """Sixteen hexadecimal digits that stand for the source of a module; empty where it has no file.

    Of a package that is all of its files, of a single file that and those beside it that it imports.
    """
    path = getattr(sys.modules.get(module), "__file__", None)
    if path is None or not Path(path).is_file():
        return ""
    depth = module.count(".")
    files = sorted(Path(path).parents[depth - 1].rglob("*.py")) if depth else sorted(_with_imports(Path(path), set()))
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def _with_imports(path: Path, found: set[Path]) -> set[Path]:
    """A file, and those beside it that it imports, and so on."""
    found.add(path)
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            for name in names:
                beside = path.parent / f"{name.partition('.')[0]}.py"
                if beside.is_file() and beside not in found:
                    _with_imports(beside, found)
    return found
