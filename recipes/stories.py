"""`python -m recipes elephants`: a story told, and its page."""

from __future__ import annotations

import os
from pathlib import Path

from holdfast.cli.console import console_for, say, warnings_told
from holdfast.cli.tables import new_table
from holdfast.errors import DataFileError, OptionError
from holdfast.lab.canvas import check_matplotlib
from holdfast.lab.devices import usable_device
from recipes.elephants.page import TITLES, check_page, conclusions, rows, write_page
from recipes.elephants.story import carry_out
from recipes.options import ElephantsOptions


def elephants_command(options: ElephantsOptions) -> None:
    """Carry a story out, and show what was kept and learned."""
    console = console_for(quiet=options.quiet)
    data_dir = options.data_dir or os.environ.get("HOLDFAST_DATA")
    if data_dir is None:
        raise DataFileError(
            "elephants: where are the texts? Give --data-dir, the parent of text/, or set HOLDFAST_DATA."
        )
    if options.story == "encoder" and options.size == "large":
        raise OptionError("elephants: encoder has no size large; expected full or quick.")
    check_matplotlib()
    work = Path(options.output) / "elephants"
    folder = Path(options.results) if options.results else work / options.story / options.size
    check_page(options.story, folder)
    with warnings_told(console):
        answer = carry_out(
            options.story,
            work=work,
            data_dir=Path(data_dir),
            size=options.size,
            seeds=options.seeds,
            rival_seeds=options.rival_seeds,
            methods=options.methods,
            device=usable_device(options.device),
            on_message=lambda text: say(console, text),
        )
    command = f"python -m recipes elephants {options.story}"
    if options.size != "full":
        command += f" --size {options.size}"
    blank = ElephantsOptions(options.story)
    for name in ("seeds", "rival_seeds", "methods"):
        given = getattr(options, name)
        if given and given != getattr(blank, name):
            command += f" --{name.replace('_', '-')} {' '.join(map(str, given))}"
    page, picture = write_page(answer, folder, command=command)
    told = console_for()
    heading, *lines = rows(answer)
    table = new_table(TITLES[options.story])
    for place, title in enumerate(heading):
        table.add_column(title, justify="left" if place == 0 else "right")
    for line in lines:
        table.add_row(*line)
    told.print(table)
    for line in conclusions(answer):
        say(told, line)
    say(told, f"written to {page}")
    say(told, f"  {picture}")
