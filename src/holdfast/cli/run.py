"""`holdfast run`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
from holdfast.lab.config import RunConfig
from holdfast.lab.configured import Configured
from holdfast.lab.escaping import one_line
from holdfast.lab.generation import GenerationConfig, run_generation
from holdfast.lab.generation.pictures import draw_samples
from holdfast.lab.groups import group_results
from holdfast.lab.kinds import kind_of, named_by
from holdfast.lab.plots import accuracy_curves, accuracy_matrices
from holdfast.lab.result import RunResult
from holdfast.lab.running import run


@dataclass(frozen=True)
class _Manner:
    """How a kind of runs is done and shown.

    Attributes:
        run: does it.
        notes: lines on settings that are to no use, of those that were typed.
        title: of the accuracies.
        figures: a table of them.
        draw: the pictures, in the run's folder.
    """

    run: Callable[..., RunResult]
    notes: Callable[[Any, Mapping[str, Any]], list[str]]
    title: str
    figures: Callable[[RunResult], Table]
    draw: Callable[[RunResult, Path, str], list[Path]]


def _notes(config: RunConfig, given: Mapping[str, Any]) -> list[str]:
    return [*idle_settings(config, given), *unit_note(config, given), *hopeless_note(config)]


def _draw_accuracies(result: RunResult, folder: Path, title: str) -> list[Path]:
    groups, plots = group_results([result]), folder / "plots"
    return [accuracy_curves(groups, plots / "accuracy.png"), accuracy_matrices(groups, plots / "matrix.png")]


def _draw_samples(result: RunResult, folder: Path, title: str) -> list[Path]:
    return draw_samples(folder, title=title)


_MANNERS: Mapping[type[Configured], _Manner] = {
    RunConfig: _Manner(run, _notes, "test accuracy %", summary_table, _draw_accuracies),
    GenerationConfig: _Manner(
        run_generation, lambda config, given: [], "drawn as asked, %", generation_table, _draw_samples
    ),
}


def run_command(options: RunOptions) -> None:
    """Do the run, or what stands in its place."""
    console = console_for(quiet=options.quiet)
    with warnings_told(console):
        if options.stream == "list":
            for table in names_tables():
                console_for().print(table)
        else:
            _run(options, console)


def _run(options: RunOptions, console: Console) -> None:
    """Do the run, show what it found, and draw its pictures."""
    kind = kind_of(options.stream)
    methods, shown = named_by(kind, "method"), _MANNERS[kind]
    if options.method is None:
        raise OptionError(f"run {options.stream}: which method? Give --method, one of: {', '.join(methods)}.")
    given = settings(options)
    config = kind.configured(options.stream, options.method, seed=options.seed, data_dir=options.data_dir, **given)
    for line in shown.notes(config, given):
        say(console, ("warning: ", "yellow"), line)
    label = one_line(methods.named(options.method).label)
    folder = Path(options.output) / config.name
    finished = (folder / "result.json").exists()
    say(console, (f"{options.stream}, {label}", "bold"), f", seed {options.seed}  ", (str(folder), "dim"))
    with event_callback(console, label, event_files=folder if options.tensorboard else None) as on_event:
        result = shown.run(
            config, output=options.output, device=options.device, data_dir=options.data_dir, on_event=on_event
        )
    if finished:
        console.print("This run was finished before: read back, not trained again.")
    console.print()
    console.print(matrix_table(result, title=shown.title))
    console.print(shown.figures(result))
    console.print()
    told = console_for()
    say(told, f"results:  {folder / 'result.json'}")
    try:
        check_matplotlib()
    except OptionError as error:
        say(told, f"pictures: none; {error}")
        return
    pictures = shown.draw(result, folder, f"{options.stream}, {label}")
    say(told, "pictures: " + "\n          ".join(map(str, pictures)))
