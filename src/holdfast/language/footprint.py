"""What one device holds of a language model while it is measured or trained: sums of named items.

Each item says where in the code the memory is taken. What a phase takes is its largest moment: what stays all the time,
and what comes on top at one moment or another. With w the bytes of a weight (4 in float32, 2 in bfloat16), P the
weights, F the numbers in all Kronecker factors:

    measuring a diagonal    w P + 4 P                        the proof of the first batch takes no more
    measuring factors       w P + max(8 P, 4 F)
    training, AdamW         4 w P                            SGD without momentum: 2 w P
    holding, EWC            importance (4, 2, 1) P + anchors (w, 2, 0) P; of bfloat16 weights 4 P more
    holding, WVA            importance P; of bfloat16 weights 4 P more

and activations. In shards what is of P is over the number of processes, and groups of layers come and go whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from holdfast.choices import check_choices
from holdfast.language.measuring import Kind
from holdfast.language.sizes import Sizes
from holdfast.likelihoods.many import kept_answers
from holdfast.memory import AnchorForm, ImportanceForm
from holdfast.memory.codes import BLOCK as CODED_TOGETHER
from holdfast.retention.parts import BLOCK, READ_BLOCK_CUDA, WIDE_BLOCK_CUDA

NumberFormat = Literal["float32", "bfloat16"]
Descent = Literal["adamw", "sgd"]
Spread = Literal["alone", "replicas", "shards"]
HeldBy = Literal["plain", "ewc", "kronecker", "lora", "wva"]

WIDTH: Mapping[NumberFormat, int] = {"float32": 4, "bfloat16": 2}
"""Bytes of a number."""

_SUM = 4
"""Bytes of a sum over examples, always float32."""

_IMPORTANCE: Mapping[ImportanceForm, float] = {"float32": 4, "bfloat16": 2, "int8": 1 + 1 / CODED_TOGETHER}
_RESIDUAL = 2
_ROWS = 8
"""Rows of a block that a step works in, or fewer."""

_CONTEXT = 2**30
"""What CUDA, its libraries and the gaps between blocks take, as a round figure: nothing in this code."""


@dataclass(frozen=True)
class MemoryItem:
    """Memory with a name.

    Attributes:
        name: what it is.
        num_bytes: how much.
        source: the function, class or module that takes it, as it is imported.
        on: where it is; beside a model on the CPU all is in one memory.
    """

    name: str
    num_bytes: int
    source: str
    on: Literal["device", "host"] = "device"


@dataclass(frozen=True)
class Footprint:
    """What a phase takes at its largest moment, in one process.

    Attributes:
        moment: which one it is.
        items: whose sum it is.
    """

    moment: str
    items: tuple[MemoryItem, ...]

    @property
    def on_device(self) -> int:
        """Bytes of the device's memory."""
        return sum(item.num_bytes for item in self.items if item.on == "device")

    @property
    def on_host(self) -> int:
        """Bytes of the host's."""
        return sum(item.num_bytes for item in self.items if item.on == "host")

    @property
    def in_all(self) -> int:
        """Both, as one memory has them where the model is on the CPU."""
        return self.on_device + self.on_host


@dataclass(frozen=True)
class ModelPlace:
    """Where a model is.

    Attributes:
        dtype: of its weights.
        spread: one process; replicas under `DistributedDataParallel`; or shards under `fully_shard`.
        num_processes: over which it is spread.
        on_cuda: whether the device is one.
    """

    dtype: NumberFormat = "bfloat16"
    spread: Spread = "alone"
    num_processes: int = 1
    on_cuda: bool = True

    def __post_init__(self) -> None:
        check_choices(self)

    @property
    def width(self) -> int:
        """Bytes of a weight."""
        return WIDTH[self.dtype]

    @property
    def share(self) -> float:
        """Of what belongs to weights, in one process."""
        return 1 / self.num_processes if self.spread == "shards" else 1.0


