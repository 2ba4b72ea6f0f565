"""`holdfast finetune`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from holdfast.cli.console import console_for, say, warnings_told
from holdfast.cli.language_options import FinetuneOptions, check_options, columns_of
from holdfast.cli.progress import Stages
from holdfast.cli.tables import new_table
from holdfast.errors import OptionError
from holdfast.experiments.language.finetuning import FineTuneSettings, HoldOptions
from holdfast.experiments.language.keeping import keep_and_learn
from holdfast.experiments.language.kept import SkillChange, forecast_verdict
from holdfast.experiments.language.rows import Columns
from holdfast.experiments.language.sources import Source
from holdfast.experiments.run import usable_device


def finetune_command(options: FinetuneOptions) -> None:
    """Fine-tune a model without losing what an importance holds, and show what was kept and learned."""
    check_options(options, command="finetune")
    if options.keep is None:
        raise OptionError("finetune: what is to be kept? Give --keep DIR, written by holdfast importance.")
    if options.method == "ewc" and options.strength is None and options.budget is None:
        raise OptionError(
            "finetune: --method ewc needs --budget, such as 0.05 nats a target, or --strength, such as 1."
        )
    console = console_for(quiet=options.quiet)
    columns = columns_of(options)
    old = None
    if options.old_data is not None:
        old = Source(options.old_data, Columns(tuple(options.old_text), options.old_label), options.old_split)
    elif options.old_text or options.old_label:
        raise OptionError("finetune: --old-text and --old-label are of --old-data, which is not given. Give it too.")
    with warnings_told(console), Stages(console) as stages:

        def show_plan(lines: Sequence[str]) -> None:
            for line in lines:
                stages.say(line)

        def tell(way: str, logs: Mapping[str, Any]) -> None:
            rise = f", predicted rise {logs['predicted_rise']:.4g}" if "predicted_rise" in logs else ""
            stages.say(f"{way}: step {logs['step']}/{logs['steps']}, loss {logs['loss']:.4g}{rise}")

        kept = keep_and_learn(
            options.model,
            Source(options.data, columns, options.split),
            keep=Path(options.keep),
            output=Path(options.output),
            settings=FineTuneSettings(
                epochs=options.epochs,
                steps=options.steps,
                lr=options.lr,
                batch_size=options.batch_size,
                accumulate=options.accumulate,
                seed=options.seed,
                save_every=options.save_every,
                checkpointing=options.checkpointing,
            ),
            holding=HoldOptions(**{entry.name: getattr(options, entry.name) for entry in fields(HoldOptions)}),
            task=options.task,
            head=options.head,
            old_data=old,
            test_data=None if options.test_data is None else Source(options.test_data, columns, options.split),
            compare=options.compare,
            length=options.length,
            device=usable_device(options.device),
            dtype=getattr(torch, options.dtype),
            on_log=tell,
            on_plan=show_plan,
            on_progress=stages,
        )
    _show(kept, console_for())


def _show(kept: SkillChange, console: Console) -> None:
    """The table of both skills, where the models are, and whether the forecast held."""
    table = new_table("kept and learned")
    table.add_column("")
    for title in ("before", "after, held", "after, plain"):
        table.add_column(title, justify="right")
    for name, skills, head in (("old skill", kept.old, kept.old_head), ("new skill", kept.new, kept.new_head)):
        if skills:
            measure = skills["before"].measure
            cells = [skills[way].text if way in skills else "" for way in ("before", "held", "plain")]
            table.add_row(f"{name}: {measure}{f', head {head!r}' if head else ''}", *cells)
    name = kept.folder.name
    plain = "" if kept.plain_folder is None else f"{name}/{kept.plain_folder.name}"
    table.add_row("saved in", "", name, plain)
    console.print(table)
    say(console, kept.report)
    say(console, f"written to {kept.folder}{_heads(kept)}")
    if kept.plain_folder is not None:
        say(console, f"plain fine-tuning, to compare with, written to {kept.plain_folder}")
    say(console, (forecast_verdict(kept), "bold red" if kept.is_far_above else ""))


def _heads(kept: SkillChange) -> str:
    """How an old head can be had again."""
    if not kept.kept_heads:
        return ""
    names = ", ".join(map(repr, kept.kept_heads))
    return f", with the head {kept.new_head!r} in use, and {names} kept: --head NAME takes one of these"
