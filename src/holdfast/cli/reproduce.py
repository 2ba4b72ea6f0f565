"""`holdfast reproduce`: published experiments are recipes, which stand outside the package."""

from __future__ import annotations

from holdfast.cli.console import console_for, say
from holdfast.cli.options import ReproduceOptions


def reproduce_command(options: ReproduceOptions) -> None:
    """Print the command that does what was asked for."""
    asked = " ".join(options.names) or "--list"
    say(console_for(), f"In a clone of the repository: python -m recipes {asked}")