@dataclass(frozen=True)
class Hold:
    """What holds a model that learns.

    Attributes:
        by: nothing; EWC on single weights, on Kronecker factors, or on low-rank adapters; or WVA.
        importance: form of the importance.
        anchors: form of the anchors, or "reference" for the checkpoint on disk; of EWC on single weights.
        offload: whether both stay in the host's memory.
        rank: of the adapters.
        dreams: examples of the past that are rehearsed; kept in the host's memory.
    """

    by: HeldBy = "plain"
    importance: ImportanceForm = "float32"
    anchors: AnchorForm | Literal["reference"] = "float32"
    offload: bool = False
    rank: int = 16
    dreams: int = 0

    def __post_init__(self) -> None:
        check_choices(self)


def measuring(
    sizes: Sizes, place: ModelPlace, *, kind: Kind = "sampled", num_examples: int, in_parts: bool
) -> Footprint:
    """What a process holds while an importance is measured.

    Args:
        sizes: of the model.
        place: where it is.
        kind: of importance.
        num_examples: that go through the model at once, in this process.
        in_parts: whether parts of the data are summed up in the host's memory, as `holdfast importance` does.
    """
    own = _Amounts(sizes, place)
    held = 4 * sizes.factors() if kind == "kfac" else _SUM * sizes.num_weights
    always = [own.weights, *own.groups(_SUM), *own.context]
    if in_parts:
        sums = round(held * place.share)
        always.append(MemoryItem("sums of the parts before", sums, "holdfast.language.measuring", "host"))
    activations = own.activations(num_examples)
    if kind == "kfac":
        apart = _SUM * (sizes.num_weights - sizes.in_layers)
        gradient = own.item("ordinary gradient", _SUM * sizes.num_weights, "holdfast.moments.gradients.gradient")
        product = own.item("products of all layers", _SUM * sizes.in_layers, "holdfast.moments.kronecker.KroneckerSums")
        factors = own.item("factors A and G", held, "holdfast.moments.symmetric.SymmetricSum")
        rest = own.item("sums of the rest, and its proof", 2 * apart, "holdfast.moments.totals.Totals")
        return _largest(
            always,
            {"the proof of the first batch": [gradient, product, activations], "a batch": [factors, rest, activations]},
        )
    if kind == "signal":
        values = own.item("values", held, "holdfast.importance.signal_sums.SignalSums")
        return _largest(always, {"a batch": [activations], "the end": [values]})
    product = MemoryItem(
        "product of the largest layer", _SUM * sizes.largest, "holdfast.moments.kernels.linear.Products"
    )
    sums = own.item("sums over examples", held, "holdfast.moments.totals.Totals")
    return _largest(always, {"the proof of the first batch": [sums, product, activations]})


def training(
    sizes: Sizes,
    place: ModelPlace,
    hold: Hold,
    *,
    optimizer: Descent = "adamw",
    num_examples: int,
    length: int,
    checkpointing: bool = False,
    accumulates: bool = False,
) -> Footprint:
    """What a process holds while a model is fine-tuned.

    Args:
        sizes: of the model.
        place: where it is.
        hold: what holds it.
        optimizer: AdamW, or SGD without momentum.
        num_examples: of a batch, in this process.
        length: tokens of each.
        checkpointing: whether activations are computed again in the backward pass.
        accumulates: whether several batches make one step.
    """
    own = _Amounts(sizes, place)
    learned = sizes.num_weights
    held, on_retain, in_step = _held(own, hold)
    always = [own.weights, *own.groups(place.width), *own.context]
    trained_width = place.width
    if hold.by == "lora":
        learned, trained_width = _adapters(sizes, hold.rank), WIDTH["float32"]
        always.append(own.item("adapters", trained_width * learned, "peft"))
    if hold.dreams:
        always.append(_dreams(sizes, hold.dreams, length))
    moments = (2 if optimizer == "adamw" else 0) * trained_width * learned
    state = own.item("moments of the optimizer", moments, "torch.optim.AdamW") if moments else None
    gradients = own.item("gradients", trained_width * learned, "torch.autograd")
    beside = [*always, *held, *([state] if state is not None else [])]
    if place.spread == "replicas":
        beside.append(own.item("buckets of gradients", trained_width * learned, "torch.nn.parallel"))
    activations = own.activations(num_examples, checkpointing=checkpointing)
    pass_ = [activations, gradients] if accumulates else [_more_of(activations, gradients, own)]
    step = [gradients, *in_step, *_of_descent(own, optimizer, trained_width, learned)]
    found = {"a pass": _largest(beside, {"a pass": pass_}), "a step": _largest(beside, {"a step": step})}
    if on_retain:
        found["taking up the importance"] = _largest(
            [own.weights, *own.context], {"taking up the importance": on_retain}
        )
    return max(found.values(), key=lambda each: each.in_all)


