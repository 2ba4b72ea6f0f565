"""Which ways to measure and fine-tune a model fit the memory of its devices, and the cheapest of them as a command."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product

from holdfast.errors import OptionError
from holdfast.language.footprint import Descent, Footprint, Hold, ModelPlace, NumberFormat, Spread, measuring, training
from holdfast.language.measuring import Kind
from holdfast.language.sizes import Sizes

A_NODE = 8
"""Devices of one machine, at most."""

MEASURED_AT_ONCE = 8
"""Examples, where a batch is no smaller: what `holdfast importance` takes."""

MEASURED: Mapping[str, Kind] = {
    "Fisher, MAS or Taylor, diagonal": "sampled",
    "signal": "signal",
    "Kronecker factors": "kfac",
}
"""What is measured, by its name for people."""

HELD: tuple[tuple[str, str, Hold], ...] = (
    ("plain", "", Hold()),
    ("EWC, diagonal", "float32", Hold("ewc")),
    ("EWC, diagonal", "bfloat16, anchors bfloat16", Hold("ewc", "bfloat16", "bfloat16")),
    ("EWC, diagonal", "codes: int8, anchors int16", Hold("ewc", "int8", "int16")),
    ("EWC, diagonal", "codes: int8, anchors bfloat16", Hold("ewc", "int8", "bfloat16")),
    ("EWC, diagonal", "codes: int8, anchors on disk", Hold("ewc", "int8", "reference")),
    ("EWC, diagonal", "float32, offload", Hold("ewc", offload=True)),
    ("EWC, Kronecker factors", "float32", Hold("kronecker")),
    ("EWC, Kronecker factors", "bfloat16", Hold("kronecker", "bfloat16")),
    ("EWC, adapters of rank 16", "float32", Hold("lora")),
    ("WVA", "float32", Hold("wva")),
    ("WVA", "bfloat16", Hold("wva", "bfloat16")),
    ("WVA", "codes: int8", Hold("wva", "int8")),
    ("rehearsal of 1600 dreams", "", Hold(dreams=1600)),
)
"""What holds a model that learns: the method, the form, and how it is counted."""

TAKEN: tuple[tuple[str, Hold], ...] = (
    ("", Hold("ewc")),
    ("--importance-dtype int8 --anchor-dtype bfloat16", Hold("ewc", "int8", "bfloat16")),
    ("--importance-dtype int8 --anchors {model}", Hold("ewc", "int8", "reference")),
    ("--importance-dtype int8 --anchor-dtype bfloat16 --offload cpu", Hold("ewc", "int8", "bfloat16", offload=True)),
)
"""What `cheapest_training` tries: the options of a command and how they are counted, those first that add least to a
step ([docs/results/benchmarks/holding.md])."""

_UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


@dataclass(frozen=True)
class Question:
    """What is to be foreseen.

    Attributes:
        sizes: of the model.
        num_devices: each with a process of its own.
        memory: bytes of a device.
        batch_size: examples of all devices together.
        length: tokens of an example.
        dtype: of the weights.
        optimizer: of the training.
        on_cuda: whether the devices are.
    """

    sizes: Sizes
    num_devices: int
    memory: int
    batch_size: int
    length: int
    dtype: NumberFormat = "bfloat16"
    optimizer: Descent = "adamw"
    on_cuda: bool = True

    @property
    def spreads(self) -> tuple[Spread, ...]:
        """How the devices can share the model."""
        return ("alone",) if self.num_devices == 1 else ("replicas", "shards")

    def place(self, spread: Spread) -> ModelPlace:
        """The model spread so."""
        return ModelPlace(self.dtype, spread, self.num_devices, self.on_cuda)

    @property
    def own_examples(self) -> int:
        """Of a batch that is trained on, in one process."""
        return -(-self.batch_size // self.num_devices)

    @property
    def measured_at_once(self) -> int:
        """Examples that a process measures at once."""
        return min(self.batch_size, MEASURED_AT_ONCE)

    def takes(self, found: Footprint) -> int:
        """Bytes of a device; where it is the CPU, of all its memory."""
        return found.on_device if self.on_cuda else found.in_all


@dataclass(frozen=True)
class MemoryRow:
    """What one way takes.

    Attributes:
        phase: "measure" or "train".
        method: for people.
        form: in which what holds is held.
        found: by how the model is spread.
    """

    phase: str
    method: str
    form: str
    found: Mapping[Spread, Footprint]


@dataclass(frozen=True)
class FittingPlan:
    """A way that fits.

    Attributes:
        spread: of the model.
        batch_size: examples of all devices at once; of a measurement those of one.
        accumulate: such batches that make a step.
        checkpointing: whether activations are computed again.
        options: of the command beside these.
        footprint: of a device.
    """

    spread: Spread
    batch_size: int
    accumulate: int
    checkpointing: bool
    options: str
    footprint: Footprint


def as_bytes(text: str) -> int:
    """Bytes that a text such as "80GB", "24 GiB" or "512MB" says.

    Raises:
        OptionError: it says none.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]i?B)\s*", text)
    if found is None or found[2] not in _UNITS or not float(found[1]):
        raise OptionError(f"advise: --memory is {text!r}; expected a size such as 80GB or 24GiB.")
    return int(float(found[1]) * _UNITS[found[2]])


