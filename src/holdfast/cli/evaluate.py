"""`holdfast evaluate`."""

from __future__ import annotations

from holdfast.cli.console import console_for, own_device, say, warnings_told
from holdfast.cli.language_options import EvaluateOptions, columns_of
from holdfast.cli.progress import Stages
from holdfast.lab.devices import usable_device
from holdfast.language.batches import batches, digest_of, examples
from holdfast.language.choosing import choose_task, number_of, number_read, plan
from holdfast.language.models import load_model
from holdfast.language.processes import ALONE, Processes
from holdfast.language.rows import Source
from holdfast.language.skills import evaluate
from holdfast.language.ticks import counted


def evaluate_command(options: EvaluateOptions, *, processes: Processes = ALONE) -> None:
    """Measure a skill, and show it."""
    device = usable_device(own_device(options.device))
    source = Source(options.data, columns_of(options), options.split)
    console = console_for()
    model = load_model(options.model, head=options.head, device=device)
    task, why = choose_task(model, source, asked=options.task, learns=False, labelled=True)
    if task != model.task:
        model = load_model(options.model, task=task, head=options.head, device=device)
    with warnings_told(console), Stages(console) as stages:
        found = examples(model, source.rows(), length=options.length, labelled=True)
        found = list(counted(found, stages, f"reading {source.path}"))
        if processes.count > 1:
            processes.agree("evaluate", model=model.revision, task=model.task, head=model.head, data=digest_of(found))
        told = number_read(model, len(found))
        for line in plan(model, source, why=why, length=options.length, labelled=True, examples_read=told):
            say(console, line)
        ticked = batches(model, found, options.batch_size)
        ticked = counted(ticked, stages, "evaluating", total=len(found), by=options.batch_size)
        skill = evaluate(model, ticked, processes=processes)
    unit, target = ("block", "a token") if model.task == "causal-lm" else ("example", "an example")
    say(
        console,
        f"{options.model}: {skill.measure} {skill.text} on {number_of(skill.num_examples, unit)}, "
        f"{skill.loss:.4f} nats {target}",
    )
