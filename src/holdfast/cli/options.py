"""The options of every command. Those of `run` are the fields of `RunConfig`, explained by its own docstring."""

# The annotations of the settings are made from RunConfig's, when this module is imported:
# pyright: reportInvalidTypeForm=false

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from typing import Annotated, Any, get_type_hints

from tyro.conf import Positional, arg

from holdfast.cli.values import option
from holdfast.experiments.config import RunConfig
from holdfast.experiments.generation.config import GenerationConfig

GROUPS: dict[str, tuple[str, ...]] = {
    "tasks": ("scenario", "num_tasks", "fraction", "mask"),
    "training": (
        "net",
        "hidden",
        "slope",
        "optimizer",
        "lr",
        "weight_decay",
        "schedule",
        "fresh_optimizer",
        "epochs",
        "iterations",
        "batch_size",
        "clip",
    ),
    "mechanism": ("strength", "budget", "pull", "pull_every", "attenuation", "attenuate", "accumulate", "weighting"),
    "importance": (
        "fisher",
        "mas_output",
        "mas_batched",
        "signal_bias",
        "damping",
        "si_gradient",
        "importance_data",
        "importance_examples",
    ),
    "replay": (
        "replay",
        "generator",
        "generator_units",
        "generator_latent",
        "generator_lr",
        "new_share",
        "temperature",
        "hold",
        "hold_generator",
        "generator_strength",
    ),
    "generation": ("latent", "width", "critic_steps", "penalty", "alignment", "images", "precision", "compile"),
}
"""The settings that `holdfast run` takes, under the headings of its help."""


def explained(record: type) -> dict[str, str]:
    """Field -> the line that explains it, from the section Attributes of the Google docstrings of record and bases."""
    sections = [re.split(r"Attributes.*:\n", inspect.getdoc(kind) or "")[-1] for kind in record.__mro__]
    entries = re.findall(r"^    (\w+): (.*(?:\n      +.*)*)", "\n".join(sections), flags=re.MULTILINE)
    return {name: " ".join(text.split()).rstrip(".").replace("None", "left out") for name, text in entries}


def _group(title: str) -> Any:
    """A dataclass of the settings under one heading; None is what was not typed."""
    record = GenerationConfig if title == "generation" else RunConfig
    hints, told = get_type_hints(record), explained(record)
    return make_dataclass(
        title.capitalize(),
        [(name, option(name, hints[name], told.get(name, "")), field(default=None)) for name in GROUPS[title]],
        frozen=True,
        namespace={"__doc__": "Left out: as the stream's protocol has it."},
    )


_Tasks, _Training, _Mechanism, _Importance, _Replay, _Generation = map(_group, GROUPS)
_Output = option("output", str, "parent of the run folders (default: runs)")
_Seed = option("seed", int, f"{explained(RunConfig).get('seed', '')} (default: 0)")
_Device = option("device", str, "as torch names it, such as cpu or cuda (default: cpu)")
_Quiet = Annotated[bool, arg(help="tell only errors, and where the results are", help_behavior_hint="")]
_Stream = Annotated[
    Positional[str],
    arg(
        metavar="STREAM",
        help="its name; `list` shows all streams and methods; `rosenbrock` draws the elastic pull, without a method",
        help_behavior_hint="",
    ),
]
_Folders = Annotated[
    Positional[tuple[str, ...]], arg(metavar="DIR ...", help="folders that hold runs", help_behavior_hint="")
]
_DataDir = option(
    "data_dir", str, "folder with mnist/*.gz; left out: HOLDFAST_DATA, then the cache, downloaded into once"
)


@dataclass(frozen=True)
class DemoOptions:
    """A minute on embedded digits: a network forgets when trained plainly, and remembers with holdfast."""

    output: _Output = "runs"
    seed: _Seed = 0
    device: _Device = "cpu"
    quiet: _Quiet = False


@dataclass(frozen=True)
class RunOptions:
    """Learn a stream of tasks with one method; when interrupted, the same command goes on where it was."""

    stream: _Stream
    method: option("method", str, "name of the method") = None
    output: _Output = "runs"
    seed: _Seed = 0
    device: _Device = "cpu"
    data_dir: _DataDir = None
    quiet: _Quiet = False
    tasks: _Tasks = field(default_factory=_Tasks)
    training: _Training = field(default_factory=_Training)
    mechanism: _Mechanism = field(default_factory=_Mechanism)
    importance: _Importance = field(default_factory=_Importance)
    replay: _Replay = field(default_factory=_Replay)
    generation: _Generation = field(default_factory=_Generation)

    def settings(self) -> dict[str, Any]:
        """Setting -> value, of those that were typed."""
        groups = ((getattr(self, title), names) for title, names in GROUPS.items())
        pairs = {name: getattr(group, name) for group, names in groups for name in names}
        return {name: value for name, value in pairs.items() if value is not None}


@dataclass(frozen=True)
class ReportOptions:
    """Tables and pictures of all finished runs at or below some folders, on one Markdown page."""

    folders: _Folders
    output: option("output", str, "folder of the report (default: runs/report)") = "runs/report"
    quiet: _Quiet = False


COMMANDS: dict[str, type] = {"demo": DemoOptions, "run": RunOptions, "report": ReportOptions}
"""Every command, and the record of its options."""


def option_names(record: type) -> Sequence[str]:
    """Every option of a command, as it is typed."""
    named = (entry.name for entry in fields(record) if entry.name not in ("stream", "folders"))
    flat = (name for title in named for name in GROUPS.get(title, (title,)))
    return ["--" + name.replace("_", "-") for name in flat]
