"""`python -m recipes rosenbrock`: the elastic pull, drawn."""

from __future__ import annotations

from rich.table import Table

from holdfast.cli.console import console_for, say
from holdfast.cli.tables import new_table
from recipes.options import RosenbrockOptions
from recipes.rosenbrock import Rosenbrock, rosenbrock


def rosenbrock_command(options: RosenbrockOptions) -> None:
    """Draw the paths, and show the losses at their ends."""
    console = console_for(quiet=options.quiet)
    with console.status("two valleys, three paths ..."):
        found = rosenbrock(output=options.output)
    console.print(_table(found))
    say(console_for(), f"picture: {found.picture}\ndata:    {found.data}")


def _table(found: Rosenbrock) -> Table:
    """The losses at the end of each path."""
    table = new_table("losses at the end of learning task 2")
    for title in ("", "task 1", "task 2", "predicted rise of task 1"):
        table.add_column(title, justify="right" if title else "left")
    for path in found.paths:
        rise = "" if path.predicted_rise is None else f"{path.predicted_rise:.3f}"
        table.add_row(path.label, f"{path.loss_1:.3f}", f"{path.loss_2:.3f}", rise)
    return table
