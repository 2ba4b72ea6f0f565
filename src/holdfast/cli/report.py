"""`holdfast report`."""

from __future__ import annotations

from holdfast.cli.console import console_for, say
from holdfast.cli.options import ReportOptions
from holdfast.cli.tables import rows_table
from holdfast.errors import OptionError
from holdfast.lab.plugins import load_plugins
from holdfast.lab.report import report


def report_command(options: ReportOptions) -> None:
    """Write the report, and show its tables."""
    if not options.folders:
        raise OptionError("report: which runs? Give the folders that hold them, such as holdfast report runs")
    load_plugins(options.plugin)
    console = console_for(quiet=options.quiet)
    found = report(options.folders, options.output, where=options.where, quick=options.quick, trials=options.trials)
    for section in found.sections:
        console.print(rows_table(section.table, title=section.title))
        for label, why in section.given_up.items():
            say(console, f"{label} has no result: the sweep gave all its settings up, the last one {why}.\n")
    if found.left_out:
        say(console, found.left_out)
    told = console_for()
    say(told, f"{found.num_runs} run{'s' * (found.num_runs != 1)}, written to {found.path}")
    counted = f"{len(found.pictures)} pictures, {len(found.tables)} tables"
    say(told, f"beside it: {found.markdown.name}, {counted} in {found.path.parent}")
