"""`holdfast importance`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from holdfast.cli.console import console_for, own_device, say, warnings_told
from holdfast.cli.language_options import ImportanceOptions, columns_of
from holdfast.cli.progress import Stages
from holdfast.errors import OptionError
from holdfast.files import check_output
from holdfast.lab.devices import usable_device
from holdfast.language import Dreams
from holdfast.language.batches import Example, drawn, examples
from holdfast.language.calibration import NUM_EXAMPLES, calibrate
from holdfast.language.choosing import choose_task, plan, sample
from holdfast.language.dreamt import DREAMS, WRITING, dreamt
from holdfast.language.importance_folder import importance_names, write_importance_folder
from holdfast.language.measuring import MEASURING, MeasuringProgress, measure_importance
from holdfast.language.models import LanguageModel, load_model
from holdfast.language.processes import ALONE, Processes
from holdfast.language.rows import Source
from holdfast.language.sharding import shard_blocks
from holdfast.probes import Probes


@dataclass(frozen=True)
class _Shown:
    """What shows the skill.

    Attributes:
        model: for its task.
        told: what is about to be done, in lines.
        name: of the data, in the card.
        identity: what must be the same for a measurement to go on.
        read: makes the stream that is measured anew.
        learned: makes the stream that made-up lessons learn from anew.
        probes: on which these are seen to raise the loss; None for a part of what they would learn from.
        dreams: that the model wrote, if it did.
    """

    model: LanguageModel
    told: list[str]
    name: str
    identity: dict[str, Any]
    read: Callable[[], Iterable[Example]]
    learned: Callable[[], Iterable[Example]]
    probes: Probes | None = None
    dreams: Dreams | None = None


def importance_command(options: ImportanceOptions, *, processes: Processes = ALONE) -> None:
    """Measure what a model's skill rests on, and write it down; of several processes the first writes."""
    _check_combination(options)
    console = console_for(quiet=options.quiet)
    _check_shards(options, processes)
    path = Path(str(options.output))
    reading = [options.model, *([] if options.data is None else [options.data])]
    check_output(path, reading=reading, names=importance_names(options.kind))
    device = usable_device(own_device(options.device))
    if options.data is not None:
        shown = _of_data(options, options.data, torch.device("cpu") if options.shard else device)
    else:
        shown = _of_dreams(options, path, console, device, processes)
    model = shown.model
    identity = {"model": model.revision, "task": model.task, "head": model.head, **shown.identity}
    processes.agree("importance", **identity)
    if options.shard:
        shard_blocks(model.module, device=device, processes=processes)
    for line in shown.told:
        say(console, line)
    checkpoint = path / MEASURING
    if checkpoint.exists():
        say(console, f"goes on from {checkpoint}")
    with warnings_told(console), Stages(console) as stages:

        def tell(progress: MeasuringProgress) -> None:
            stages.say(f"{progress.text}, {progress.seconds:.0f} s")
            stages("measuring", progress.num_examples, options.examples)

        found, progress = measure_importance(
            model,
            shown.read,
            kind=options.kind,
            num_examples=options.examples,
            tolerance=options.tolerance,
            batch_size=options.batch_size,
            seed=options.seed,
            checkpoint=checkpoint,
            identity=identity,
            on_part=tell,
            processes=processes,
        )
        if options.calibrate:
            factor = calibrate(
                model,
                found,
                list(drawn(shown.learned(), NUM_EXAMPLES[model.task], seed=options.seed)),
                budget=options.calibrate_budget,
                seed=options.seed,
                probes=shown.probes,
                on_progress=stages,
                processes=processes,
            )
            stages.say(
                f"calibration: rise predicted {factor.predicted:.3g}, measured {factor.measured:.3g} nats a target"
            )
            if factor.why_not_settled:
                told = "Give a larger --calibrate-budget, or --old-data to finetune, on which the rise is measured."
                stages.say(f"warning: calibration: {factor.why_not_settled}. {told}")
            found = factor.applied_to(found)
    if processes.is_first:
        write_importance_folder(path, found, model, data=shown.name, progress=progress, length=options.length)
        checkpoint.unlink(missing_ok=True)
        if shown.dreams is not None:
            shown.dreams.save(path / DREAMS)
            (path / WRITING).unlink(missing_ok=True)
    processes.wait()
    told = console_for()
    say(told, f"{progress.text}, {progress.seconds:.0f} s")
    say(told, f"{found}, in {found.info.unit}")
    say(told, f"written to {path}" + ("" if shown.dreams is None else f", and what the model wrote to {path / DREAMS}"))


