"""The options of the language models' commands."""

# The annotations are made when this module is imported:
# pyright: reportInvalidTypeForm=false

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import arg

from holdfast.cli.options import Device, Quiet
from holdfast.cli.values import Positive, option, positional, switch
from holdfast.files.typed import Within
from holdfast.language.finetuning import HoldMethod
from holdfast.language.measuring import Kind
from holdfast.language.models import LanguageTask
from holdfast.language.rows import Columns
from holdfast.memory import AnchorForm, ImportanceForm

Dtype = Literal["float32", "bfloat16"]
Talk = Literal["auto", "yes", "no"]
FinetuneMethod = Literal["auto", HoldMethod]
_Count = Annotated[int, Within(1, math.inf)]
_LanguageModel = positional(
    str, "MODEL", "folder of a transformers model, an installed package that carries one, or its name on the hub"
)
_Data = positional(
    str,
    "DATA",
    "file of text, JSON, CSV or Parquet, a folder of such files, or a data set's name in the datasets library",
)
_DataOrSelf = positional(str | None, "[DATA]", "as of finetune; left out with --self")
_Task = option("task", LanguageTask, "left out: what the model was made for; of an encoder what the data look like")
_Text = option("text", tuple[str, ...], "column of the text, or the two columns of a pair (left out: the usual names)")
_Label = option("label", str, "column of the label (left out: the usual names)")
_Split = option("split", str, "split of a folder or of a named data set; all: every file (default: train)")
_Head = option(
    "head",
    str,
    "name of the classifier's head (left out: the one that learned last; of finetune the one that has the labels, or "
    "a new one)",
)
_Tokens = Annotated[int, Within(2, math.inf)]  # a block of one token has nothing to foresee
_Length = option("length", _Tokens, "tokens of an example at most, and of a block of a causal model (default: 128)")
_Dtype = option("dtype", Dtype, "number format of the weights (default: float32)")


@dataclass(frozen=True)
class _OnData:
    """A model, and data with the columns that are read."""

    model: _LanguageModel
    data: _Data
    task: _Task = None
    text: _Text = ()
    label: _Label = None
    split: _Split = "train"
    head: _Head = None
    length: _Length = 128


@dataclass(frozen=True)
class ImportanceOptions(_OnData):
    """Measure what the skill of a ready language model rests on, as a folder to keep or share; killed, it goes on."""

    data: _DataOrSelf = None  # pyright: ignore[reportIncompatibleVariableOverride]  # it alone may do without
    own: Annotated[
        option("self", int, "number of texts that a causal model writes itself, in place of DATA"), arg(name="self")
    ] = None
    output: Annotated[option("output", str, "folder to write"), arg(aliases=("-o",))] = None
    kind: option("kind", Kind, "sampled, exact and empirical are kinds of Fisher information (default: sampled)") = (
        "sampled"
    )
    examples: option("examples", _Count, "number of examples, drawn at random from all (left out: all)") = None
    tolerance: option("tolerance", Positive, "stop when the relative error is below this, such as 0.1") = None
    calibrate: switch("learn a made-up task, and see how many nats a unit of any kind is worth along such a path") = (
        False
    )
    calibrate_budget: option(
        "calibrate_budget",
        Positive,
        "nats a target, as those of budget; the made-up task is learned under it (default: 0.05)",
    ) = 0.05
    batch_size: option("batch_size", _Count, "examples at once; halved where memory is short (default: 8)") = 8
    shard: switch("spread the model over the processes that torchrun started, by fully_shard; a diagonal alone") = False
    dtype: _Dtype = "float32"
    seed: option("seed", int, "seed of the examples and labels that are drawn (default: 0)") = 0
    device: Device = "cpu"
    quiet: Quiet = False


