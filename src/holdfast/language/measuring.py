"""An importance of a language model, measured part by part: it goes on after a kill, and tells when it is enough."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from holdfast.curvature.blocks import trace
from holdfast.curvature.factored import AnyImportance, factors_from, factors_to_tensors, importance_of
from holdfast.errors import (
    EmptyDataError,
    FileFormatError,
    MemoryShortageError,
    OptionError,
    RunMismatchError,
    UnsupportedLayerError,
)
from holdfast.files import read_state, write_state
from holdfast.importance import fisher, kfac, mas, signal
from holdfast.language.batches import Example, LanguageBatch, batches, digest_of, drawn
from holdfast.language.models import LanguageModel
from holdfast.language.processes import ALONE, Processes, Told
from holdfast.language.sharding import class_name, gathered_importance, in_shards, own_examples
from holdfast.language.skills import likelihood_of
from holdfast.records import ImportanceInfo
from holdfast.tensors import prefixed, under, unwrap

Kind = Literal["sampled", "exact", "empirical", "mas", "signal", "kfac"]

MEASURING = ".holdfast-measuring.safetensors"
"""The name of a checkpoint inside the folder that an importance is written to."""

PART = 64
"""Examples that are measured together before the sums are added up, and may be written down."""
_MOST_DRAWN = 2**16
"""Examples of a stream that a measurement up to a tolerance looks at."""
_WATCHED = 2**16
"""Weights at which the groups are compared."""
_GROUPS = 8

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


@dataclass(frozen=True)
class MeasuringProgress:
    """How far a measurement is.

    Attributes:
        num_examples: so far.
        error: the relative error of the running estimate, see `Groups`; None before there are two parts.
        agreement: correlation of the estimates from the two halves; None likewise.
        seconds: spent, before an interruption too.
    """

    num_examples: int
    error: float | None
    agreement: float | None
    seconds: float

    @property
    def text(self) -> str:
        """The convergence line."""
        if self.error is None or self.agreement is None:
            return f"{self.num_examples} examples"
        return (
            f"{self.num_examples} examples: relative error about {self.error:.1%}, "
            f"two halves of the data agree to {self.agreement:.3f}"
        )


ProgressCallback = Callable[[MeasuringProgress], None]


@dataclass
class Groups:
    """Estimates from eight groups of parts, at a sample of the weights.

    The mean m of K independent estimates m_k, of n_k targets each, has the variance
    sum_k (n_k/n)^2 (m_k - m)^2 K/(K - 1); its root, over all weights, over |m| is the relative error.
    """

    sums: Tensor = field(default_factory=lambda: torch.zeros(_GROUPS, 0, dtype=torch.float32))
    counts: list[int] = field(default_factory=lambda: [0] * _GROUPS)

    def add(self, part: int, found: Mapping[str, Tensor], size: int) -> None:
        """Add what a part of so many targets gave, means over them."""
        self.add_seen(part, seen_of(found), size)

    def add_seen(self, part: int, seen: Tensor, size: int) -> None:
        """The same of the sample of its weights that `seen_of` takes."""
        if not self.sums.numel():
            self.sums = torch.zeros(_GROUPS, len(seen), dtype=torch.float32)
        self.sums[part % _GROUPS] += size * seen
        self.counts[part % _GROUPS] += size

    def compare(self) -> tuple[float, float] | None:
        """Relative error, and correlation of the even groups with the odd ones; None before there are two."""
        used = [group for group, count in enumerate(self.counts) if count]
        if len(used) < 2:
            return None
        sums, counts = self.sums[used].double(), torch.tensor(self.counts).double()[used]
        mean, shares = sums.sum(dim=0) / counts.sum(), counts / counts.sum()
        deviations = (sums / counts.unsqueeze(1) - mean).norm(dim=1)
        error = ((shares * deviations).square().sum() * len(used) / (len(used) - 1)).sqrt()
        agreement = torch.corrcoef(torch.stack([sums[::2].sum(dim=0), sums[1::2].sum(dim=0)]))[0, 1]
        length = float(mean.norm())
        return (float(error) / length if length else 0.0), float(agreement)


def seen_of(tensors: Mapping[str, Tensor]) -> Tensor:
    """The same evenly spread weights of every parameter, about `_WATCHED` in all."""
    stride = max(1, sum(tensor.numel() for tensor in tensors.values()) // _WATCHED)
    return torch.cat([tensor.flatten()[::stride].cpu().float() for tensor in tensors.values()])


def measure_importance(
    model: LanguageModel,
    data: Callable[[], Iterable[Example]],
    *,
    kind: Kind = "sampled",
    num_examples: int | None = None,
    tolerance: float | None = None,
    batch_size: int = 8,
    seed: int = 0,
    checkpoint: Path | None = None,
    identity: Mapping[str, Any] | None = None,
    checkpoint_seconds: float = 30.0,
    on_part: ProgressCallback | None = None,
    processes: Processes = ALONE,
) -> tuple[AnyImportance, MeasuringProgress]:
    """The importance of the weights of `model.base`, under their own names.

    The data are measured in parts of 64 examples, each with labels drawn under a seed of its own, and the parts' sums
    are added up; of Kronecker products the partial traces, which gives "matched" factors (see `hf.kfac`) the values
    that all examples at once would. Sums and count are written down as one file, so that a measurement which was
    interrupted goes on, and ends with the same numbers. Fewer than all examples are drawn under the seed, from the
    whole stream.

    Of several processes each reads the whole stream and measures one part of as many as there are processes. Parts and
    their seeds are those of one process, and so are labels, convergence and end; the sums are added in another order.
    A model in shards (`shard_blocks`) is measured by all processes together, each part by each one's share of it; the
    first adds the parts up.

    Args:
        model: what is measured; in shards a diagonal by any kind but "kfac".
        data: makes the stream of examples anew.
        kind: "sampled", "exact" or "empirical" Fisher; "mas"; "signal", which leaves embeddings and norms at zero;
            "kfac", the sampled Fisher with Kronecker factors of its layers.
        num_examples: measure on so many, drawn without replacement; None: on all, in their order.
        tolerance: stop when the relative error is below this, after at least four parts; the examples are drawn, 65,536
            at most where `num_examples` does not say otherwise.
        batch_size: examples that go through the model together; halved where memory does not do, but of a model in
            shards, where it is the number in each process.
        seed: of the labels and the examples drawn.
        checkpoint: file to go on from; deleted by the caller when the result is safe.
        identity: what else must be the same to go on, as JSON values.
        checkpoint_seconds: at least so long between two writings.
        on_part: called with the progress after each part.
        processes: that measure together; the first reads and writes the checkpoint, and the number of processes may be
            another when it goes on.

    Returns:
        The importance, with "kfac" a `FactoredImportance`, in nats per target: of a causal language model per token
        that is predicted, else per example; of MAS and signal a mean over examples. And how far it got.

    Raises:
        EmptyDataError: no example.
        MemoryShortageError: not even one example alone fits.
        OptionError: MAS of single sentences, whose embeddings all have length one; "kfac" of a model in shards.
        UnsupportedLayerError: "kfac" of a model in which no layer can have factors, such as an encoder of pairs.
        RunMismatchError: the checkpoint is of another measurement, or the processes read different data.
        FileFormatError: it is damaged, or no checkpoint of a measurement.
        LostProcessError: another process is gone.

    Cost: a float32 copy of the weights on the model's device, and one for the running sums in the computer's memory;
    with "kfac" the factors' size in place of the weights'. The rows that were drawn are held.
    """
    if num_examples is not None and num_examples < 1:
        raise OptionError(f"importance: --examples is {num_examples}; expected a whole number >= 1.")
    count = num_examples or (_MOST_DRAWN if tolerance else None)
    key = {"kind": kind, "seed": seed, "examples": count, "mean over": "targets", **(identity or {})}
    key |= {"sums": "partial traces"} if kind == "kfac" else {}
    if model.base is not model.module:
        model.module.requires_grad_(False)  # a head is not part of what is measured
        model.base.requires_grad_(True)
    sharded = in_shards(model.module)
    if sharded and kind == "kfac":
        raise OptionError("importance: --kind kfac with --shard: factors need whole weights here. Leave out --shard.")
    at_once = 1 if sharded else processes.count
    state = _begun(checkpoint, key, processes)
    limit = math.inf if num_examples is None else num_examples
    found_in = data() if count is None else drawn(data(), count, seed=seed)
    stream = islice(found_in, state.seen, None)
    written = begun = time.monotonic()
    earlier, size = state.seconds, batch_size
    while state.seen < limit and not state.suffices(tolerance):
        most = int(min(PART * at_once, limit - state.seen))
        read = list(islice(stream, most))
        parts = [read[start : start + PART] for start in range(0, len(read), PART)]
        own, found = processes.rank, None
        if sharded and parts:
            found = _measure_together(model, parts[0], kind, seed + state.part, batch_size, processes)
        elif own < len(parts):
            found, size = _with_room(partial(_measure_part, model, parts[own], kind, seed + state.part + own), size)
            found = renamed(found, lambda name: name.removeprefix(model.prefix))
        is_due = checkpoint is not None and time.monotonic() - written >= checkpoint_seconds
        told = _told_of(parts, found, processes, is_due=is_due)
        if not parts:
            break
        reached: list[MeasuringProgress] = []
        for number, (seen, notes) in enumerate(told[: len(parts)]):
            if number and state.suffices(tolerance):
                break  # one process would not have measured this part
            state.count(seen["seen"], notes)
            if number == own and found is not None:
                state.add(found)
            state.seconds = earlier + time.monotonic() - begun
            if on_part is not None:
                reached.append(state.progress())
        if checkpoint is not None and told[0][1]["is due"]:
            state.join(processes)
            state.write(checkpoint, key, processes)
            written = time.monotonic()
        if on_part is not None:
            for progress in reached:
                on_part(progress)
    if state.seen == 0:
        raise EmptyDataError("importance: the data held no example.")
    state.join(processes, in_all=True)
    return state.mean(_info(model, state, kind, seed)), state.progress()


def _begun(checkpoint: Path | None, key: Mapping[str, Any], processes: Processes) -> _State:
    """What the first process reads of a checkpoint; the others know all of it but the sums, which are in the first."""
    read: list[_State] = []

    def find() -> Told:
        read.append(_State() if checkpoint is None or not checkpoint.exists() else _State.read(checkpoint, key))
        return {"groups": read[0].groups.sums}, read[0].notes()

    tensors, notes = processes.of_first(find)
    return read[0] if read else _State.of({"groups": tensors["groups"]}, notes)


def _told_of(
    parts: Sequence[Sequence[Example]], found: AnyImportance | None, processes: Processes, *, is_due: bool
) -> list[Told]:
    """What each process tells of its part, for all to count it.

    Raises:
        RunMismatchError: they did not read the same examples.
    """
    notes: dict[str, Any] = {"data": digest_of(*parts) if processes.count > 1 else "", "is due": is_due}
    if found is None:
        told = processes.told(notes)
    else:
        details = found.info.details
        notes |= {"seen": found.info.num_examples, "targets": found.info.num_targets}
        notes |= {"layers": factors_to_tensors(found.layers)[1]}
        notes |= {"rules": {name: details[name] for name in ("factors", "matched") if name in details}}
        told = processes.told(notes, {"seen": seen_of(found.to_diagonal())})
    if others := [number for number, (_, notes) in enumerate(told) if notes["data"] != told[0][1]["data"]]:
        raise RunMismatchError(
            f"importance: the processes read different data: process {others[0]} of {processes.count} found other "
            "examples than the first. Give all of them the same files."
        )
    return told


@dataclass
class _State:
    """Sums over the targets so far.

    Attributes:
        totals: of the diagonal, by name.
        factors: of the partial traces of Kronecker products, as `factors_to_tensors` names the factors.
        layers: the forms of the layers that have factors.
        rules: how these were made, as `hf.kfac` says in its details.
        groups: for the convergence.
        seen, targets, part, seconds: examples, their targets and parts so far, and the time they took.
    """

    totals: dict[str, Tensor] = field(default_factory=dict)
    factors: dict[str, Tensor] = field(default_factory=dict)
    layers: dict[str, Any] = field(default_factory=dict)
    rules: dict[str, Any] = field(default_factory=dict)
    groups: Groups = field(default_factory=Groups)
    seen: int = 0
    targets: int = 0
    part: int = 0
    seconds: float = 0.0

    @classmethod
    def read(cls, path: Path, key: Mapping[str, Any]) -> _State:
        tensors, notes = read_state(path)
        if not isinstance(notes.get("key"), dict) or "groups" not in tensors:
            raise FileFormatError(f"{path} is the checkpoint of something else. Delete it to begin anew.")
        if notes["key"] != key:
            changed = [name for name in key if notes["key"].get(name) != key[name]]
            raise RunMismatchError(
                f"{path} is of a measurement with another {', '.join(changed)}. Delete it to begin anew, or give the "
                "same command to go on."
            )
        return cls.of(tensors, notes)

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> _State:
        groups = Groups(tensors["groups"], notes["counts"])
        sums = under("totals", tensors), under("factors", tensors), notes["layers"], notes.get("rules", {})
        return cls(*sums, groups, notes["seen"], notes["targets"], notes["part"], notes["seconds"])

    def notes(self) -> dict[str, Any]:
        """All but the tensors, as JSON values."""
        return {
            "seen": self.seen,
            "targets": self.targets,
            "part": self.part,
            "seconds": self.seconds,
            "counts": self.groups.counts,
            "layers": self.layers,
            "rules": self.rules,
        }

    def write(self, path: Path, key: Mapping[str, Any], processes: Processes) -> None:
        """Write the sums, which are in the first process, to go on from."""
        if processes.is_first:
            tensors = prefixed("totals", self.totals) | prefixed("factors", self.factors)
            write_state(path, tensors | {"groups": self.groups.sums}, {**self.notes(), "key": key})

    def count(self, seen: Tensor, told: Mapping[str, Any]) -> None:
        """Count a part, which this process or another has measured.

        Raises:
            UnsupportedLayerError: other layers than before have factors.
        """
        layers = told["layers"]
        if self.seen and layers.keys() != self.layers.keys():
            changed = ", ".join(map(repr, sorted(layers.keys() ^ self.layers.keys())))
            raise UnsupportedLayerError(
                f"importance: {changed} can have Kronecker factors on some of the data only. Measure --kind sampled."
            )
        self.layers, self.rules = layers, told["rules"]
        self.groups.add_seen(self.part, seen, told["targets"])
        self.seen += told["seen"]
        self.targets += told["targets"]
        self.part += 1

    def add(self, found: AnyImportance) -> None:
        """Add the means over a part's targets."""
        factors, _ = factors_to_tensors(found.layers)
        traces = {f"{name}/inputs": trace(f.outputs) for name, f in found.layers.items()}
        traces |= {f"{name}/outputs": trace(f.inputs) for name, f in found.layers.items()}
        for totals, values in ((self.totals, found.diagonal), (self.factors, factors)):
            for name, value in values.items():
                added = value * traces[name] if totals is self.factors else value
                total = totals.setdefault(name, torch.zeros(value.shape, dtype=torch.float32))
                total.add_(added.cpu(), alpha=found.info.num_targets)

    def join(self, processes: Processes, *, in_all: bool = False) -> None:
        """Make the first process's sums those of all; the others begin theirs anew, or where asked have them too."""
        self.totals, self.factors = processes.add_up(self.totals), processes.add_up(self.factors)
        if not (in_all or processes.is_first):
            self.totals, self.factors = {}, {}

    def suffices(self, tolerance: float | None) -> bool:
        """Whether the relative error is small enough, after at least four parts."""
        return bool(tolerance and self.part >= 4 and self.progress().error < tolerance)  # type: ignore[operator]

    def mean(self, info: ImportanceInfo) -> AnyImportance:
        """Over all targets; the sums are gone then."""
        diagonal, factors = ({n: s.div_(self.targets) for n, s in sums.items()} for sums in (self.totals, self.factors))
        for name in self.layers:
            whole = trace(factors[f"{name}/outputs"])
            factors[f"{name}/outputs"] /= whole.where(whole > 0, 1.0)
        return importance_of(factors_from(self.layers, factors, where="importance"), diagonal, info)

    def progress(self) -> MeasuringProgress:
        error, agreement = self.groups.compare() or (None, None)
        return MeasuringProgress(self.seen, error, agreement, self.seconds)


