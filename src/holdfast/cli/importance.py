"""`holdfast importance`."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import torch

from holdfast.cli.console import console_for, say, warnings_told
from holdfast.cli.language_options import ImportanceOptions, check_closed, columns_of
from holdfast.errors import OptionError
from holdfast.experiments.language.batches import examples
from holdfast.experiments.language.importance_folder import importance_names, write_importance
from holdfast.experiments.language.keeping import Source, task_for
from holdfast.experiments.language.measuring import MEASURING, Progress, measure
from holdfast.experiments.language.models import load_model
from holdfast.experiments.language.rehearsal import NUM_EXAMPLES, rehearse
from holdfast.experiments.run import usable_device
from holdfast.files import check_output
from holdfast.records import Importance


def importance_command(options: ImportanceOptions) -> None:
    """Measure what a model's skill rests on, and write it down."""
    check_closed(options)
    if options.output is None:
        raise OptionError("importance: where to? Give -o DIR.")
    if options.rehearse and options.kind == "kfac":
        raise OptionError("importance: --rehearse is for a budget, which Kronecker factors cannot keep. Leave it out.")
    if options.rehearse and not options.rehearse_budget > 0:
        raise OptionError(
            f"importance: --rehearse-budget is {options.rehearse_budget}; expected nats above 0, such as 0.05."
        )
    console = console_for(quiet=options.quiet)
    path = Path(options.output)
    check_output(path, reading=[options.model, options.data], names=importance_names(options.kind))
    device, dtype = usable_device(options.device), getattr(torch, options.dtype)
    source = Source(options.data, columns_of(options), options.split)
    ready = load_model(options.model, device=device, dtype=dtype)
    task = options.task or task_for(ready, source)
    model = ready if task == ready.task else load_model(options.model, task=task, device=device, dtype=dtype)
    checkpoint = path / MEASURING
    labelled = options.kind == "empirical"
    identity = {
        "model": model.revision,
        "data": options.data,
        "split": options.split,
        "columns": [*options.text, options.label],
        "length": options.length,
    }
    if checkpoint.exists():
        say(console, f"goes on from {checkpoint}")

    def tell(progress: Progress) -> None:
        say(console, f"{progress.text}, {progress.seconds:.0f} s")

    with warnings_told(console):
        found, progress = measure(
            model,
            lambda: examples(model, source.rows(), length=options.length, labelled=labelled),
            kind=options.kind,
            num_examples=options.examples,
            tolerance=options.tolerance,
            batch_size=options.batch_size,
            seed=options.seed,
            calibrate=options.calibrate,
            checkpoint=checkpoint,
            identity=identity,
            watch=tell,
        )
    if options.rehearse and isinstance(found, Importance):
        shown = examples(model, source.rows(), length=options.length, labelled=False)
        some = list(islice(shown, NUM_EXAMPLES[model.task]))
        rehearsed = rehearse(model, found, some, budget=options.rehearse_budget, seed=options.seed)
        say(console, f"rehearsal: rise predicted {rehearsed.predicted:.3g}, measured {rehearsed.measured:.3g} nats")
        found = rehearsed.applied_to(found)
    write_importance(path, found, model, data=Path(options.data).name, progress=progress)
    checkpoint.unlink(missing_ok=True)
    told = console_for()
    say(told, f"{progress.text}, {progress.seconds:.0f} s")
    say(told, f"{found}, in {found.info.unit}")
    say(told, f"written to {path}")
