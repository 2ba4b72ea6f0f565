"""What is typed behind `python -m recipes`."""

# pyright: reportInvalidTypeForm=false

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from holdfast.cli.options import DataDir, Device, Output, Quiet
from holdfast.cli.values import option

_Names = Annotated[
    Positional[tuple[str, ...]],
    arg(metavar="NAME ...", help="names of experiments, or `all`; --list shows them", help_behavior_hint=""),
]
_Quick = Annotated[bool, arg(help="a small version on embedded digits, in a minute", help_behavior_hint="")]
_List = Annotated[bool, arg(help="show all experiments, and do nothing", help_behavior_hint="")]
_DryRun = Annotated[bool, arg(help="show what would be run and what it costs, and do nothing", help_behavior_hint="")]
_FromResults = Annotated[bool, arg(help="answer from what is there, without training", help_behavior_hint="")]


@dataclass(frozen=True)
class PublishedOptions:
    """Published experiments, their figures beside ours; when interrupted, the same command goes on where it was."""

    names: _Names = ()
    quick: _Quick = False
    list: _List = False
    dry_run: _DryRun = False
    from_results: _FromResults = False
    jobs: option("jobs", int, "so many runs at once, each a process of one thread (default: 1)") = 1
    seeds: option("seeds", tuple[int, ...], "seeds of what is reported, in place of the experiment's own") = None
    output: Output = "runs"
    results: option(
        "results", str, "folder of results, read before and written after (default: docs/results; quick: OUTPUT/quick)"
    ) = None
    device: Device = "cpu"
    data_dir: DataDir = None
    quiet: Quiet = False


@dataclass(frozen=True)
class ElephantsOptions:
    """Ready models that learn something new, with every method; when interrupted, the same command goes on."""

    story: Annotated[
        Positional[Literal["encoder", "gpt"]],
        arg(
            metavar="{encoder,gpt}",
            help="a sentence encoder that learns intents, or a small GPT of English that learns Python",
            help_behavior_hint="",
        ),
    ]
    size: option("size", Literal["full", "quick", "large"], "large: 17 million weights, for a GPU; gpt alone") = "full"
    seeds: option("seeds", tuple[int, ...], "of what is reported (default: 0 1 2)") = (0, 1, 2)
    rival_seeds: option(
        "rival_seeds",
        tuple[int, ...],
        "likewise, of the rivals of plain, replay, dreams and budgets (left out: the same)",
    ) = None
    methods: option("methods", tuple[str, ...], "left out: all") = None
    output: Output = "runs"
    results: option("results", str, "folder of table and pictures (default: OUTPUT/elephants)") = None
    data_dir: option("data_dir", str, "folder with text/ (left out: HOLDFAST_DATA)") = None
    device: Device = "cpu"
    quiet: Quiet = False


@dataclass(frozen=True)
class RosenbrockOptions:
    """Rosenbrock's function: two valleys and three paths, which show the elastic pull."""

    output: Output = "runs"
    quiet: Quiet = False