def renamed(found: AnyImportance, own: Callable[[str], str]) -> AnyImportance:
    """The same under other names, without probes, which are of a whole model."""

    def named(name: str | None) -> str | None:
        return None if name is None else own(name)

    layers = {own(n): replace(f, bias=named(f.bias), reads=named(f.reads)) for n, f in found.layers.items()}
    matched = str(found.info.details.get("matched", ""))
    details = {**found.info.details, **({"matched": ", ".join(map(own, matched.split(", ")))} if matched else {})}
    diagonal = {own(name): value for name, value in found.diagonal.items()}
    return importance_of(layers, diagonal, replace(found.info, details=details))


def _measure_part(model: LanguageModel, part: list[Example], kind: Kind, seed: int, size: int) -> AnyImportance:
    """The mean over the examples of a part, `size` of them at a time."""
    data: Iterable[LanguageBatch] = batches(model, part, size)
    if kind == "mas":
        if model.task == "similarity" and len(part[0].tokens) == 1:
            raise OptionError(
                "importance: MAS is of the outputs' length, and every embedding of a sentence has length one. Give "
                "pairs of sentences, or another --kind."
            )
        return mas(model.module, data)
    if kind == "signal":
        return signal(model.module, data, others="zero")
    if kind == "kfac":
        found = kfac(model.module, data, kind="sampled", loss=likelihood_of(model.task), seed=seed)
        if not found:
            raise UnsupportedLayerError(
                "importance: no layer can have Kronecker factors; an encoder calls each for both texts of a pair. Give "
                "single texts, or another --kind."
            )
        return found
    return fisher(model.module, data, kind=kind, loss=likelihood_of(model.task), seed=seed)


