"""`holdfast sweep`."""

from __future__ import annotations

from holdfast.cli.console import console_for, say, warnings_told
from holdfast.cli.options import SweepOptions, settings
from holdfast.cli.progress import SweepWatcher
from holdfast.cli.tables import findings_table
from holdfast.errors import OptionError
from holdfast.lab.methods import METHODS
from holdfast.lab.sweep import Space, sweep


def sweep_command(options: SweepOptions) -> None:
    """Do the sweep, and show what it found."""
    if not options.methods:
        raise OptionError(f"sweep {options.stream}: which methods? Give --methods, of: {', '.join(METHODS)}.")
    console = console_for(quiet=options.quiet)
    space = Space(
        stream=options.stream,
        methods=options.methods,
        strengths=options.strengths,
        optimizers=options.optimizers,
        lrs=options.lrs,
        seeds=options.seeds,
        settings=settings(options),
        sampler=options.sampler,
        trials=options.trials,
        refine=options.refine,
        prune=options.prune,
    )
    planned = options.trials or max(len(space.grid(method)) for method in options.methods)
    say(
        console,
        (f"{options.stream}, {', '.join(METHODS[method].label for method in options.methods)}", "bold"),
        f": up to {planned} settings of each, over {len(options.seeds)} seeds  ",
        (options.output, "dim"),
    )
    with warnings_told(console), SweepWatcher(console) as display:
        found = sweep(
            space,
            output=options.output,
            storage=options.storage,
            jobs=options.jobs,
            device=options.device,
            data_dir=options.data_dir,
            on_event=display,
        )
    console.print()
    console.print(findings_table(found))
    say(console, "Settings are chosen on validation data; test data decide nothing.\n")
    say(console_for(), f"results:  {found.json}\n          {found.csv}")
