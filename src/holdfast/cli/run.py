"""`holdfast run`."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from holdfast.cli.console import console_for, say, warnings_told
from holdfast.cli.generation import run_generation_command
from holdfast.cli.idle import hopeless_note, idle_settings, unit_note
from holdfast.cli.options import RunOptions
from holdfast.cli.progress import event_callback
from holdfast.cli.settings import settings
from holdfast.cli.tables import matrix_table, names_tables, summary_table
from holdfast.errors import OptionError
from holdfast.lab.canvas import check_matplotlib
from holdfast.lab.config import configure
from holdfast.lab.generation import GENERATION_STREAMS
from holdfast.lab.groups import group_results, method_label
from holdfast.lab.methods import METHODS
from holdfast.lab.plots import accuracy_curves, accuracy_matrices
from holdfast.lab.result import RunResult
from holdfast.lab.running import run


def run_command(options: RunOptions) -> None:
    """Do the run, or what stands in its place."""
    console = console_for(quiet=options.quiet)
    if options.stream == "list":
        for table in names_tables():
            console_for().print(table)
    elif options.stream in GENERATION_STREAMS:
        run_generation_command(options, console)
    else:
        _run(options, console)


def _run(options: RunOptions, console: Console) -> None:
    if options.method is None:
        raise OptionError(f"run {options.stream}: which method? Give --method, one of: {', '.join(METHODS)}.")
    given = settings(options)
    config = configure(options.stream, options.method, seed=options.seed, data_dir=options.data_dir, **given)
    for line in [*idle_settings(config, given), *unit_note(config, given), *hopeless_note(config)]:
        say(console, ("warning: ", "yellow"), line)
    label = method_label(options.method)
    folder = Path(options.output) / config.name
    finished = (folder / "result.json").exists()
    say(console, (f"{options.stream}, {label}", "bold"), f", seed {options.seed}  ", (str(folder), "dim"))
    with (
        warnings_told(console),
        event_callback(console, label, event_files=folder if options.tensorboard else None) as on_event,
    ):
        result = run(config, output=options.output, device=options.device, data_dir=options.data_dir, on_event=on_event)
    if finished:
        console.print("This run was finished before: read back, not trained again.")
    console.print()
    console.print(matrix_table(result))
    console.print(summary_table(result))
    console.print()
    _draw(result, folder, console_for())


def _draw(result: RunResult, folder: Path, console: Console) -> None:
    """Draw the run's pictures, and say where everything is; what was learned does not depend on matplotlib."""
    say(console, f"results:  {folder / 'result.json'}")
    try:
        check_matplotlib()
    except OptionError as error:
        say(console, f"pictures: none; {error}")
        return
    groups = group_results([result])
    curve = accuracy_curves(groups, folder / "plots" / "accuracy.png")
    matrix = accuracy_matrices(groups, folder / "plots" / "matrix.png")
    say(console, f"pictures: {curve}\n          {matrix}")