def _measure_together(
    model: LanguageModel, part: list[Example], kind: Kind, seed: int, size: int, processes: Processes
) -> AnyImportance | None:
    """The same by all processes, over which the model is spread; in the first alone."""
    own, times = own_examples(part, processes)
    found = _measure_part(model, list(own), kind, seed, size)
    whole = gathered_importance(found, processes, times=times)
    return None if whole is None else renamed(whole, lambda name: name.removeprefix(model.prefix))


def _with_room(work: Callable[[int], AnyImportance], size: int) -> tuple[AnyImportance, int]:
    """The work's result, and the size at which memory sufficed: `size`, or what is left of it after halving.

    Raises:
        MemoryShortageError: one at a time is still too much.
    """
    while True:
        try:
            return work(size), size
        except (RuntimeError, MemoryError) as error:
            short = isinstance(error, MemoryError) or any(sign in str(error) for sign in _OUT_OF_MEMORY)
            if not short:
                raise
            told = " ".join(str(error).split())[:120]
        if size == 1:
            raise MemoryShortageError(
                f"importance: out of memory with one example at a time ({told}). Shorten the examples with --length, "
                "load the model with --dtype bfloat16, or take another device."
            )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        size //= 2


def _info(model: LanguageModel, state: _State, kind: Kind, seed: int) -> ImportanceInfo:
    is_fisher = kind not in ("mas", "signal")
    seeded = {"seed": seed} if kind in ("sampled", "kfac") else {}
    shifted = {"causal": True, "causal_by": f"task {model.task}"} if is_fisher and model.task == "causal-lm" else {}
    return ImportanceInfo(
        kind="kfac-sampled" if kind == "kfac" else f"fisher-{kind}" if is_fisher else kind,
        num_examples=state.seen,
        num_targets=state.targets,
        loss=likelihood_of(model.task).name if is_fisher else None,
        unit={"mas": "output^2/weight", "signal": "output"}.get(kind, "nats/weight^2"),
        model=class_name(unwrap(model.base)),
        nats_per_unit=1.0 if is_fisher else None,
        details={**state.rules, **seeded, **shifted},
    )
