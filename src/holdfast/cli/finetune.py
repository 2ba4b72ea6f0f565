"""`holdfast finetune`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from holdfast.cli.console import console_for, say, warnings_told
from holdfast.cli.language_options import FinetuneOptions, check_closed, columns_of
from holdfast.cli.tables import new_table
from holdfast.errors import OptionError
from holdfast.experiments.language.finetuning import Holding, Settings
from holdfast.experiments.language.keeping import Kept, Source, keep_and_learn
from holdfast.experiments.run import usable_device


def finetune_command(options: FinetuneOptions) -> None:
    """Fine-tune a model without losing what an importance holds, and show what was kept and learned."""
    check_closed(options)
    if options.keep is None:
        raise OptionError("finetune: what is to be kept? Give --keep DIR, written by holdfast importance.")
    if options.method == "ewc" and options.strength is None and options.budget is None:
        raise OptionError("finetune: --method ewc needs --budget, such as 0.05 nats, or --strength, such as 1.")
    console = console_for(quiet=options.quiet)
    columns = columns_of(options)

    def tell(way: str, logs: Mapping[str, Any]) -> None:
        rise = f", predicted rise {logs['predicted_rise']:.4g} nats" if "predicted_rise" in logs else ""
        say(console, f"{way}: step {logs['step']}/{logs['steps']}, loss {logs['loss']:.4g}{rise}")

    with warnings_told(console):
        kept = keep_and_learn(
            options.model,
            Source(options.data, columns, options.split),
            keep=Path(options.keep),
            output=Path(options.output),
            settings=Settings(
                epochs=options.epochs,
                steps=options.steps,
                lr=options.lr,
                batch_size=options.batch_size,
                accumulate=options.accumulate,
                seed=options.seed,
                save_every=options.save_every,
                checkpointing=options.checkpointing,
            ),
            holding=Holding(**{entry.name: getattr(options, entry.name) for entry in fields(Holding)}),
            task=options.task,
            old_data=None if options.old_data is None else Source(options.old_data),
            test_data=None if options.test_data is None else Source(options.test_data, columns, options.split),
            compare=options.compare,
            length=options.length,
            device=usable_device(options.device),
            dtype=getattr(torch, options.dtype),
            watch=tell,
        )
    _show(kept, console_for())


def _show(kept: Kept, console: Console) -> None:
    """The table of both skills."""
    table = new_table("kept and learned")
    table.add_column("")
    for title in ("before", "after, held", "after, plain"):
        table.add_column(title, justify="right")
    for name, skills in (("old skill", kept.old), ("new skill", kept.new)):
        if skills:
            measure = skills["before"].measure
            cells = [skills[way].text if way in skills else "" for way in ("before", "held", "plain")]
            table.add_row(f"{name}: {measure}", *cells)
    console.print(table)
    say(console, kept.report)
    if kept.measured_rise is not None and kept.predicted_rise is not None:
        say(
            console,
            f"the old loss rose by {kept.measured_rise:.4g} nats an example; predicted: {kept.predicted_rise:.4g}",
        )
    say(console, f"written to {kept.folder}")
