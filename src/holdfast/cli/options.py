"""The options of the experiments' commands; the settings of a run are added to them, see `holdfast.cli.settings`."""

# pyright: reportInvalidTypeForm=false

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Literal

from holdfast.cli.values import option, positional, switch
from holdfast.files.typed import Within
from holdfast.lab.sweep.space import Sampler
from holdfast.lab.training import OptimizerName

Output = option("output", str, "parent of the run folders (default: runs)")
_Seed = option("seed", int, "of everything that is drawn at random (default: 0)")
Device = option("device", str, "as torch names it, such as cpu or cuda (default: cpu)")
Quiet = switch("tell only errors, and where the results are")
_Model = positional(
    str,
    "MODEL",
    "mlp, convolution or attention; module:function that returns (model, batches); or the folder of a transformers "
    "causal language model; with --memory such a folder with config.json alone, a name on the hub, or llama-1b, "
    "llama-8b, llama-70b",
)
Plugin = option("plugin", tuple[str, ...], "modules that register methods, nets, streams of yours; see docs/plugins.md")
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

    stream: positional(str, "STREAM", "its name; `list` shows all streams and methods")
    method: option("method", str, "name of the method") = None
    output: Output = "runs"
    seed: _Seed = 0
    device: Device = "cpu"
    data_dir: DataDir = None
    plugin: Plugin = ()
    tensorboard: switch("write event files for TensorBoard into the run's folder, too") = False
    quiet: Quiet = False


@dataclass(frozen=True)
class SweepOptions:
    """Find each method's best strength (and optimizer, and learning rate) on validation data; killed, it goes on."""

    stream: positional(str, "STREAM", "its name")
    methods: option("methods", tuple[str, ...], "names of methods, each with a best setting of its own") = ()
    strengths: option("strengths", tuple[float, ...], "of methods that hold weights (default: the protocol's)") = ()
    optimizers: option("optimizers", tuple[str, ...], "names (default: the protocol's)") = ()
    lrs: option("lrs", tuple[float, ...], "each with each optimizer (default: the protocol's)") = ()
    seeds: option("seeds", tuple[int, ...], "what each setting is judged over (default: 0 1 2)") = (0, 1, 2)
    sampler: option("sampler", Sampler, "all combinations, or Optuna's TPE between the bounds (default: grid)") = "grid"
    trials: option("trials", int, "how many settings of each method tpe tries") = None
    refine: switch("go on next to the best strength, by half decades") = False
    prune: option("prune", bool, "give up hopeless settings in mid-run (default: yes)") = True
    storage: option("storage", str, "address of a database that machines share (default: sweep.db in output)") = None
    plugin: Plugin = ()
    jobs: option("jobs", int, "local processes of one thread each (default: 1)") = 1
    output: Output = "runs"
    device: Device = "cpu"
    data_dir: DataDir = None
    quiet: Quiet = False


@dataclass(frozen=True)
class ReportOptions:
    """One page, pictures (PNG, SVG) and tables (CSV, Parquet) of all finished runs at or below some folders."""

    folders: positional(tuple[str, ...], "DIR ...", "folders that hold runs, or results by themselves")
    where: option("where", tuple[str, ...], "of the runs those that match, such as method=ewc-* seed=0") = ()
    trials: switch("with the runs of sweeps that were not chosen") = False
    quick: switch("with the runs of recipes' --quick versions") = False
    output: option("output", str, "folder of the report (left out: report in the first DIR)") = None
    plugin: Plugin = ()
    quiet: Quiet = False


@dataclass(frozen=True)
class ReproduceOptions:
    """Tell how a published experiment is done; it takes a clone of the repository."""

    names: positional(tuple[str, ...], "NAME ...", "its name") = ()


@dataclass(frozen=True)
class AdviseOptions:
    """Memory and time that each method would take for a model: measured on a few batches, or foreseen by --memory."""

    model: _Model
    memory: option(
        "memory",
        str,
        "of a device, such as 80GB: foresee from the configuration what a language model takes of it, and the cheapest "
        "commands that fit; no weights are read",
    ) = None
    devices: option("devices", Annotated[int, Within(1, math.inf)], "how many, with --memory (default: 1)") = 1
    dtype: option("dtype", Literal["float32", "bfloat16"], "of the weights, with --memory (default: bfloat16)") = None
    stream: option("stream", str, "of a net by name (default: permuted-mnist)") = "permuted-mnist"
    hidden: option("hidden", tuple[int, ...], "units of each hidden layer of an mlp (default: 300 150)") = None
    optimizer: option("optimizer", OptimizerName, "its state is part of the memory (default: adam)") = "adam"
    methods: option("methods", tuple[str, ...], "their names; left out: all") = None
    batch_size: option("batch_size", int, "examples a batch (default: 128; with --memory 16)") = None
    batches: option("batches", int, "measured on so many of them (default: 4)") = 4
    length: option("length", int, "tokens of an example of a language model (default: 128; with --memory 1024)") = None
    loss: option("loss", str, "of module:function: categorical, gaussian or bernoulli (left out: as it returns)") = None
    examples: option("examples", int, "closing a task is told for so many of them (default: 10000)") = 10_000
    buffer_size: option("buffer_size", int, "how many examples er, der and agem keep (default: 500)") = None
    output: option("output", str, "the figures are written to advice/ in it (default: runs)") = "runs"
    device: Device = "cpu"
    data_dir: DataDir = None
    quiet: Quiet = False


_POSITIONAL = {"stream", "folders", "names", "model", "data", "story"}


def option_names(record: type) -> Sequence[str]:
    """Every option of a command, as it is typed."""
    names: list[str] = []
    for entry in fields(record):
        if is_dataclass(entry.type):
            names += [own.name for own in fields(entry.type)]
        elif entry.name not in _POSITIONAL:
            names.append(entry.name)
    return ["--" + name.replace("_", "-") for name in names]
