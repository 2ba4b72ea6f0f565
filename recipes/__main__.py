"""The command line of the recipes.

python -m recipes NAME ...           published experiments, with their figures beside ours; --list shows them
python -m recipes elephants STORY    a ready model learns something new, with every method
python -m recipes rosenbrock         the elastic pull, drawn
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from holdfast.cli.ending import guarded
from holdfast.cli.parsing import parse
from recipes.options import ElephantsOptions, PublishedOptions, RosenbrockOptions

PUBLISHED = "published"
COMMANDS: dict[str, tuple[type, str]] = {
    PUBLISHED: (PublishedOptions, "published"),
    "elephants": (ElephantsOptions, "stories"),
    "rosenbrock": (RosenbrockOptions, "rosenbrock_command"),
}
"""The options of every command, and its module; the first is that of all other names."""


def main(argv: Sequence[str] | None = None) -> int:
    """Do what was typed; the exit status, as of `holdfast.cli.main`."""
    typed = sys.argv[1:] if argv is None else list(argv)
    return guarded(lambda: _command(typed))


def _command(argv: Sequence[str]) -> int:
    name = argv[0] if argv and argv[0] in COMMANDS else PUBLISHED
    record, module = COMMANDS[name]
    rest, told = (argv, "recipes") if name == PUBLISHED else (argv[1:], f"recipes {name}")
    options = parse(record, rest, command=told, program="python -m")
    if options is not None:
        getattr(import_module(f"recipes.{module}"), f"{name}_command")(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
