"""Importances of whole layers: Kronecker factors, with a diagonal for what is no layer."""

from __future__ import annotations

import copy
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.curvature import blocks
from holdfast.curvature.checks import check_fit, checked
from holdfast.curvature.form import read_form
from holdfast.curvature.kronecker import KroneckerFactors
from holdfast.curvature.owners import LayerElsewhere, in_order
from holdfast.curvature.protocol import shapes_of
from holdfast.curvature.sharing import shared
from holdfast.curvature.together import write_together
from holdfast.errors import FileFormatError, ParameterMismatchError
from holdfast.files import Saved, new_folder, read_folder, write_description, write_tensors, write_text
from holdfast.records import IMPORTANCE_CONFIG, Importance, ImportanceInfo, check_names
from holdfast.tensors import Shards, local, whole_on_first


class FactoredImportance(Mapping[str, KroneckerFactors]):
    """How much each layer matters: Kronecker factors by the canonical name of the layer's weight, a diagonal elsewhere.

    Importances add (`a + b`), scale (`2.0 * a`), compare (`a.correlation(b)`), save and load, as `Importance` does.
    A sum of Kronecker products is not one: `a + b` holds the product (sum_k Tr(G_k) A_k) (x) (sum_k Tr(A_k) G_k) over
    the total trace, which has the sum's partial traces. `EWC.retain` merges better than that: retain each by itself.

    Measured on a model that `fully_shard` spread over processes, each layer is with one of them, its owner: the mapping
    is of this process's layers, and `elsewhere` of the others, of which it has no numbers.

    Args:
        factors: name of a weight -> its layer's factors; cast to float32 and made exactly symmetric. Layers that read
            the same input and have equal A hold one tensor.
        diagonal: name -> tensor >= 0 of the parameter's shape, for parameters in no factored layer.
        info: how it was made.
        elsewhere: name of a weight -> what is known of a layer that another process has.
        shards: those processes; None where it is this one's alone.

    Attributes:
        diagonal: the `Importance` of the other parameters, DTensors where the model is spread.
        info, elsewhere, shards: as given.

    Raises:
        NotFiniteError: a factor is not finite, or has negative eigenvalues beyond rounding; every one is named.
        ParameterMismatchError: a factor's shape does not fit its layer's, or a parameter is there twice.
    """

    probes: Any = None
    """`Probes` of the same task, which `retain` takes along; no file of an importance has them."""

    def __init__(
        self,
        factors: Mapping[str, KroneckerFactors],
        diagonal: Mapping[str, Tensor],
        info: ImportanceInfo,
        *,
        elsewhere: Mapping[str, LayerElsewhere[KroneckerFactors]] | None = None,
        shards: Shards | None = None,
    ) -> None:
        self.info, self.elsewhere, self.shards = info, dict(elsewhere or {}), shards
        where = f"FactoredImportance({info.kind})"
        self.diagonal = Importance(diagonal, info)
        check_fit(factors, where)
        self._factors = shared(checked(factors, where))
        counts = Counter([*shapes_of(self._factors), *shapes_of(self.elsewhere), *self.diagonal])
        twice = sorted(name for name, count in counts.items() if count > 1)
        if twice:
            raise ParameterMismatchError(
                f"{where}: {', '.join(map(repr, twice))} in a factored layer and in the diagonal too. Leave it in one."
            )

    def __getitem__(self, name: str) -> KroneckerFactors:
        return self._factors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._factors)

    def __len__(self) -> int:
        return len(self._factors)

    def __repr__(self) -> str:
        weights = sum(math.prod(f.matrix_shape) for f in self.values())
        rest = sum(value.numel() for value in self.diagonal.values())
        sizes = f"{len(self)} layers of {weights:,} weights, diagonal for {rest:,}, {self.info.num_examples} examples"
        if self.elsewhere:
            sizes += f", {len(self.elsewhere)} layers elsewhere"
        return f"FactoredImportance({self.info.kind}, {sizes})"

    @property
    def layers(self) -> FactoredImportance:
        """Itself: the part that is held by whole layers, by the name of the layer's weight."""
        return self

    @property
    def covers(self) -> Mapping[str, Tensor]:
        """A tensor of its shape for every parameter that it says something of; those in layers take no memory."""
        return {**shapes_of(self._all()), **self.diagonal}

    def parameter_names(self) -> list[str]:
        """Names of the parameters in factored layers, whichever process has them."""
        return list(shapes_of(self._all()))

    def _all(self) -> dict[str, Any]:
        """All layers in their order, those elsewhere by what is known of them."""
        return {name: self.get(name, self.elsewhere.get(name)) for name in in_order(self, self.elsewhere)}

    def __add__(self, other: FactoredImportance) -> FactoredImportance:
        """Layer by layer, see above; layers and parameters in only one of the two keep their value.

        Raises:
            ParameterMismatchError: shapes differ, or the processes that have a layer.
        """
        apart = sorted((self.keys() & other.elsewhere.keys()) | (other.keys() & self.elsewhere.keys()))
        if apart:
            raise ParameterMismatchError(
                f"FactoredImportance: cannot add: {', '.join(map(repr, apart))} of the two are with different "
                "processes. Retain each by itself, which is also better, or add what is loaded from their folders."
            )
        wrong = [
            name for name in self if name in other and _block(self[name]) != _block(other[name])
        ]  # the diagonals check themselves
        mixed = sorted(
            (set(self.parameter_names()) & set(other.diagonal)) | (set(other.parameter_names()) & set(self.diagonal))
        )
        if wrong or mixed:
            listed = ", ".join(map(repr, [*wrong, *mixed]))
            raise ParameterMismatchError(
                f"FactoredImportance: cannot add: {listed} differ in shape, bias, or in being factored. "
                "Add their to_diagonal()."
            )
        diagonal = self.diagonal + other.diagonal
        in_both = {name: _joined(self[name], other[name]) for name in self if name in other}
        layers = {**self, **other, **in_both}
        known = {**self._all(), **other._all()}
        places = {name: place for place, name in enumerate(known)}
        layers = {name: layers[name] for name in known if name in layers}
        elsewhere = {
            name: replace(each, place=places[name]) for name, each in {**self.elsewhere, **other.elsewhere}.items()
        }
        shards = self.shards or other.shards
        return FactoredImportance(layers, diagonal, diagonal.info, elsewhere=elsewhere, shards=shards)

    def __mul__(self, factor: float) -> FactoredImportance:
        diagonal = self.diagonal * factor
        scaled = {name: f.scaled(factor) for name, f in self.items()}
        return self._like(scaled, diagonal, diagonal.info)

    __rmul__ = __mul__

    def with_info(self, **changes: Any) -> FactoredImportance:
        """The same, its `info` changed in these fields."""
        return self._like(self, self.diagonal, replace(self.info, **changes))

    def with_probes(self, probes: Any) -> FactoredImportance:
        """The same, with `Probes` of the task to be retained along with it (`probes_of`); a sum has none."""
        twin = copy.copy(self)
        twin.probes = probes
        return twin

    def to(self, device: torch.device | str) -> FactoredImportance:
        """The same on another device; probes stay where they are."""
        return self._like({name: f.to(device) for name, f in self.items()}, self.diagonal.to(device), self.info)

    def _like(
        self, layers: Mapping[str, KroneckerFactors], diagonal: Mapping[str, Tensor], info: ImportanceInfo
    ) -> FactoredImportance:
        """Of these, with what is elsewhere and the probes of this."""
        found = FactoredImportance(layers, diagonal, info, elsewhere=self.elsewhere, shards=self.shards)
        return found.with_probes(self.probes)

    def to_diagonal(self) -> Importance:
        """The diagonal of A (x) G, for every weight, with the diagonal of the rest: what `WVA` and a budget need.

        Of layers that are elsewhere there is none: each process has that of its own, whole.
        """
        values: dict[str, Tensor] = {}
        for name, f in self.items():
            table = torch.outer(blocks.diagonal(f.outputs), blocks.diagonal(f.inputs)).clamp(min=0)
            values |= zip(f.names(name), f.split(table))
        return Importance({**values, **self.diagonal}, self.info).with_probes(self.probes)

    def correlation(self, other: Importance | FactoredImportance) -> dict[str, float]:
        """Spearman's rank correlation of the diagonals of what both hold, by parameter; -1..1, NaN where constant."""
        return self.to_diagonal().correlation(other.to_diagonal())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the folder `path`: `factors.safetensors`, `importance.safetensors` (the diagonal), config, `README.md`.

        Of a sharded model every process calls it, and the first one writes what all of them have: the folder is that of
        one process, and loads whole. Layers are sent to it one by one; it has room for the diagonal, not for all
        factors, which lie on its disk meanwhile.

        Raises:
            OutputError: if it cannot be written, or holds what holdfast did not write; it is then unchanged.
        """
        if self.shards is None:
            with new_folder(path) as folder:
                _write(folder, self, self.diagonal, self.info)
            return
        diagonal = {name: whole_on_first(local(value), value) for name, value in self.diagonal.items()}
        write = lambda folder, layers: _write(folder, layers, diagonal, self.info)  # noqa: E731
        write_together(path, self, self.elsewhere, self.shards, write)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, model: nn.Module | None = None) -> FactoredImportance:
        """Read a folder that `save` wrote; with `model`, also check names and shapes against it.

        Raises:
            FileFormatError: a missing, truncated, edited or wrong-version file, or a folder without factors.
            ParameterMismatchError: names or shapes that do not match `model`.
        """
        found = read_folder(path, cls.saved_in)
        if model is not None:
            check_names(found.covers, model, where=f"FactoredImportance.load({str(path)!r})")
        return found

    @classmethod
    def saved_in(cls, saved: Saved) -> FactoredImportance:
        """Read one save of a folder; see `load`."""
        config, content = str(saved.path / IMPORTANCE_CONFIG), saved.description(IMPORTANCE_CONFIG)
        info = ImportanceInfo.from_dict(content, where=config)
        if "factors" not in content:
            raise FileFormatError(f"{config}: it holds no Kronecker factors. Load it with hf.Importance.load.")
        factors = factors_from(content["factors"], saved.tensors("factors"), where=config)
        return cls(factors, saved.tensors("importance"), info)


AnyImportance = Importance | FactoredImportance


def importance_of(
    layers: Mapping[str, KroneckerFactors], diagonal: Mapping[str, Tensor], info: ImportanceInfo
) -> AnyImportance:
    """The importance with these `layers` and this `diagonal`; an `Importance` where there is no layer."""
    return FactoredImportance(layers, diagonal, info) if layers else Importance(diagonal, info)


def load_importance(path: str | os.PathLike[str], *, model: nn.Module | None = None) -> AnyImportance:
    """Read a folder that `Importance.save` or `FactoredImportance.save` wrote.

    Raises:
        FileFormatError, ParameterMismatchError: as the classes' own `load`.
    """

    def kind(saved: Saved) -> type[Importance] | type[FactoredImportance]:
        return FactoredImportance if "factors" in saved.description(IMPORTANCE_CONFIG) else Importance

    found = read_folder(path, lambda saved: kind(saved).saved_in(saved))
    if model is not None:
        check_names(found.covers, model, where=f"load_importance({str(path)!r})")
    return found


def _block(f: KroneckerFactors) -> dict[str, Any]:
    """What its parameters are; which other layers read its input may change."""
    return {**f.form, "reads": None}


def _joined(a: KroneckerFactors, b: KroneckerFactors) -> KroneckerFactors:
    """The product with the partial traces of A_a (x) G_a + A_b (x) G_b."""
    total = a.trace() + b.trace()
    if total == 0:
        return a
    (A, G), (B, H) = ((f.inputs.double(), f.outputs.double()) for f in (a, b))
    inputs = blocks.trace(G) * A + blocks.trace(H) * blocks.reblocked(B, A.shape[1])
    outputs = blocks.trace(A) * G + blocks.trace(B) * blocks.reblocked(H, G.shape[1])
    return replace(
        a, inputs=(inputs / blocks.trace(inputs)).float(), outputs=(outputs / blocks.trace(outputs) * total).float()
    )


def factors_to_tensors(factors: Mapping[str, KroneckerFactors]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Factors as tensors by "weight/inputs" and "weight/outputs", and the forms of their layers as JSON values."""
    tensors = {f"{name}/inputs": f.inputs for name, f in factors.items()}
    tensors |= {f"{name}/outputs": f.outputs for name, f in factors.items()}
    return tensors, {name: f.form for name, f in factors.items()}