@dataclass(frozen=True)
class DreamOptions:
    """Let a causal language model write by itself, and keep its answers, in place of old data; killed, it goes on."""

    model: _LanguageModel
    output: Annotated[option("output", str, "folder to write"), arg(aliases=("-o",))] = None
    count: option("count", _Count, "number of dreams (default: 1600)") = 1600
    length: option("length", _Tokens, "tokens of a text, of a conversation at most (default: 128)") = 128
    chat: option("chat", Talk, "conversations, question and answer; auto: of a model with a chat template") = "auto"
    temperatures: option("temperatures", tuple[float, ...], "in turn (default: 1.0, the model's own)") = (1.0,)
    batch_size: option("batch_size", _Count, "dreams of a batch, in which they are rehearsed (default: 8)") = 8
    dtype: _Dtype = "float32"
    seed: option("seed", int, "seed of what is drawn (default: 0)") = 0
    device: Device = "cpu"
    quiet: Quiet = False


@dataclass(frozen=True)
class FinetuneOptions(_OnData):
    """Fine-tune a language model without losing what an importance folder holds, or what is rehearsed."""

    keep: option("keep", str, "folder that holdfast importance wrote") = None
    rehearse: option(
        "rehearse",
        str,
        "what is learned again beside the new data: self, what a causal model dreams first; new, its old answers to "
        "the new data; a folder that holdfast dream wrote; or old data, in any of the forms of DATA",
    ) = None
    share: option("share", Annotated[float, Within(1e-12, 1)], "of the batches that are rehearsed (default: 0.1)") = (
        None
    )
    method: option(
        "method",
        FinetuneMethod,
        "ewc pulls weights back, wva slows them down; auto chooses what is held and rehearsed, and tells why "
        "(default: ewc)",
    ) = "ewc"
    budget: option(
        "budget",
        float,
        "nats a target (a token of a causal model, else an example) by which the old loss may rise; ewc alone",
    ) = None
    strength: option(
        "strength",
        float,
        "strength of the hold, in place of a budget; ewc: 1 is the Laplace value for data of equal size",
    ) = None
    importance_dtype: option("importance_dtype", ImportanceForm, "form in which the importance is held") = None
    anchor_dtype: option("anchor_dtype", AnchorForm, "form in which the anchors are held; ewc alone") = None
    anchors: option(
        "anchors", str, "safetensors of MODEL's own weights, read in place of anchors in memory; ewc alone"
    ) = None
    pull_every: option(
        "pull_every", _Count, "steps from one pull to the next (default: 1); ewc with a strength alone"
    ) = None
    offload: option("offload", Literal["cpu"], "keep importance and anchors in the computer's memory") = None
    output: Annotated[
        option("output", str, "folder of the fine-tuned model (default: runs/finetuned)"), arg(aliases=("-o",))
    ] = "runs/finetuned"
    old_data: option("old_data", str, "data for the old skill, in any of the forms of DATA") = None
    old_text: option(
        "old_text", tuple[str, ...], "column or columns of the text in old data, also in those of --rehearse"
    ) = ()
    old_label: option("old_label", str, "column of the label in old data") = None
    old_split: option("old_split", str, "split of old data (default: train)") = "train"
    test_data: option("test_data", str, "data for the new skill (left out: every tenth example of DATA)") = None
    compare: switch("fine-tune plainly too, show it beside, and keep it in OUTPUT/plain") = False
    epochs: option("epochs", Positive, "passes over the data (default: 1)") = 1.0
    steps: option("steps", _Count, "number of optimizer steps, in place of epochs") = None
    lr: option("lr", float, "learning rate; ten times as much for a new head (default: 5e-5)") = 5e-5
    batch_size: option("batch_size", _Count, "examples a batch (default: 16)") = 16
    accumulate: option("accumulate", _Count, "batches that make one step together (default: 1)") = 1
    save_every: option("save_every", _Count, "steps between checkpoints, from which the same command goes on") = None
    checkpointing: switch("compute activations again in the backward pass, for less memory") = False
    dtype: _Dtype = "float32"
    seed: option("seed", int, "seed of the order of the data, of dropout and of a new head (default: 0)") = 0
    device: Device = "cpu"
    quiet: Quiet = False


@dataclass(frozen=True)
class EvaluateOptions(_OnData):
    """Perplexity, accuracy or rank correlation of similarities of a language model on data."""

    batch_size: option("batch_size", _Count, "examples at once (default: 32)") = 32
    device: Device = "cpu"


def columns_of(options: ImportanceOptions | FinetuneOptions | EvaluateOptions) -> Columns:
    """The columns that were named."""
    return Columns(tuple(options.text), options.label)
