"""The nouns that travel between the library's parts: importances and how they were made."""

from __future__ import annotations

import copy
import math
import os
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Annotated, Any, Literal, get_args

import torch
from torch import Tensor, nn

from holdfast.choices import check_choices
from holdfast.errors import FileFormatError, HoldfastError, NotFiniteError, OptionError, ParameterMismatchError
from holdfast.files import Saved, new_folder, read_folder, take_the_rest, write_description, write_tensors, write_text
from holdfast.files.typed import Count, Within, listed_mistakes, typed
from holdfast.tensors import (
    all_parameters,
    gathered_when_taken,
    is_sharded,
    local,
    shards_of,
    spearman,
    trainable_parameters,
    unwrap,
)
from holdfast.version import __version__

Detail = str | int | float | bool | None

Calibration = Literal["none", "made-up lessons"]
"""How a factor to nats was measured: not at all, or along the ways that training goes (`calibrated`)."""

IMPORTANCE_CONFIG = "importance_config.json"
"""Where a saved importance says how it was made."""


@dataclass(frozen=True)
class ImportanceInfo:
    """How an importance was made.

    Attributes:
        kind: the estimator, such as "fisher-exact" or "mas".
        num_examples: examples it was measured on.
        num_targets: targets it is a mean over, so that it speaks of nats per target: of a loss of sequences the labels
            that are not skipped, else one an example. Left out: as many as examples.
        loss: name of the likelihood or output it was taken of, or None.
        unit: unit of one entry, such as "nats/weight^2".
        model: class name of the model.
        library_version: the holdfast version that made it.
        nats_per_unit: factor that turns 1/2 sum Omega d^2 into nats per target: 1.0 for Fisher importances, for others
            None until it is measured (`calibrated`).
        details: options of the estimator.
        calibration: how that factor was measured; "none" where it is so by definition, or unknown.
        calibrated_at: the budget in nats per target that those lessons were held to.
        scatter: of these, the factor >= 1 within which the real rise of each was as foreseen.
    """

    kind: str
    num_examples: int
    loss: str | None = None
    unit: str = "1"
    model: str = ""
    library_version: str = __version__
    nats_per_unit: float | None = None
    details: Mapping[str, Detail] = field(default_factory=dict)
    num_targets: int = -1
    calibration: Calibration = "none"
    calibrated_at: float | None = None
    scatter: float | None = None

    def __post_init__(self) -> None:
        """Count one target an example where the number of targets was left out; refuse an unknown calibration."""
        check_choices(self)
        if self.num_targets < 0:
            object.__setattr__(self, "num_targets", self.num_examples)

    @property
    def is_calibrated(self) -> bool:
        """Whether its nats are those of training's own ways (`hf.calibrated`)."""
        return self.calibration != "none"

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], *, where: str) -> ImportanceInfo:
        """Rebuild from JSON.

        Raises:
            FileFormatError: if a field is missing or has the wrong type.
        """
        optional = {entry.name for entry in fields(cls)} - {"kind", "num_examples", "num_targets"}
        if "rehearsed_at" in content:  # as it was called before
            content = {**content, "calibrated_at": content["rehearsed_at"]}
            if content.get("calibration") == "rehearsed lessons":
                content["calibration"] = "made-up lessons"
        if content.get("calibration") == "random directions":
            raise FileFormatError(
                f"{where}: its factor to nats is that of random directions, and no training goes along them. Measure "
                "again."
            )
        record, mistakes = typed(content, _INFO, optional=optional)
        details = content.get("details", {})
        if not (isinstance(details, dict) and all(isinstance(value, Detail) for value in details.values())):
            expected = "an object of texts, numbers, true, false or null"
            mistakes.append(f"details is {reprlib.repr(details)}, expected {expected}")
        if (found := record.get("calibration", "none")) not in get_args(Calibration):
            mistakes.append(f"calibration is {found!r}, expected one of {', '.join(map(repr, get_args(Calibration)))}")
        if mistakes:
            raise FileFormatError(
                f"{where} says not how the importance was made: {listed_mistakes(mistakes)}. Save it again."
            )
        return cls(**record, details=details)