def factors_from(layers: Any, tensors: Mapping[str, Tensor], *, where: str) -> dict[str, KroneckerFactors]:
    """What `factors_to_tensors` was given.

    Raises:
        FileFormatError: the two do not fit each other.
    """
    known = layers if isinstance(layers, dict) else {}
    if {f"{name}/{part}" for name in known for part in ("inputs", "outputs")} != set(tensors):
        raise FileFormatError(f"{where}: 'factors' does not list the layers of factors.safetensors. Save it again.")
    factors = {}
    for name, described in known.items():
        form = read_form(described, name=name, where=where)
        factors[name] = KroneckerFactors(tensors[f"{name}/inputs"], tensors[f"{name}/outputs"], **form)
    return factors


def _write(
    folder: Path, layers: Mapping[str, KroneckerFactors], diagonal: Mapping[str, Tensor], info: ImportanceInfo
) -> None:
    tensors, described = factors_to_tensors(layers)
    write_tensors(folder, "factors", tensors)
    write_tensors(folder, "importance", diagonal)
    write_description(folder / IMPORTANCE_CONFIG, {**asdict(info), "factors": described})
    write_text(folder / "README.md", _card(layers, diagonal, info))


def _card(layers: Mapping[str, KroneckerFactors], diagonal: Iterable[str], info: ImportanceInfo) -> str:
    rows = "\n".join(
        f"| {name} | {tuple(f.shape)} | {tuple(f.inputs.shape)} | {tuple(f.outputs.shape)} | {f.trace():.4g} |"
        for name, f in layers.items()
    )
    rest = ", ".join(diagonal) or "none"
    return f"""# Importance of the layers of {info.model or "a model"}

Kronecker-factored curvature, measured with holdfast {info.library_version}.

- kind: {info.kind}; examples: {info.num_examples}; targets: {info.num_targets}; loss: {info.loss}; unit: {info.unit}
- diagonal: {rest}

    import holdfast as hf
    importance = hf.FactoredImportance.load("THIS FOLDER", model=model)

| weight | shape | inputs | outputs | trace |
| --- | --- | --- | --- | --- |
{rows}
"""
