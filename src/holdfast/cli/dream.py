"""`holdfast dream`."""

from __future__ import annotations

from pathlib import Path

import torch

from holdfast.cli.console import console_for, own_device, say, warnings_told
from holdfast.cli.language_options import DreamOptions
from holdfast.errors import OptionError
from holdfast.files import check_output
from holdfast.lab.devices import usable_device
from holdfast.language import CONFIG
from holdfast.language.dreamt import WRITING, dream_into
from holdfast.language.models import load_model
from holdfast.language.processes import ALONE, Processes


def dream_command(options: DreamOptions, *, processes: Processes = ALONE) -> None:
    """Let a model write, and keep what it wrote with its answers."""
    if options.output is None:
        raise OptionError("dream: where to? Give -o DIR.")
    path = Path(options.output)
    check_output(path, reading=[options.model], names=(CONFIG, "README.md", "dreams.safetensors"))
    device, dtype = usable_device(own_device(options.device)), getattr(torch, options.dtype)
    model = load_model(options.model, task="causal-lm", device=device, dtype=dtype)
    console = console_for(quiet=options.quiet)
    if (path / WRITING).exists():
        say(console, f"goes on from {path / WRITING}")
    with warnings_told(console):
        found = dream_into(
            path,
            model,
            count=options.count,
            length=options.length,
            chat={"auto": None, "yes": True, "no": False}[options.chat],
            temperatures=options.temperatures,
            batch_size=options.batch_size,
            seed=options.seed,
            progress=not options.quiet and processes.is_first,
            processes=processes,
        )
    info, told = found.info, console_for()
    say(
        told,
        f"{len(found):,} {'conversations' if info.chat else 'texts'} of {info.written:,} written: "
        f"{info.duplicates:,} duplicates and {info.loops:,} loops dropped, {info.distinct:.1%} of the runs of four "
        f"tokens distinct; perplexity of the model on them {info.perplexity:.4g}, probability beyond the kept "
        f"{info.rest:.2%}",
    )
    say(told, f"written to {path}")