class _Amounts:
    """Items of a model at its place."""

    def __init__(self, sizes: Sizes, place: ModelPlace) -> None:
        self.sizes, self.place = sizes, place

    def item(self, name: str, num_bytes: float, source: str, on: Literal["device", "host"] = "device") -> MemoryItem:
        """Of something that belongs to weights; in shards a process's share of it."""
        return MemoryItem(name, round(num_bytes * self.place.share), source, on)

    @property
    def weights(self) -> MemoryItem:
        return self.item("weights", self.place.width * self.sizes.num_weights, "holdfast.language.models.load_model")

    @property
    def context(self) -> list[MemoryItem]:
        return [MemoryItem("CUDA itself, about", _CONTEXT, "torch.cuda")] if self.place.on_cuda else []

    def groups(self, gradient_width: int) -> list[MemoryItem]:
        """What is whole of shards at a time: the outermost group, the block at work and the one that comes next."""
        if self.place.spread != "shards":
            return []
        source, width = "torch.distributed.fsdp.fully_shard", self.place.width
        whole = width * (self.sizes.rest + 2 * self.sizes.block)
        sums = gradient_width * (self.sizes.rest + self.sizes.block)
        return [
            MemoryItem("weights of groups, gathered", whole, source),
            MemoryItem("gradients or sums of groups, whole", sums, source),
        ]

    def activations(self, num_examples: int, *, checkpointing: bool = False) -> MemoryItem:
        kept = self.sizes.checkpointed if checkpointing else self.sizes.activations
        found = kept[self.place.dtype].of(num_examples)
        return MemoryItem("activations", found, "holdfast.language.live_bytes.pass_bytes")


def _largest(always: Sequence[MemoryItem], moments: Mapping[str, Sequence[MemoryItem]]) -> Footprint:
    found = [Footprint(name, (*always, *items)) for name, items in moments.items()]
    return max(found, key=lambda each: each.in_all)


def _more_of(activations: MemoryItem, gradients: MemoryItem, own: _Amounts) -> MemoryItem:
    """Activations go as gradients come: the more of both, the last gradient on its way included."""
    last = own.sizes.activations[own.place.dtype].least if own.sizes.num_weights else 0
    later = gradients.num_bytes + min(last, own.place.width * own.sizes.largest)
    if later > activations.num_bytes:
        return MemoryItem("gradients", later, gradients.source)
    return activations


def _of_descent(own: _Amounts, optimizer: Descent, width: int, learned: int) -> list[MemoryItem]:
    """What the optimizer's own step works in."""
    if optimizer == "sgd":
        return []
    if own.place.on_cuda:  # many tensors at once, and the roots of all
        return [own.item("roots of second moments", width * learned, "torch.optim.AdamW")]
    largest = min(own.sizes.largest, learned)
    return [own.item("roots of one tensor's second moments", 2 * width * largest, "torch.optim.AdamW")]


def _held(own: _Amounts, hold: Hold) -> tuple[list[MemoryItem], list[MemoryItem], list[MemoryItem]]:
    """What is held all the time, when it is taken up, and what a held step works in."""
    sizes, place = own.sizes, own.place
    weights, on = sizes.num_weights, "host" if hold.offload else "device"
    source = "holdfast.memory.forms.Forms"
    given = own.item("importance as measured", _SUM * weights, "holdfast.language.importance_folder")
    half = place.dtype == "bfloat16"
    rounding = (
        [own.item("what rounding took of pulls", _RESIDUAL * weights, "holdfast.retention.rounding")] if half else []
    )
    copies = (
        [own.item("weights before a measured step", place.width * weights, "holdfast.retention.step.Step")]
        if half
        else []
    )
    importance = own.item("importance", _IMPORTANCE[hold.importance] * weights, source, on)
    anchors = own.item("anchors", _anchor_width(hold, place) * weights, source, on)
    rows = _rows(own, hold)
    match hold.by:
        case "plain":
            return [], [], []
        case "ewc":
            return [importance, anchors, *rounding], [given, importance, anchors], [*copies, rows]
        case "wva":
            return [importance, *rounding], [given, importance], [*copies, rows]
        case "kronecker":
            return _kronecker(own, hold, rounding=rounding, copies=copies, rows=rows)
        case "lora":
            in_blocks = _SUM * (sizes.num_weights - sizes.rest)
            held = own.item("importance", in_blocks, "holdfast.curvature.adapters.AdapterCurvature")
            start = own.item("adapters at the start", _SUM * _adapters(sizes, hold.rank), "holdfast.integrations.peft")
            work = own.item("displacement of a layer", 3 * _SUM * sizes.block, "holdfast.curvature.adapters")
            return [held, start], [given, held], [work]
        case _:
            raise AssertionError(hold.by)


