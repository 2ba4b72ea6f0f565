"""Foreseen memory: what `holdfast advise` says of a configuration, held against what a process takes.

A causal model of random weights is measured or fine-tuned for a few steps on the CPU, by the functions that `holdfast
importance` and `holdfast finetune` call, in a process of its own. Peak memory is what is in use at most, weights
included, over what the libraries take; blocks that are free are given back at once (`benchmarks.memory`). *Foreseen* is
`holdfast.language.footprint` from the configuration alone; the moment is the one at which it foresees the most.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file

import holdfast as hf
from benchmarks import memory
from benchmarks.holds import drawn
from benchmarks.tables import Part
from holdfast.language.batches import Example
from holdfast.language.finetuning import FineTuneSettings, HoldOptions, fine_tune, held_by
from holdfast.language.footprint import Footprint, Hold, ModelPlace, measuring, training
from holdfast.language.measuring import Kind, measure_importance
from holdfast.language.models import LanguageModel, transformers_library
from holdfast.language.sizes import configuration, sizes_of

WEIGHTS: dict[str, Any] = {
    "vocab_size": 32_000,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 15,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "tie_word_embeddings": True,
}
"""Of a Llama of 202 million weights."""

SMALL: dict[str, Any] = {**WEIGHTS, "vocab_size": 2000, "hidden_size": 128, "intermediate_size": 352}
LENGTH = 32
BATCH = 2


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        place: number format.
        kind: of the importance that is measured; None for training.
        hold: what holds it meanwhile.
    """

    place: ModelPlace
    kind: Kind | None = None
    hold: Hold = field(default_factory=Hold)

    def foreseen(self, config: Any) -> Footprint:
        """By the configuration."""
        sizes = sizes_of(config, dtypes=(self.place.dtype,), length=LENGTH, num_examples=BATCH)
        if self.kind is not None:
            return measuring(sizes, self.place, kind=self.kind, num_examples=BATCH, in_parts=True)
        return training(sizes, self.place, self.hold, num_examples=BATCH, length=LENGTH)


_FLOAT32 = ModelPlace(dtype="float32", on_cuda=False)
_BFLOAT16 = ModelPlace(dtype="bfloat16", on_cuda=False)
CASES: Mapping[str, Case] = {
    "measuring, Fisher, bfloat16": Case(_BFLOAT16, kind="sampled"),
    "training, plain, float32": Case(_FLOAT32),
    "training, EWC, float32": Case(_FLOAT32, hold=Hold("ewc")),
    "training, EWC, bfloat16": Case(_BFLOAT16, hold=Hold("ewc")),
    "training, EWC, int8 and anchors on disk, bfloat16": Case(_BFLOAT16, hold=Hold("ewc", "int8", "reference")),
    "training, WVA, int8, float32": Case(_FLOAT32, hold=Hold("wva", "int8")),
}


def measure(*, quick: bool = False, workloads: Sequence[str] | None = None) -> Iterator[Part]:
    """One part; nothing where certain workloads are asked for, or where memory cannot be told."""
    if workloads is None and memory.measurable():
        yield measured(SMALL if quick else WEIGHTS, dict(list(CASES.items())[:1]) if quick else CASES)


def measured(given: Mapping[str, Any], cases: Mapping[str, Case]) -> Part:
    """A line a case."""
    config = read_configuration(given)
    rows = []
    for name, case in cases.items():
        foreseen = case.foreseen(config)
        found = memory.in_fresh_process(_peak, name, dict(given), preload=["benchmarks.footprint"])
        rows.append(
            {
                "what": name,
                "foreseen, MB": foreseen.in_all / memory.MB,
                "measured, MB": found,
                "foreseen over measured": foreseen.in_all / memory.MB / found,
                "bytes a weight": found * memory.MB / _weights(config),
                "moment": foreseen.moment,
            }
        )
    note = (
        f"A Llama of {_weights(config) / 1e6:.0f} million random weights, {given['num_hidden_layers']} layers of width "
        f"{given['hidden_size']}; {BATCH} examples of {LENGTH} tokens at once. Training is by AdamW, its first step "
        "one that is measured for the report."
    )
    return Part("llama", f"A Llama of {_weights(config) / 1e6:.0f} million weights", [note], rows)


def read_configuration(given: Mapping[str, Any]) -> Any:
    """A Llama's, through a folder as `holdfast advise` reads one."""
    with tempfile.TemporaryDirectory() as folder:
        transformers_library().LlamaConfig(**given).save_pretrained(folder)
        return configuration(folder)


def _weights(config: Any) -> int:
    with torch.device("meta"):
        module = transformers_library().AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in module.parameters())


def _peak(name: str, given: Mapping[str, Any]) -> float:
    torch.set_num_threads(1)
    case = CASES[name]
    small = {**SMALL, "num_hidden_layers": 1}
    with tempfile.TemporaryDirectory() as folder:

        def call(config: Mapping[str, Any], place: str) -> None:
            (Path(folder) / place).mkdir()
            perform(case, config, Path(folder) / place)

        return memory.peak(lambda: call(given, "large"), warmup=lambda: call(small, "small"))


def perform(case: Case, given: Mapping[str, Any], folder: Path, *, device: str | torch.device = "cpu") -> None:
    """Measure, or train for two steps; checkpoints and files go to the folder."""
    torch.manual_seed(0)
    dtype = getattr(torch, case.place.dtype)
    with torch.device(device):
        module = transformers_library().AutoModelForCausalLM.from_config(read_configuration(given), dtype=dtype)
    tokenizer = SimpleNamespace(pad_token_id=0)
    model = LanguageModel("random", folder, "causal-lm", module.eval(), module, tokenizer, "none")
    drawing = torch.Generator().manual_seed(0)
    tokens = torch.randint(given["vocab_size"], (130, LENGTH), generator=drawing).tolist()
    data = [Example((text,)) for text in tokens]
    if case.kind is not None:
        few: Callable[[], Sequence[Example]] = lambda: data[: 64 + BATCH]  # noqa: E731  # two parts
        measure_importance(model, few, kind=case.kind, batch_size=BATCH)
        return
    keeper = None
    if case.hold.by != "plain":
        importance = hf.Importance(drawn(module, 0), hf.ImportanceInfo("drawn", num_examples=1, nats_per_unit=1.0))
        holding = _options(case.hold)
        if case.hold.anchors == "reference":
            weights = {name: value.detach() for name, value in module.named_parameters()}
            save_file(weights, folder / "anchors.safetensors")
            holding = replace(holding, anchors=str(folder / "anchors.safetensors"))
        keeper = held_by(module, importance, holding, free=False)
        del importance
    fine_tune(model, data, FineTuneSettings(steps=2, batch_size=BATCH), folder=folder, keeper=keeper)


def _options(hold: Hold) -> HoldOptions:
    if hold.by == "wva":
        return HoldOptions("wva", strength=1.0, importance_dtype=hold.importance)
    return HoldOptions("ewc", strength=1.0, importance_dtype=hold.importance)