_Nats: Any = Annotated[float, Within(0, 1e300)]
_INFO: Mapping[str, Any] = {
    "kind": str,
    "num_examples": Count,
    "num_targets": Count,
    "loss": str | None,
    "unit": str,
    "model": str,
    "library_version": str,
    "nats_per_unit": _Nats | None,
    "calibration": str,
    "calibrated_at": _Nats | None,
    "scatter": _Nats | None,
}
"""Its fields in JSON, and their types; `details` aside, whose values may be any `Detail`."""


class Importance(Mapping[str, Tensor]):
    """How much each weight matters: a mapping from parameter name to a tensor of the parameter's shape.

    Entries are float32 and >= 0. Importances add (`a + b`), scale (`2.0 * a`), compare (`a.correlation(b)`),
    save and load.

    Args:
        values: name -> tensor; cast to float32, detached, not copied where already so.
        info: how it was made.

    Raises:
        NotFiniteError: if an entry is NaN, infinite or negative; every such parameter is named.
        OptionError: if `values` is no mapping to dense tensors of real numbers.
    """

    probes: Any = None
    """`Probes` of the same task, which `retain` takes along; no file of an importance has them."""

    def __init__(self, values: Mapping[str, Tensor], info: ImportanceInfo) -> None:
        check_tensors(values, where=f"Importance({info.kind})", error=OptionError)
        self._values = {name: value.detach().to(torch.float32) for name, value in values.items()}
        self.info = info
        check_importance_values(self._values, where=f"Importance({info.kind})")

    def __getitem__(self, name: str) -> Tensor:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        weights = sum(value.numel() for value in self._values.values())
        sizes = f"{len(self)} parameters, {weights:,} weights, {self.info.num_examples} examples"
        return f"Importance({self.info.kind}, {sizes})"

    @property
    def diagonal(self) -> Importance:
        """Itself: the part that is held weight by weight."""
        return self

    @property
    def layers(self) -> Mapping[str, Any]:
        """None: the part that is held by whole layers, by the name of the layer's weight."""
        return {}

    @property
    def covers(self) -> Mapping[str, Tensor]:
        """Itself: a tensor of its shape for every parameter that it says something of."""
        return self

    def to_diagonal(self) -> Importance:
        """Itself."""
        return self

    def __add__(self, other: Importance) -> Importance:
        """Entry by entry; parameters in only one of the two keep their value."""
        shapes = {name: (value.shape, other[name].shape) for name, value in self.items() if name in other}
        wrong = {name: pair for name, pair in shapes.items() if pair[0] != pair[1]}
        if wrong:
            listed = ", ".join(f"{name!r} {tuple(a)} and {tuple(b)}" for name, (a, b) in wrong.items())
            raise ParameterMismatchError(f"Importance: cannot add different shapes: {listed}.")
        names = [*self, *(name for name in other if name not in self)]
        total = {
            name: self[name] + other[name]
            if name in self and name in other
            else (self if name in self else other)[name].clone()
            for name in names
        }
        same = self.info.kind == other.info.kind
        known = [info.scatter for info in (self.info, other.info) if info.scatter is not None]
        alike = self.info.calibration == other.info.calibration and self.info.calibrated_at == other.info.calibrated_at
        return Importance(
            total,
            replace(
                self.info,
                kind=self.info.kind if same else f"{self.info.kind}+{other.info.kind}",
                num_examples=self.info.num_examples + other.info.num_examples,
                num_targets=self.info.num_targets + other.info.num_targets,
                unit=self.info.unit if self.info.unit == other.info.unit else "mixed",
                nats_per_unit=self.info.nats_per_unit if self.info.nats_per_unit == other.info.nats_per_unit else None,
                calibration=self.info.calibration if alike else "none",
                calibrated_at=self.info.calibrated_at if alike else None,
                scatter=max(known, default=None) if len(known) == 2 and alike else None,
            ),
        )

    def __mul__(self, factor: float) -> Importance:
        if not (isinstance(factor, int | float) and math.isfinite(factor) and factor >= 0):
            raise OptionError(f"Importance: cannot scale by {factor!r}; expected a finite number >= 0.")
        nats = self.info.nats_per_unit
        scaled = None if nats is None or factor == 0 else nats / factor
        unit = self.info.unit if factor == 1 else f"{self.info.unit} / {factor:g}"
        info = replace(self.info, nats_per_unit=scaled, unit=unit)
        return Importance({name: value * factor for name, value in self.items()}, info).with_probes(self.probes)

    __rmul__ = __mul__

    def with_info(self, **changes: Any) -> Importance:
        """The same, its `info` changed in these fields."""
        return Importance(self, replace(self.info, **changes)).with_probes(self.probes)

    def with_probes(self, probes: Any) -> Importance:
        """The same, with `Probes` of the task to be retained along with it (`probes_of`); a sum has none."""
        twin = copy.copy(self)
        twin.probes = probes
        return twin

    def to(self, device: torch.device | str) -> Importance:
        """The same on another device; probes stay where they are."""
        moved = Importance({name: value.to(device) for name, value in self.items()}, self.info)
        return moved.with_probes(self.probes)

    def correlation(self, other: Importance) -> dict[str, float]:
        """Spearman's rank correlation for each parameter that both hold; -1..1, NaN where one is constant.

        Cost: one sort a parameter and side.
        """
        return {name: spearman(value, other[name].to(value.device)) for name, value in self.items() if name in other}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the folder `path`: `importance.safetensors`, `importance_config.json`, `README.md`.

        Of a sharded model every process calls it, and the first one writes it, whole: it loads beside any sharding or
        none.

        Raises:
            OutputError: if it cannot be written, or holds what holdfast did not write; it is then unchanged.
        """
        spread, card = shards_of(self), _card(self)
        tensors = gathered_when_taken(self)
        try:
            if spread is None or spread.is_first:
                with new_folder(path) as folder:
                    write_tensors(folder, "importance", tensors)
                    write_description(folder / IMPORTANCE_CONFIG, asdict(self.info))
                    write_text(folder / "README.md", card)
        finally:  # the others come along also where the first process is refused
            take_the_rest([tensors])
            if spread is not None:
                spread.wait()

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, model: nn.Module | None = None) -> Importance:
        """Read a folder that `save` wrote; with `model`, also check names and shapes against it.

        Raises:
            FileFormatError: a missing, truncated, edited or wrong-version file.
            ParameterMismatchError: names or shapes that do not match `model`.
        """
        importance = read_folder(path, cls.saved_in)
        if model is not None:
            check_names(importance, model, where=f"Importance.load({str(path)!r})")
        return importance

    @classmethod
    def saved_in(cls, saved: Saved) -> Importance:
        """Read one save of a folder; see `load`."""
        content = saved.description(IMPORTANCE_CONFIG)
        info = ImportanceInfo.from_dict(content, where=str(saved.path / IMPORTANCE_CONFIG))
        if "factors" in content:
            raise FileFormatError(f"{saved.path} holds Kronecker factors. Load it with hf.FactoredImportance.load.")
        return cls(saved.tensors("importance"), info)


def check_tensors(values: object, *, where: str, error: type[HoldfastError]) -> None:
    """Raise `error` unless it is a mapping to dense tensors of real numbers; every entry that is none is named."""
    if not isinstance(values, Mapping):
        raise error(f"{where}: found {values!r:.40}; expected a mapping from parameter names to tensors.")
    wrong = [f"{name!r} is {_described(value)}" for name, value in values.items() if not _is_dense(value)]
    if wrong:
        raise error(f"{where}: expected dense tensors of real numbers, in memory; {', '.join(wrong)}.")


def _is_dense(value: object) -> bool:
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        return False
    return value.device.type != "meta" and not value.is_complex()


def _described(value: object) -> str:
    if not isinstance(value, Tensor):
        return f"{value!r:.40}"
    return f"{value.layout}".removeprefix("torch.") + f" of {value.dtype} on {value.device}".replace("torch.", "")


def check_importance_values(values: Mapping[str, Tensor], *, where: str) -> None:
    """Raise `NotFiniteError` naming every parameter with a NaN, infinite or negative entry.

    Of sharded ones every process looks at its own shards, and all of them raise.
    """
    bad = []
    for name, value in values.items():
        value = local(value)
        if not value.numel():
            continue
        low, high = value.aminmax()  # a twentieth of the time of looking at each entry; NaN passes through
        if 0 <= low <= high < math.inf:
            continue
        wrong = ~(torch.isfinite(value) & (value >= 0))
        if wrong.any():
            first = value[wrong].flatten()[0].item()
            bad.append(f"{name!r} ({int(wrong.sum())} of {value.numel()} entries, such as {first})")
    sharded = shards_of({name: value for name, value in values.items() if is_sharded(value)})
    if sharded is not None and sharded.largest(float(bool(bad))) and not bad:
        bad = ["those of another process, which names them"]
    if bad:
        raise NotFiniteError(
            f"{where}: {_count(bad, 'parameter')} with entries that are not finite numbers >= 0: {', '.join(bad)}. "
            "Look for NaN in the model's weights or the data, or an overflow under half precision."
        )


def check_names(importance: Mapping[str, Tensor], model: nn.Module, *, where: str) -> None:
    """Raise `ParameterMismatchError` naming every entry that has no parameter of its name and shape in `model`."""
    parameters = trainable_parameters(model)
    kind = type(unwrap(model)).__name__
    unknown = [name for name in importance if name not in parameters]
    if unknown:
        raise ParameterMismatchError(
            f"{where}: {_count(unknown, 'name')} not among the trainable parameters of {kind}: "
            f"{', '.join(map(repr, unknown))}. It has {_listed(list(parameters))}. Use the model the importance was "
            "measured on, or unfreeze them."
        )
    check_shapes(importance, model, where=where, remedy="Measure the importance again on this model.")


def check_shapes(importance: Mapping[str, Tensor], model: nn.Module, *, where: str, remedy: str) -> None:
    """Raise `ParameterMismatchError` naming every entry whose parameter in `model` has another shape."""
    parameters = all_parameters(model)
    kind = type(unwrap(model)).__name__
    pairs = [
        f"{name!r} is {tuple(value.shape)}, in {kind} {tuple(parameters[name].shape)}"
        for name, value in importance.items()
        if name in parameters and value.shape not in (parameters[name].shape, local(parameters[name]).shape)
    ]
    if pairs:
        raise ParameterMismatchError(
            f"{where}: {_count(pairs, 'shape')} not as in the model: {'; '.join(pairs)}. {remedy}"
        )


def _count(items: list[str], noun: str) -> str:
    return f"{len(items)} {noun}{'' if len(items) == 1 else 's'}"


def _listed(names: list[str], most: int = 8) -> str:
    shown = ", ".join(repr(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _mean_and_largest(importance: Importance) -> dict[str, tuple[float, float]]:
    """Of each tensor; of a sharded one over all processes, which all ask for it."""
    spread = shards_of(importance)
    if spread is None:
        return {name: (float(value.mean()), float(value.max())) for name, value in importance.items()}
    parts = {name: local(value) for name, value in importance.items()}
    return {
        name: (
            spread.sum_of([part.sum()]) / importance[name].numel(),
            spread.largest(float(part.max()) if part.numel() else 0.0),
        )
        for name, part in parts.items()
    }


def _card(importance: Importance) -> str:
    info, figures = importance.info, _mean_and_largest(importance)
    rows = "\n".join(
        f"| {name} | {tuple(value.shape)} | {figures[name][0]:.4g} | {figures[name][1]:.4g} |"
        for name, value in importance.items()
    )
    details = ", ".join(f"{name}={value}" for name, value in info.details.items()) or "none"
    return f"""# Importance of the weights of {info.model or "a model"}

How much each weight matters for a learned skill, measured with holdfast {info.library_version}.

- kind: {info.kind}; options: {details}
- examples: {info.num_examples}; targets: {info.num_targets}
- loss: {info.loss}; unit: {info.unit}; nats per unit: {info.nats_per_unit}, calibration: {info.calibration}

    import holdfast as hf
    importance = hf.Importance.load("THIS FOLDER", model=model)

| parameter | shape | mean | largest |
| --- | --- | --- | --- |
{rows}
"""