def memory_rows(asked: Question) -> list[MemoryRow]:
    """What every method takes in every form and phase, as the model can be spread."""
    places: dict[Spread, ModelPlace] = {spread: asked.place(spread) for spread in asked.spreads}
    at_once, size = asked.measured_at_once, asked.own_examples

    def measured(kind: Kind) -> dict[Spread, Footprint]:
        return {spread: _measured(asked, kind, place, at_once) for spread, place in places.items()}

    def trained(hold: Hold) -> dict[Spread, Footprint]:
        return {spread: _trained(asked, hold, place, size) for spread, place in places.items()}

    return [
        *(MemoryRow("measure", name, "float32", measured(kind)) for name, kind in MEASURED.items()),
        *(MemoryRow("train", name, form, trained(hold)) for name, form, hold in HELD),
    ]


def cheapest_measuring(asked: Question) -> FittingPlan | None:
    """The way to measure a diagonal that fits with the fewest changes; None where none does."""
    for spread, count in product(asked.spreads, _halved(asked.measured_at_once)):
        found = _measured(asked, "sampled", asked.place(spread), count)
        if asked.takes(found) <= asked.memory:
            return FittingPlan(spread, count, 1, False, "", found)
    return None


def cheapest_training(asked: Question) -> FittingPlan | None:
    """The way to fine-tune under EWC that fits and costs the least time; None where none does.

    Tried are, the last fastest: replicas, then shards, which gather weights twice a step; activations kept, then
    computed again, a third more time; the forms of `TAKEN`; and the batch in parts, which costs nothing but their
    number.
    """
    for spread, checkpointing, (options, hold) in product(asked.spreads, (False, True), TAKEN):
        if spread == "shards" and hold.anchors == "reference":
            continue  # they are whole on disk
        for count in _halved(asked.own_examples):
            parts = -(-asked.own_examples // count)
            given = {"checkpointing": checkpointing, "accumulates": parts > 1}
            found = _trained(asked, hold, asked.place(spread), count, **given)
            if asked.takes(found) <= asked.memory:
                return FittingPlan(spread, -(-asked.batch_size // parts), parts, checkpointing, options, found)
    return None


def enough_devices(asked: Question, *, most: int = 4096) -> int | None:
    """The least power of two of devices among which training fits; None where not even so many do."""
    count = 1
    while count <= most:
        if cheapest_training(replace(asked, num_devices=count)) is not None:
            return count
        count *= 2
    return None


def measuring_command(plan: FittingPlan, asked: Question, model: str) -> str:
    """The line that measures so; a calibration, which trains, needs whole weights."""
    extra = "--shard" if plan.spread == "shards" else "--calibrate"
    given = f"{extra} --dtype {asked.dtype} --length {asked.length} --batch-size {plan.batch_size}"
    return f"{_launched(asked)} importance {model} DATA -o KEEP {given}{_device(asked)}"


def training_command(plan: FittingPlan, asked: Question, model: str) -> str:
    """The line that fine-tunes so; empty for shards, which no command trains in."""
    if plan.spread == "shards":
        return ""
    options = [
        "--keep KEEP --method ewc --budget 0.05",
        plan.options.format(model=model),
        f"--dtype {asked.dtype} --length {asked.length} --batch-size {plan.batch_size}",
        f"--accumulate {plan.accumulate}" if plan.accumulate > 1 else "",
        "--checkpointing" if plan.checkpointing else "",
    ]
    given = " ".join(option for option in options if option)
    return f"{_launched(asked)} finetune {model} NEW {given}{_device(asked)}"


def _measured(asked: Question, kind: Kind, place: ModelPlace, size: int) -> Footprint:
    return measuring(asked.sizes, place, kind=kind, num_examples=size, in_parts=True)


def _trained(
    asked: Question, hold: Hold, place: ModelPlace, size: int, *, checkpointing: bool = False, accumulates: bool = False
) -> Footprint:
    return training(
        asked.sizes,
        place,
        hold,
        optimizer=asked.optimizer,
        num_examples=size,
        length=asked.length,
        checkpointing=checkpointing,
        accumulates=accumulates,
    )


def _halved(count: int) -> Iterator[int]:
    """The number, half of it, and so on down to one."""
    while count > 1:
        yield count
        count = -(-count // 2)
    yield 1


def _launched(asked: Question) -> str:
    count = asked.num_devices
    if count == 1:
        return "holdfast"
    nodes = f"--nnodes {-(-count // A_NODE)} " if count > A_NODE else ""
    return f"torchrun {nodes}--nproc-per-node {min(count, A_NODE)} -m holdfast"


def _device(asked: Question) -> str:
    return " --device cuda" if asked.on_cuda else ""
