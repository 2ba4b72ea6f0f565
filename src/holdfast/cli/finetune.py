"""`holdfast finetune`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from holdfast.cli.console import console_for, own_device, say, warnings_told
from holdfast.cli.language_options import FinetuneOptions, columns_of
from holdfast.cli.progress import Stages
from holdfast.cli.tables import new_table
from holdfast.errors import OptionError
from holdfast.lab.devices import usable_device
from holdfast.language.finetuning import FineTuneSettings, HoldOptions, flag
from holdfast.language.keeping import keep_and_learn
from holdfast.language.kept import SkillChange, forecast_verdict
from holdfast.language.past import SHARE, RehearsalOptions
from holdfast.language.processes import ALONE, Processes
from holdfast.language.rows import Columns, Source


def finetune_command(options: FinetuneOptions, *, processes: Processes = ALONE) -> None:
    """Fine-tune a model without losing what an importance holds, and show what was kept and learned."""
    holding = HoldOptions(**_given(HoldOptions, options))
    holding = replace(holding, method="ewc") if options.method == "auto" else holding
    _check_combination(options, list(map(flag, holding.given)))
    console = console_for(quiet=options.quiet)
    columns = columns_of(options)
    old_columns = Columns(tuple(options.old_text), options.old_label)
    rehearsing = None
    if options.rehearse is not None:
        rehearsing = RehearsalOptions(options.rehearse, SHARE if options.share is None else options.share)
        if rehearsing.kind == "data":
            rehearsing = replace(rehearsing, source=Source(options.rehearse, old_columns, options.old_split))
    old = None
    if options.old_data is not None:
        old = Source(options.old_data, old_columns, options.old_split)
    elif (options.old_text or options.old_label) and (rehearsing is None or rehearsing.source is None):
        raise OptionError("finetune: --old-text and --old-label are of --old-data, which is not given. Give it too.")
    with warnings_told(console), Stages(console) as stages:

        def show_plan(lines: Sequence[str]) -> None:
            for line in lines:
                stages.say(line)

        def tell(way: str, logs: Mapping[str, Any]) -> None:
            rise = f", predicted rise {logs['predicted_rise']:.4g}" if "predicted_rise" in logs else ""
            past = f", of the past {logs['rehearsal_loss']:.4g}" if "rehearsal_loss" in logs else ""
            stages.say(f"{way}: step {logs['step']}/{logs['steps']}, loss {logs['loss']:.4g}{past}{rise}")

        kept = keep_and_learn(
            options.model,
            Source(options.data, columns, options.split),
            keep=None if options.keep is None else Path(options.keep),
            output=Path(options.output),
            settings=FineTuneSettings(**_given(FineTuneSettings, options)),
            holding=holding,
            rehearsing=rehearsing,
            automatic=options.method == "auto",
            task=options.task,
            head=options.head,
            old_data=old,
            test_data=None if options.test_data is None else Source(options.test_data, columns, options.split),
            compare=options.compare,
            length=options.length,
            device=usable_device(own_device(options.device)),
            dtype=getattr(torch, options.dtype),
            on_log=tell,
            on_plan=show_plan,
            on_progress=stages,
            processes=processes,
        )
    _show(kept, console_for())


def _given(kind: type, options: FinetuneOptions) -> dict[str, Any]:
    """What of the record's fields are options."""
    return {entry.name: getattr(options, entry.name) for entry in fields(kind) if hasattr(options, entry.name)}


def _check_combination(options: FinetuneOptions, held_by: Sequence[str]) -> None:
    """Raise `OptionError` where nothing is kept, or an option would have no effect."""
    if options.share is not None and options.rehearse is None:
        raise OptionError("finetune: --share is of --rehearse, which is not given. Give it too.")
    if options.method == "auto":
        return
    if options.keep is None and options.rehearse is None:
        raise OptionError(
            "finetune: what is to be kept? Give --keep DIR, written by holdfast importance; or --rehearse WHAT; or "
            "--method auto, which chooses."
        )
    if options.keep is None and (held_by or options.method != "ewc"):
        found = ", ".join(held_by) or f"--method {options.method}"
        raise OptionError(
            f"finetune: {found} beside --rehearse alone, and nothing to hold. Give --keep DIR, or --method auto, which "
            "measures what is to be held."
        )
    if options.keep is not None and options.method == "ewc" and options.strength is None and options.budget is None:
        raise OptionError(
            "finetune: --method ewc needs --budget, such as 0.05 nats a target, or --strength, such as 1."
        )


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
    if kept.report:
        say(console, kept.report)
    if kept.rehearsed:
        say(console, f"rehearsed {kept.rehearsed}, a share of {kept.share:g} of the batches")
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
