"""`holdfast advise`."""

from __future__ import annotations

import re
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from textwrap import shorten

from rich.console import Console
from rich.table import Table

from holdfast.cli.console import console_for, say, warnings_told
from holdfast.cli.options import AdviseOptions
from holdfast.cli.tables import new_table
from holdfast.errors import OptionError
from holdfast.files import check_files, holds, write_json
from holdfast.lab.advise import Advice, advise
from holdfast.lab.canvas import make_folder
from holdfast.lab.devices import usable_device
from holdfast.lab.groups import method_label
from holdfast.lab.methods import method_named
from holdfast.lab.workloads import workload, workload_name


def advise_command(options: AdviseOptions) -> None:
    """Measure, or with --memory foresee, and show what was found."""
    if options.memory is not None:
        from holdfast.cli.foreseen import show_foreseen

        show_foreseen(options)
        return
    if options.devices != 1 or options.dtype is not None:
        given = "--devices" if options.devices != 1 else "--dtype"
        raise OptionError(f"advise: {given} is of --memory, which is not given. Give it too, such as --memory 80GB.")
    console = console_for(quiet=options.quiet)
    names = None if options.methods is None else [method_named(name).name for name in options.methods]
    name = re.sub(r"[^\w.-]+", "-", workload_name(options.model, stream=options.stream))
    path = Path(options.output) / "advice" / f"{name}.json"
    check_files([path], is_ours=_is_advice)
    asked = workload(
        options.model,
        stream=options.stream,
        hidden=options.hidden or (300, 150),
        batch_size=128 if options.batch_size is None else options.batch_size,
        num_batches=options.batches,
        length=128 if options.length is None else options.length,
        device=usable_device(options.device),
        data_dir=options.data_dir,
        loss=options.loss,
    )
    with warnings_told(console), console.status("measuring ...") as status:
        found = advise(
            asked,
            optimizer=options.optimizer,
            methods=names,
            num_examples=options.examples,
            options={} if options.buffer_size is None else {"buffer_size": options.buffer_size},
            on_method=lambda name: status.update(f"measuring {name} ..."),
        )
    _show(found, console_for())
    check_files([path], is_ours=_is_advice)
    make_folder(path.parent)
    write_json(path, asdict(found))
    say(console_for(), f"\nwritten to {path}")


def _is_advice(path: Path) -> bool:
    return holds(path, ("model", "optimizer", "costs"))


def _show(found: Advice, console: Console) -> None:
    console.print(_table(found))
    plain = found.weight_bytes + found.gradient_bytes + found.optimizer_bytes
    say(
        console,
        f"Plain training: weights {_size(found.weight_bytes)}, gradients {_size(found.gradient_bytes)}, "
        f"{found.optimizer} {_size(found.optimizer_bytes)}, together {_size(plain)} beside activations; "
        f"{1e3 * found.step_seconds:.3g} ms a step of {found.batch_size} examples.",
    )
    if (taken := found.measure) is not None:
        say(
            console,
            f"hf.measure takes {taken.choice.why}. It keeps {_size(taken.held_bytes)} with anchors, and takes "
            f"{_time(taken.seconds)} for {found.num_examples:,} examples.",
        )
    for why, without in groupby(sorted(found.costs, key=lambda cost: cost.lacking), key=lambda cost: cost.lacking):
        if why:
            say(console, f"Without {', '.join(method_label(each.method) for each in without)}: {shorten(why, 200)}")
    say(console, "joint and cumulative keep, and train on, the data of all tasks.")


def _table(found: Advice) -> Table:
    table = new_table(f"{found.model}, {found.num_parameters:,} parameters, on {found.device}")
    peaks = any(cost.peak_bytes is not None for cost in found.costs)
    table.add_column("method", min_width=14)
    for title in ("keeps", "of the weights", "a step", f"closing a task, {found.num_examples:,} examples"):
        table.add_column(title, justify="right")
    if peaks:
        table.add_column("peak of a step", justify="right")
    for cost in found.costs:
        if cost.lacking:
            continue
        cells = [
            _size(cost.held_bytes),
            f"{cost.held_bytes / found.weight_bytes:.1f} x",
            f"{cost.step_ratio:.2f} x",
            _time(cost.closing_seconds),
        ]
        table.add_row(method_label(cost.method), *cells, *([_size(cost.peak_bytes or 0)] * peaks))
    return table


def _time(seconds: float) -> str:
    return "at once" if seconds < 0.05 else f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"


def _size(count: int) -> str:
    size, units = float(count), ["B", "KiB", "MiB", "GiB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.3g} {units[0]}" if size < 1000 else f"{size:.0f} {units[0]}"