def _kronecker(
    own: _Amounts, hold: Hold, *, rounding: list[MemoryItem], copies: list[MemoryItem], rows: MemoryItem
) -> tuple[list[MemoryItem], list[MemoryItem], list[MemoryItem]]:
    """Bases and spectrum; the last pull of every layer, where the next one starts; and anchors."""
    sizes, place = own.sizes, own.place
    width = WIDTH["float32" if hold.importance == "float32" else "bfloat16"]
    numbers, largest = sizes.factors(), max((out * n for out, n in sizes.sides), default=0)
    side = max((side for both in sizes.sides for side in both), default=0)
    apart = sizes.num_weights - sizes.in_layers
    held = [
        own.item(
            "bases and spectra", width * (numbers + sizes.in_layers), "holdfast.curvature.kronecker.KroneckerCurvature"
        ),
        own.item("importance of the rest", _IMPORTANCE[hold.importance] * apart, "holdfast.memory.forms.Forms"),
        own.item("anchors", place.width * sizes.num_weights, "holdfast.memory.forms.Forms"),
        own.item("last pulls", _SUM * sizes.in_layers, "holdfast.retention.holdings.Holdings"),
        *rounding,
    ]
    if place.dtype == "bfloat16":
        held.append(
            own.item("anchors, as steps take them", _SUM * sizes.in_layers, "holdfast.retention.plan.LayerPart")
        )
    given = own.item("factors as measured", _SUM * numbers + _SUM * apart, "holdfast.language.importance_folder")
    taken = [given, *held[:3], MemoryItem("eigenvectors of a side", 8 * 4 * side * side, "holdfast.curvature.sharing")]
    if place.dtype == "float32":
        copies = [own.item("weights before a measured step", _SUM * sizes.in_layers, "holdfast.retention.step.Step")]
    work = MemoryItem("a layer's pull", 8 * _SUM * largest, "holdfast.curvature.implicit")
    return held, taken, [*copies, rows, work]


def _anchor_width(hold: Hold, place: ModelPlace) -> float:
    match hold.anchors:
        case "float32":
            return place.width
        case "bfloat16":
            return 2
        case "int16":
            return 2 + 1 / CODED_TOGETHER
        case "reference":
            return 0
        case _:
            raise AssertionError(hold.anchors)


def _rows(own: _Amounts, hold: Hold) -> MemoryItem:
    """Of a block of weights at a time."""
    block = BLOCK
    if own.place.on_cuda:
        block = WIDE_BLOCK_CUDA if own.place.dtype == "bfloat16" and hold.importance == "float32" else READ_BLOCK_CUDA
    return MemoryItem("a block of weights", _ROWS * _SUM * min(block, own.sizes.largest), "holdfast.retention.parts")


def _adapters(sizes: Sizes, rank: int) -> int:
    """Numbers in adapters of all layers in blocks."""
    inside = [both for both in sizes.sides if sizes.vocabulary not in both]
    return rank * sum(out + width for out, width in inside)


def _dreams(sizes: Sizes, num_examples: int, length: int) -> MemoryItem:
    """Tokens with mask and labels, and the answers at each, in int32 and float16."""
    answers = kept_answers(torch.zeros(1, sizes.vocabulary, dtype=torch.float32)).values()
    each = 3 * 8 + sum(tensor.numel() * (2 if tensor.is_floating_point() else 4) for tensor in answers)
    return MemoryItem("dreams", num_examples * length * each, "holdfast.language.dreaming.dreams", "host")
