"""`holdfast advise --memory`: what a language model would take, from its configuration alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from holdfast.cli.console import console_for, say
from holdfast.cli.options import AdviseOptions
from holdfast.cli.tables import new_table
from holdfast.errors import OptionError
from holdfast.files import check_files, holds, write_json
from holdfast.lab.canvas import make_folder
from holdfast.language.footprint import Descent, Spread
from holdfast.language.planning import (
    FittingPlan,
    MemoryRow,
    Question,
    as_bytes,
    cheapest_measuring,
    cheapest_training,
    enough_devices,
    measuring_command,
    memory_rows,
    training_command,
)
from holdfast.language.sizes import configuration, sizes_of

_TITLES: dict[Spread, str] = {"alone": "one device", "replicas": "each has all", "shards": "in shards"}


def show_foreseen(options: AdviseOptions) -> None:
    """Show what each method takes of a device's memory in each form and phase, and the cheapest plan that fits."""
    _check(options)
    console = console_for(quiet=options.quiet)
    name = re.sub(r"[^\w.-]+", "-", Path(options.model).name)
    path = Path(options.output) / "advice" / f"{name}-memory.json"
    check_files([path], is_ours=_is_ours)
    dtype, length, batch_size = options.dtype or "bfloat16", options.length or 1024, options.batch_size or 16
    memory = as_bytes(str(options.memory))
    config = configuration(options.model)
    with console.status("reading the configuration ..."):
        sizes = sizes_of(config, dtypes=(dtype,), length=length, num_examples=batch_size)
    asked = Question(sizes, options.devices, memory, batch_size, length, dtype, _descent(options.optimizer))
    found = {
        "model": options.model,
        "asked": asdict(asked),
        "rows": [asdict(row) for row in memory_rows(asked)],
        "measure": _planned(cheapest_measuring(asked)),
        "train": _planned(cheapest_training(asked)),
    }
    _show(memory_rows(asked), asked, options.model)
    _show_plans(asked, options.model)
    check_files([path], is_ours=_is_ours)
    make_folder(path.parent)
    write_json(path, found)
    say(console_for(), f"\nwritten to {path}")


def _check(options: AdviseOptions) -> None:
    """Raise `OptionError` for options of what is measured."""
    given = {
        "--methods": options.methods is not None,
        "--hidden": options.hidden is not None,
        "--loss": options.loss is not None,
        "--buffer-size": options.buffer_size is not None,
    }
    if beside := [name for name, is_given in given.items() if is_given]:
        raise OptionError(
            f"advise: {', '.join(beside)} beside --memory, with which nothing is measured. Leave out the one or the "
            "other."
        )


def _descent(name: str) -> Descent:
    match name:
        case "sgd":
            return "sgd"
        case "adam" | "adamw":
            return "adamw"
        case _:
            raise OptionError(f"advise: --optimizer {name} beside --memory; expected sgd or adamw.")


def _is_ours(path: Path) -> bool:
    return holds(path, ("model", "asked", "rows"))


def _planned(plan: FittingPlan | None) -> dict[str, Any] | None:
    return None if plan is None else asdict(plan)


def _show(rows: Sequence[MemoryRow], asked: Question, model: str) -> None:
    sizes = asked.sizes
    table = new_table(f"{model}, {sizes.num_weights / 1e9:.3g} billion weights in {asked.dtype}, GB of a device")
    for title in ("", "method", "held in"):
        table.add_column(title)
    for spread in asked.spreads:
        table.add_column(_TITLES[spread], justify="right")
    for row in rows:
        cells = [_cell(asked.takes(row.found[spread]), asked.memory) for spread in asked.spreads]
        table.add_row(row.phase, row.method, row.form, *cells)
    console = console_for()
    console.print(table)
    say(
        console,
        f"In brackets: more than {asked.memory / 1e9:g} GB. Batches of {asked.batch_size} examples of {asked.length} "
        f"tokens on all devices; {asked.optimizer}; activations kept.",
    )


def _cell(num_bytes: int, memory: int) -> str:
    told = f"{num_bytes / 1e9:.3g}"
    return told if num_bytes <= memory else f"({told})"


def _show_plans(asked: Question, model: str) -> None:
    console = console_for()
    measured, trained = cheapest_measuring(asked), cheapest_training(asked)
    for phase, plan, command in (
        ("measure", measured, measuring_command),
        ("fine-tune under EWC", trained, training_command),
    ):
        if plan is None:
            say(console, f"\nTo {phase}: nothing fits.")
            continue
        say(console, f"\nTo {phase}, {asked.takes(plan.footprint) / 1e9:.3g} GB at {plan.footprint.moment}:")
        for item in sorted(plan.footprint.items, key=lambda each: -each.num_bytes):
            where = "" if item.on == "device" else ", in the host's memory"
            say(console, f"    {item.num_bytes / 1e9:8.3g}  {item.name}{where} ({item.source})")
        told = command(plan, asked, model)
        say(console, f"    {told or 'fully_shard in a loop of your own: docs/integrations.md, Many processes'}")
    if trained is None:
        count = enough_devices(asked)
        told = "more devices do not help" if count is None else f"give --devices {count}"
        say(console, f"{told}, or a smaller --length.")
