"""`holdfast importance`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from holdfast.cli.console import console_for, say, warnings_told
from holdfast.cli.language_options import ImportanceOptions, check_options, columns_of
from holdfast.cli.progress import Stages
from holdfast.errors import OptionError
from holdfast.experiments.language.batches import Example, drawn, examples
from holdfast.experiments.language.calibration import NUM_EXAMPLES, calibrate
from holdfast.experiments.language.choosing import choose_task, known_labels, plan
from holdfast.experiments.language.importance_folder import importance_names, write_importance_folder
from holdfast.experiments.language.measuring import MEASURING, MeasuringProgress, measure_importance
from holdfast.experiments.language.models import load_model
from holdfast.experiments.language.sources import Source
from holdfast.experiments.run import usable_device
from holdfast.files import check_output


def importance_command(options: ImportanceOptions) -> None:
    """Measure what a model's skill rests on, and write it down."""
    check_options(options, command="importance")
    if options.output is None:
        raise OptionError("importance: where to? Give -o DIR.")
    if options.calibrate and not options.calibrate_budget > 0:
        raise OptionError(
            f"importance: --calibrate-budget is {options.calibrate_budget}; expected nats a target above 0, such as "
            "0.05."
        )
    console = console_for(quiet=options.quiet)
    path = Path(options.output)
    check_output(path, reading=[options.model, options.data], names=importance_names(options.kind))
    device, dtype = usable_device(options.device), getattr(torch, options.dtype)
    source = Source(options.data, columns_of(options), options.split)
    model = load_model(options.model, head=options.head, device=device, dtype=dtype)
    labelled = options.kind == "empirical"
    task, why = choose_task(model, source, asked=options.task, learns=False, labelled=labelled)
    if task != model.task:
        model = load_model(options.model, task=task, head=options.head, device=device, dtype=dtype)
    for line in plan(model, source, why=why, length=options.length, labelled=labelled, examples_read=_read(options)):
        say(console, line)
    checkpoint = path / MEASURING
    identity = {
        "model": model.revision,
        "task": model.task,
        "head": model.head,
        "data": options.data,
        "split": options.split,
        "columns": [*options.text, options.label],
        "length": options.length,
    }
    if checkpoint.exists():
        say(console, f"goes on from {checkpoint}")
    with warnings_told(console), Stages(console) as stages:

        def tell(progress: MeasuringProgress) -> None:
            stages.say(f"{progress.text}, {progress.seconds:.0f} s")
            stages("measuring", progress.num_examples, options.examples)

        def read() -> Iterable[Example]:
            rows = known_labels(model, source.rows(), where=source.path) if labelled else source.rows()
            return examples(model, rows, length=options.length, labelled=labelled)

        found, progress = measure_importance(
            model,
            read,
            kind=options.kind,
            num_examples=options.examples,
            tolerance=options.tolerance,
            batch_size=options.batch_size,
            seed=options.seed,
            checkpoint=checkpoint,
            identity=identity,
            on_part=tell,
        )
        if options.calibrate:
            shown = examples(model, source.rows(), length=options.length, labelled=False)
            some = list(drawn(shown, NUM_EXAMPLES[model.task], seed=options.seed))
            factor = calibrate(
                model, found, some, budget=options.calibrate_budget, seed=options.seed, on_progress=stages
            )
            stages.say(
                f"calibration: rise predicted {factor.predicted:.3g}, measured {factor.measured:.3g} nats a target"
            )
            found = factor.applied_to(found)
    write_importance_folder(path, found, model, data=Path(options.data).name, progress=progress, length=options.length)
    checkpoint.unlink(missing_ok=True)
    told = console_for()
    say(told, f"{progress.text}, {progress.seconds:.0f} s")
    say(told, f"{found}, in {found.info.unit}")
    say(told, f"written to {path}")


def _read(options: ImportanceOptions) -> str:
    """Which examples are measured, in words."""
    if options.examples is None and options.tolerance is None:
        return "all, in their order"
    count = f"{options.examples:,} at most" if options.examples else "as many as it takes"
    until = f", until the relative error is below {options.tolerance:g}" if options.tolerance else ""
    return f"{count}, drawn in random order from all of the data under seed {options.seed}{until}"
