"""`holdfast run` of a stream of generation."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from holdfast.cli.console import console_for, say, warnings_told
from holdfast.cli.options import RunOptions
from holdfast.cli.progress import event_callback
from holdfast.cli.settings import settings
from holdfast.cli.tables import generation_table, matrix_table
from holdfast.errors import OptionError
from holdfast.lab.canvas import check_matplotlib
from holdfast.lab.generation import GENERATION_METHODS, configure_generation, run_generation
from holdfast.lab.generation.pictures import draw_samples


def run_generation_command(options: RunOptions, console: Console) -> None:
    """Do the run, show what it found, and draw its pictures."""
    if options.method is None:
        known = ", ".join(GENERATION_METHODS)
        raise OptionError(f"run {options.stream}: which method? Give --method, one of: {known}.")
    config = configure_generation(options.stream, options.method, seed=options.seed, **settings(options))
    label = GENERATION_METHODS[options.method].label
    folder = Path(options.output) / config.name
    finished = (folder / "result.json").exists()
    say(console, (f"{options.stream}, {label}", "bold"), f", seed {options.seed}  ", (str(folder), "dim"))
    with (
        warnings_told(console),
        event_callback(console, label, event_files=folder if options.tensorboard else None) as on_event,
    ):
        result = run_generation(
            config, output=options.output, device=options.device, data_dir=options.data_dir, on_event=on_event
        )
    if finished:
        console.print("This run was finished before: read back, not trained again.")
    console.print()
    console.print(matrix_table(result, title="drawn as asked, %"))
    console.print(generation_table(result))
    console.print()
    told = console_for()
    say(told, f"results:  {folder / 'result.json'}")
    try:
        check_matplotlib()
    except OptionError as error:
        say(told, f"pictures: none; {error}")
        return
    pictures = draw_samples(folder, title=f"{options.stream}, {label}")
    say(told, "pictures: " + "\n          ".join(map(str, pictures)))
