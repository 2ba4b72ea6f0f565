"""`holdfast run`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from holdfast.cli.console import console_for, say, warnings_told
from holdfast.cli.idle import hopeless_note, idle_settings, unit_note
from holdfast.cli.options import RunOptions
from holdfast.cli.progress import event_callback
from holdfast.cli.settings import settings
from holdfast.cli.tables import generation_table, matrix_table, names_tables, summary_table
from holdfast.errors import OptionError
from holdfast.lab.canvas import check_matplotlib
from holdfast.lab.config import configure
from holdfast.lab.generation import GENERATION_METHODS, GENERATION_STREAMS, configure_generation, run_generation
from holdfast.lab.generation.pictures import draw_samples
from holdfast.lab.groups import group_results, method_label
from holdfast.lab.methods import METHODS
from holdfast.lab.plots import accuracy_curves, accuracy_matrices
from holdfast.lab.result import RunResult
from holdfast.lab.running import run


def run_command(options: RunOptions) -> None:
    """Do the run, or what stands in its place."""
    console = console_for(quiet=options.quiet)
    with warnings_told(console):
        if options.stream == "list":
            for table in names_tables():
                console_for().print(table)
            return
        draws = options.stream in GENERATION_STREAMS
        if options.method is None:
            known = ", ".join(GENERATION_METHODS if draws else METHODS)
            raise OptionError(f"run {options.stream}: which method? Give --method, one of: {known}.")
        (_run_that_draws if draws else _run)(options, options.method, console)


def _run(options: RunOptions, method: str, console: Console) -> None:
    given = settings(options)
    config = configure(options.stream, method, seed=options.seed, data_dir=options.data_dir, **given)
    for line in [*idle_settings(config, given), *unit_note(config, given), *hopeless_note(config)]:
        say(console, ("warning: ", "yellow"), line)

    def pictures(result: RunResult, folder: Path) -> Iterator[Path]:
        groups = group_results([result])
        yield accuracy_curves(groups, folder / "plots" / "accuracy.png")
        yield accuracy_matrices(groups, folder / "plots" / "matrix.png")

    _done(options, config, run, console, tables=(matrix_table, summary_table), pictures=pictures)


def _run_that_draws(options: RunOptions, method: str, console: Console) -> None:
    config = configure_generation(options.stream, method, seed=options.seed, **settings(options))
    title = f"{options.stream}, {method_label(method)}"
    tables = (lambda result: matrix_table(result, title="drawn as asked, %"), generation_table)
    _done(
        options,
        config,
        run_generation,
        console,
        tables=tables,
        pictures=lambda _, folder: draw_samples(folder, title=title),
    )


def _done(
    options: RunOptions,
    config: Any,
    do: Callable[..., RunResult],
    console: Console,
    *,
    tables: Iterable[Callable[[RunResult], Table]],
    pictures: Callable[[RunResult, Path], Iterable[Path]],
) -> None:
    """Do a run, show what it found, draw it, and say where everything is; no run depends on matplotlib."""
    label, folder = method_label(config.method), Path(options.output) / config.name
    finished = (folder / "result.json").exists()
    say(console, (f"{options.stream}, {label}", "bold"), f", seed {options.seed}  ", (str(folder), "dim"))
    with event_callback(console, label, event_files=folder if options.tensorboard else None) as on_event:
        result = do(config, output=options.output, device=options.device, data_dir=options.data_dir, on_event=on_event)
    if finished:
        console.print("This run was finished before: read back, not trained again.")
    console.print()
    for table in tables:
        console.print(table(result))
    console.print()
    told = console_for()
    say(told, f"results:  {folder / 'result.json'}")
    try:
        check_matplotlib()
    except OptionError as error:
        say(told, f"pictures: none; {error}")
        return
    say(told, "pictures: " + "\n          ".join(map(str, pictures(result, folder))))
