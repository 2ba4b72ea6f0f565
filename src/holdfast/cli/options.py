"""The options of the experiments' commands. Those of `run` are the fields of `RunConfig`, in its docstring's words."""

# The annotations of the settings are made from RunConfig's, when this module is imported:
# pyright: reportInvalidTypeForm=false

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, make_dataclass
from typing import Annotated, Any, get_type_hints

from tyro.conf import Positional, arg

from holdfast.cli.values import option
from holdfast.lab.config import RunConfig
from holdfast.lab.generation.config import GenerationConfig
from holdfast.lab.sweep.space import Sampler
from holdfast.lab.training import OptimizerName

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
        "si_variant",
        "si_gradient",
        "importance_data",
        "importance_examples",
    ),
    "comparison": (
        "buffer",
        "buffer_size",
        "der_alpha",
        "der_beta",
        "imm",
        "l2_transfer",
        "hat_scale",
        "hat_sparsity",
        "sfa_share",
        "sfa_period",
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


SWEPT = ("strength", "budget", "optimizer", "lr")
"""The settings that `holdfast sweep` chooses itself."""


def _group(title: str, *, without: Sequence[str] = ()) -> Any:
    """A dataclass of the settings under one heading; None is what was not typed."""
    record = GenerationConfig if title == "generation" else RunConfig
    hints, told = get_type_hints(record), explained(record)
    names = [name for name in GROUPS[title] if name not in without]
    return make_dataclass(
        title.capitalize(),
        [(name, option(name, hints[name], told.get(name, "")), field(default=None)) for name in names],
        frozen=True,
        namespace={"__doc__": "Left out: as the stream's protocol has it."},
    )


_Tasks, _Training, _Mechanism, _Importance, _Comparison, _Replay, _Generation = map(_group, GROUPS)
_SameTraining, _SameMechanism = (_group(title, without=SWEPT) for title in ("training", "mechanism"))
Output = option("output", str, "parent of the run folders (default: runs)")
_Seed = option("seed", int, f"{explained(RunConfig).get('seed', '')} (default: 0)")
Device = option("device", str, "as torch names it, such as cpu or cuda (default: cpu)")
Quiet = Annotated[bool, arg(help="tell only errors, and where the results are", help_behavior_hint="")]
_Stream = Annotated[
    Positional[str],
    arg(
        metavar="STREAM",
        help="its name; `list` shows all streams and methods",
        help_behavior_hint="",
    ),
]
_Model = Annotated[
    Positional[str],
    arg(
        metavar="MODEL",
        help="mlp, convolution or attention; module:function that returns (model, batches); or the folder of a "
        "transformers causal language model",
        help_behavior_hint="",
    ),
]
DataDir = option(
    "data_dir", str, "folder with mnist/*.gz; left out: HOLDFAST_DATA, then the cache, downloaded into once"
)


@dataclass(frozen=True)
class DemoOptions:
    """A minute on embedded digits: a network forgets when trained plainly, and remembers with holdfast."""

    output: Output = "runs"
    seed: _Seed = 0
    device: Device = "cpu"
    quiet: Quiet = False


@dataclass(frozen=True)
class RunOptions:
    """Learn a stream of tasks with one method; when interrupted, the same command goes on where it was."""

    stream: _Stream
    method: option("method", str, "name of the method") = None
    output: Output = "runs"
    seed: _Seed = 0
    device: Device = "cpu"
    data_dir: DataDir = None
    tensorboard: Annotated[
        bool, arg(help="write event files for TensorBoard into the run's folder, too", help_behavior_hint="")
    ] = False
    quiet: Quiet = False
    tasks: _Tasks = field(default_factory=_Tasks)
    training: _Training = field(default_factory=_Training)
    mechanism: _Mechanism = field(default_factory=_Mechanism)
    importance: _Importance = field(default_factory=_Importance)
    comparison: _Comparison = field(default_factory=_Comparison)
    replay: _Replay = field(default_factory=_Replay)
    generation: _Generation = field(default_factory=_Generation)


@dataclass(frozen=True)
class SweepOptions:
    """Find each method's best strength (and optimizer, and learning rate) on validation data; killed, it goes on."""

    stream: Annotated[Positional[str], arg(metavar="STREAM", help="its name", help_behavior_hint="")]
    methods: option("methods", tuple[str, ...], "names of methods, each with a best setting of its own") = ()
    strengths: option("strengths", tuple[float, ...], "of methods that hold weights (default: the protocol's)") = ()
    optimizers: option("optimizers", tuple[str, ...], "names (default: the protocol's)") = ()
    lrs: option("lrs", tuple[float, ...], "each with each optimizer (default: the protocol's)") = ()
    seeds: option("seeds", tuple[int, ...], "what each setting is judged over (default: 0 1 2)") = (0, 1, 2)
    sampler: option("sampler", Sampler, "all combinations, or Optuna's TPE between the bounds (default: grid)") = "grid"
    trials: option("trials", int, "how many settings of each method tpe tries") = None
    refine: Annotated[bool, arg(help="go on next to the best strength, by half decades", help_behavior_hint="")] = False
    prune: option("prune", bool, "give up hopeless settings in mid-run (default: yes)") = True
    storage: option("storage", str, "address of a database that machines share (default: sweep.db in output)") = None
    jobs: option("jobs", int, "local processes of one thread each (default: 1)") = 1
    output: Output = "runs"
    device: Device = "cpu"
    data_dir: DataDir = None
    quiet: Quiet = False
    tasks: _Tasks = field(default_factory=_Tasks)
    training: _SameTraining = field(default_factory=_SameTraining)
    mechanism: _SameMechanism = field(default_factory=_SameMechanism)
    importance: _Importance = field(default_factory=_Importance)
    comparison: _Comparison = field(default_factory=_Comparison)
    replay: _Replay = field(default_factory=_Replay)


@dataclass(frozen=True)
class ReproduceOptions:
    """Tell how a published experiment is done; it takes a clone of the repository."""

    names: Annotated[Positional[tuple[str, ...]], arg(metavar="NAME ...", help="its name", help_behavior_hint="")] = ()


@dataclass(frozen=True)
class AdviseOptions:
    """Memory and time that each method would take for a model, measured on a few batches of it."""

    model: _Model
    stream: option("stream", str, "of a net by name (default: permuted-mnist)") = "permuted-mnist"
    hidden: option("hidden", tuple[int, ...], "units of each hidden layer of an mlp (default: 300 150)") = None
    optimizer: option("optimizer", OptimizerName, "its state is part of the memory (default: adam)") = "adam"
    methods: option("methods", tuple[str, ...], "their names; left out: all") = None
    batch_size: option("batch_size", int, "examples a batch (default: 128)") = 128
    batches: option("batches", int, "measured on so many of them (default: 4)") = 4
    length: option("length", int, "tokens of an example of a language model (default: 128)") = 128
    loss: option("loss", str, "of module:function: categorical, gaussian or bernoulli (left out: as it returns)") = None
    examples: option("examples", int, "closing a task is told for so many of them (default: 10000)") = 10_000
    buffer_size: option("buffer_size", int, explained(RunConfig)["buffer_size"] + " (default: 500)") = None
    output: option("output", str, "the figures are written to advice/ in it (default: runs)") = "runs"
    device: Device = "cpu"
    data_dir: DataDir = None
    quiet: Quiet = False


_POSITIONAL = {"stream", "folders", "names", "model", "data", "story"}


def settings(options: RunOptions | SweepOptions) -> dict[str, Any]:
    """Setting -> value, of those that were typed."""
    groups = [asdict(getattr(options, title)) for title in GROUPS if hasattr(options, title)]
    return {name: value for group in groups for name, value in group.items() if value is not None}


def option_names(record: type) -> Sequence[str]:
    """Every option of a command, as it is typed."""
    names: list[str] = []
    for entry in fields(record):
        if entry.name in GROUPS:
            names += [own.name for own in fields(entry.default_factory())]  # type: ignore[misc]
        elif entry.name not in _POSITIONAL:
            names.append(entry.name)
    return ["--" + name.replace("_", "-") for name in names]
