"""Measuring at scale: peak memory and time of a process as model and data grow, beside the arithmetic.

Llamas of random weights and three sizes are measured on two amounts of random tokens by `hf.fisher(kind="sampled")`,
each in a process of its own. *Foreseen* is `holdfast.language.footprint`. *Operations* are 6 for each weight and token:
2 forward, 4 backward. Time is the processor's, the proof on the first batch included.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import holdfast as hf
from benchmarks import memory
from benchmarks.footprint import read_configuration
from benchmarks.tables import Part
from holdfast.language.footprint import ModelPlace, measuring
from holdfast.language.models import transformers_library
from holdfast.language.planning import Question, cheapest_measuring, cheapest_training
from holdfast.language.sizes import Activations, Sizes, sizes_of

RESULTS = Path(__file__).parents[1] / "docs" / "results"
SIZES = RESULTS / "scale" / "sizes.json"
"""The sizes of three models, from which the table of docs/scale.md is computed."""

DEVICES = (1, 4, 8, 64)
DEVICE = 80 * 10**9
LENGTH, BATCH = 1024, 16
_MEASURED_ON = 10**6
_SPEED = 1.5e14
"""Operations a second: half of what a card does in bfloat16."""

_EWC, _CODES = 20, 15
"""Bytes a weight, everything in bfloat16 but the importance, at the largest moment of a step on CUDA."""

WIDTHS = (128, 256, 512)
EXAMPLES = (8, 32)
TOKENS = 64
_PLACE = ModelPlace("float32", on_cuda=False)


def measure(*, quick: bool = False, workloads: Sequence[str] | None = None) -> Iterator[Part]:
    """One part; nothing where certain workloads are asked for, or where memory cannot be told."""
    if workloads is None and memory.measurable():
        yield measured(WIDTHS[:1] if quick else WIDTHS, EXAMPLES[:1] if quick else EXAMPLES)


def measured(widths: Sequence[int], examples: Sequence[int]) -> Part:
    """A line for each model and amount of data."""
    rows = []
    for width in widths:
        given = _given(width)
        config = read_configuration(given)
        sizes = sizes_of(config, dtypes=("float32",), length=TOKENS, num_examples=2)
        foreseen = measuring(sizes, _PLACE, num_examples=2, in_parts=False).in_all / memory.MB
        for count in examples:
            peak, seconds = memory.in_fresh_process(_one, given, count, preload=["benchmarks.scale"])
            operations = 6 * sizes.num_weights * count * TOKENS
            rows.append(
                {
                    "weights, millions": sizes.num_weights / 1e6,
                    "tokens": count * TOKENS,
                    "foreseen, MB": foreseen,
                    "measured, MB": peak,
                    "seconds": seconds,
                    "operations a second, billions": operations / seconds / 1e9,
                }
            )
    note = f"Llamas of 4 layers and a vocabulary of 1,024, float32; examples of {TOKENS} tokens, two at a time."
    return Part("fisher", "Measuring at three sizes", [note], rows)


def _given(width: int) -> dict[str, Any]:
    return {
        "vocab_size": 1024,
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "tie_word_embeddings": False,
    }


def _one(given: Mapping[str, Any], count: int) -> tuple[float, float]:
    torch.set_num_threads(1)
    seconds = 0.0

    def call(given: Mapping[str, Any], count: int) -> None:
        nonlocal seconds
        torch.manual_seed(0)
        model = transformers_library().AutoModelForCausalLM.from_config(read_configuration(given))
        tokens = torch.randint(given["vocab_size"], (count, TOKENS))
        data = [{"input_ids": some, "labels": some} for some in tokens.split(2)]
        began = time.process_time()
        hf.fisher(model, data, kind="sampled")
        seconds = time.process_time() - began

    peak = memory.peak(lambda: call(given, count), warmup=lambda: call(_given(64), 2))
    return peak, seconds


def planned_table() -> str:
    """What one of 1, 4, 8 and 64 devices of 80 GB holds of three models: measuring, and training under EWC."""
    lines = [
        "| model | devices | measuring, GB | how | fine-tuning under EWC, GB | how |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, sizes in read_sizes().items():
        for count in DEVICES:
            asked = Question(sizes, count, DEVICE, BATCH, LENGTH)
            cells = []
            for plan in (cheapest_measuring(asked), cheapest_training(asked)):
                if plan is None:
                    cells += ["does not fit", ""]
                    continue
                how = [
                    {"alone": "alone", "replicas": "each has all", "shards": "in shards"}[plan.spread],
                    plan.options.replace("{model}", "MODEL") and f"`{plan.options.replace('{model}', 'MODEL')}`",
                    f"{plan.batch_size} at once" + (f", {plan.accumulate} times" if plan.accumulate > 1 else ""),
                    "`--checkpointing`" if plan.checkpointing else "",
                ]
                cells += [f"{plan.footprint.on_device / 1e9:.1f}", ", ".join(part for part in how if part)]
            lines.append(f"| {name} | {count} | {' | '.join(cells)} |")
    return "\n".join(lines)


def arithmetic_table() -> str:
    """Operations, time and memory that grow with the weights alone."""
    lines = [
        "| weights | measuring on 10⁶ tokens, operations | on one device, hours | learning 10¹² tokens, operations "
        "| importance on disk, GB | EWC, GB | devices of 80 GB, at least | int8, anchors on disk, GB | devices |",
        "|" + " --- |" * 9,
    ]
    for power in range(9, 13):
        weights = 10**power
        measuring_, learning = 6 * weights * _MEASURED_ON, 6 * weights * 10**12
        cells = [f"10{_raised(power)}", f"{measuring_:.0e}", f"{measuring_ / _SPEED / 3600:.2g}", f"{learning:.0e}"]
        cells.append(f"{4 * weights / 1e9:,.0f}")
        for each in (_EWC, _CODES):
            cells += [f"{each * weights / 1e9:,.0f}", f"{-(-each * weights // DEVICE):,}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines).replace("e+", "e")


def _raised(power: int) -> str:
    return str(power).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))


def read_sizes() -> dict[str, Sizes]:
    """The committed sizes by the model's name."""
    found = {}
    for name, given in json.loads(SIZES.read_text(encoding="utf-8")).items():
        kept = {
            kind: {dtype: Activations(**value) for dtype, value in given[kind].items()}
            for kind in ("activations", "checkpointed")
        }
        sides = tuple((out, width) for out, width in given["sides"])
        found[name] = Sizes(**{**given, **kept, "sides": sides})
    return found