def _check_combination(options: ImportanceOptions) -> None:
    if options.output is None:
        raise OptionError("importance: where to? Give -o DIR.")
    if options.data is None and options.own is None:
        raise OptionError(
            "importance: measured on what? Give DATA, or --self N for texts that a causal model writes itself."
        )
    other = options.task if options.task != "causal-lm" else None
    given = {"DATA": options.data, "--text": options.text, "--label": options.label, f"--task {other}": other}
    beside = [name for name, value in given.items() if value]
    if options.own is not None and beside:
        raise OptionError(
            f"importance: --self beside {', '.join(beside)}: a causal model writes what it is measured on. Leave "
            "out the one or the other."
        )


def _check_shards(options: ImportanceOptions, processes: Processes) -> None:
    """Raise `OptionError` where a model in shards would not be measured so."""
    beside = {
        "--calibrate": options.calibrate,
        "--self": options.own is not None,
        "--kind kfac": options.kind == "kfac",
    }
    given = [name for name, is_given in beside.items() if is_given]
    if options.shard and given:
        raise OptionError(f"importance: --shard beside {', '.join(given)}, which needs whole weights. Leave one out.")
    if options.shard and processes.count == 1:
        raise OptionError(
            "importance: --shard spreads a model over several processes, and there is one. Start them with torchrun "
            "--nproc-per-node N -m holdfast importance ..., or leave it out."
        )


def _of_data(options: ImportanceOptions, data: str, device: torch.device) -> _Shown:
    dtype = getattr(torch, options.dtype)
    source = Source(data, columns_of(options), options.split)
    model = load_model(options.model, head=options.head, device=device, dtype=dtype)
    labelled = options.kind == "empirical"
    task, why = choose_task(model, source, asked=options.task, learns=False, labelled=labelled)
    if task != model.task:
        model = load_model(options.model, task=task, head=options.head, device=device, dtype=dtype)

    def read(*, labelled: bool) -> Iterable[Example]:
        return examples(model, source.rows(), length=options.length, labelled=labelled)

    return _Shown(
        model,
        plan(model, source, why=why, length=options.length, labelled=labelled, examples_read=_read(options)),
        Path(data).name,
        {
            "data": data,
            "split": options.split,
            "columns": [*options.text, options.label],
            "length": options.length,
        },
        partial(read, labelled=labelled),
        partial(read, labelled=False),
    )


def _of_dreams(
    options: ImportanceOptions, path: Path, console: Console, device: torch.device, processes: Processes
) -> _Shown:
    assert options.own is not None
    model = load_model(options.model, head=options.head, device=device, dtype=getattr(torch, options.dtype))
    if (path / WRITING).exists():
        say(console, f"goes on from {path / WRITING}")
    with warnings_told(console):
        found = dreamt(
            model,
            options.own,
            length=options.length,
            seed=options.seed,
            checkpoint=path / WRITING,
            progress=not options.quiet and processes.is_first,
            processes=processes,
        )
    kind = "conversations" if found.dreams.info.chat else "texts"
    told = [
        f"task: {model.task} ({model.name} was made for it)",
        f"data: {options.own:,} {kind} that it wrote itself, of which {found.probes.num_examples} are not measured on",
        f"examples: {_read(options)}",
        f"sample: {sample(model, found.measured[0])}",
    ]
    return _Shown(
        model,
        told,
        f"{options.own:,} {kind} that it wrote itself",
        {"data": None, "dreams": options.own, "length": options.length},
        lambda: iter(found.measured),
        lambda: iter(found.measured),
        found.probes,
        found.dreams,
    )


def _read(options: ImportanceOptions) -> str:
    """Which examples are measured, in words."""
    if options.examples is None and options.tolerance is None:
        return "all, in their order"
    count = f"{options.examples:,} at most" if options.examples else "as many as it takes"
    until = f", until the relative error is below {options.tolerance:g}" if options.tolerance else ""
    return f"{count}, drawn in random order from all of the data under seed {options.seed}{until}"
