"""`holdfast sweep`."""

from __future__ import annotations

from dataclasses import fields

from holdfast.cli.console import console_for, say, warnings_told
from holdfast.cli.idle import unit_note
from holdfast.cli.options import SweepOptions
from holdfast.cli.progress import SweepWatcher
from holdfast.cli.settings import settings
from holdfast.cli.tables import findings_table
from holdfast.errors import OptionError
from holdfast.lab.groups import method_label
from holdfast.lab.methods import METHODS
from holdfast.lab.sweep import Space, sweep
from holdfast.retention.report import counted


def planned(space: Space) -> str:
    """What will be tried, as far as it is known beforehand: what `--refine` adds depends on what is found."""
    if space.trials is not None:
        return f"{counted(space.trials, 'setting')} of each method"
    counts = [len(space.grid(method)) for method in space.methods]
    told = " and ".join(f"{number} of {method_label(method)}" for method, number in zip(space.methods, counts))
    if len(set(counts)) == 1:
        told = f"{counted(counts[0], 'setting')} of each method"
    refined = [method for method in space.methods if space.refines(method)] if space.refine else []
    return told + (", and as many more next to the best strength as still gain" if refined else "")


def sweep_command(options: SweepOptions) -> None:
    """Do the sweep, and show what it found."""
    if not options.methods:
        raise OptionError(f"sweep {options.stream}: which methods? Give --methods, of: {', '.join(METHODS)}.")
    console = console_for(quiet=options.quiet)
    given = {own.name: getattr(options, own.name) for own in fields(Space) if own.name != "settings"}
    with warnings_told(console):
        space = Space(settings=settings(options), **given)
        told = f": {planned(space)}, over {len(space.seeds)} seeds  "
        labels = ", ".join(method_label(method) for method in space.methods)
        say(console, (f"{space.stream}, {labels}", "bold"), told, (options.output, "dim"))
        for method in space.methods if not space.strengths else ():
            config = space.config(method, space.grid(method)[0], seed=space.seeds[0])
            for line in unit_note(config, space.settings):
                say(console, ("warning: ", "yellow"), f"{method}: {line}")
        where = {"output": options.output, "storage": options.storage, "jobs": options.jobs, "device": options.device}
        with SweepWatcher(console) as display:
            found = sweep(space, **where, on_event=display)
    console.print()
    console.print(findings_table(found))
    say(console, "Settings are chosen on validation data; test data decide nothing.\n")
    say(console_for(), f"results:  {found.json}\n          {found.csv}")
