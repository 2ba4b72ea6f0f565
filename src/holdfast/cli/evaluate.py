"""`holdfast evaluate`."""

from __future__ import annotations

from holdfast.cli.console import console_for, say
from holdfast.cli.language_options import EvaluateOptions, check_closed, columns_of
from holdfast.experiments.language.batches import batches, examples
from holdfast.experiments.language.keeping import Source, task_for
from holdfast.experiments.language.models import load_model
from holdfast.experiments.language.skills import evaluate
from holdfast.experiments.run import usable_device


def evaluate_command(options: EvaluateOptions) -> None:
    """Measure a skill, and show it."""
    check_closed(options)
    device = usable_device(options.device)
    source = Source(options.data, columns_of(options), options.split)
    model = load_model(options.model, device=device)
    task = options.task or task_for(model, source)
    model = model if task == model.task else load_model(options.model, task=task, device=device)
    found = examples(model, source.rows(), length=options.length, labelled=True)
    skill = evaluate(model, batches(model, found, options.batch_size))
    unit = "block" if model.task == "causal-lm" else "example"
    say(
        console_for(),
        f"{options.model}: {skill.measure} {skill.text} on {skill.num_examples} {unit}s, "
        f"{skill.loss:.4f} nats a{'n' * (unit == 'example')} {unit}",
    )
