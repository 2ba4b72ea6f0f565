"""Importances of whole layers: Kronecker factors, with a diagonal for what is no layer."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.curvature import blocks
from holdfast.curvature.form import read_form
from holdfast.curvature.kronecker import KroneckerFactors
from holdfast.curvature.protocol import shapes_of
from holdfast.curvature.sharing import shared
from holdfast.errors import FileFormatError, NotFiniteError, ParameterMismatchError
from holdfast.files import Saved, new_folder, read_folder, write_description, write_tensors, write_text
from holdfast.records import IMPORTANCE_CONFIG, Importance, ImportanceInfo, check_names

_ROUNDING = 1e-5
"""How far a factor may be from symmetric and positive, relative to its norm: the rounding of float32 sums."""


class FactoredImportance(Mapping[str, KroneckerFactors]):
    """How much each layer matters: Kronecker factors by the canonical name of the layer's weight, a diagonal elsewhere.

    Importances add (`a + b`), scale (`2.0 * a`), compare (`a.correlation(b)`), save and load, as `Importance` does.
    A sum of Kronecker products is not one: `a + b` holds the product (sum_k Tr(G_k) A_k) (x) (sum_k Tr(A_k) G_k) over
    the total trace, which has the sum's partial traces. `EWC.retain` merges better than that: retain each by itself.

    Args:
        factors: name of a weight -> its layer's factors; cast to float32 and made exactly symmetric. Layers that read
            the same input and have equal A hold one tensor.
        diagonal: name -> tensor >= 0 of the parameter's shape, for parameters in no factored layer.
        info: how it was made.

    Attributes:
        diagonal: the `Importance` of the other parameters.
        info: as given.

    Raises:
        NotFiniteError: a factor is not finite, or has negative eigenvalues beyond rounding; every one is named.
        ParameterMismatchError: a factor's shape does not fit its layer's, or a parameter is there twice.
    """

    probes: Any = None
    """`Probes` of the same task, which `retain` takes along; no file of an importance has them."""

    def __init__(
        self, factors: Mapping[str, KroneckerFactors], diagonal: Mapping[str, Tensor], info: ImportanceInfo
    ) -> None:
        self.info = info
        where = f"FactoredImportance({info.kind})"
        self.diagonal = Importance(diagonal, info)
        _check_shapes(factors, where)
        self._factors = shared(_checked(factors, where))
        twice = sorted(set(self.parameter_names()) & set(self.diagonal))
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
        return f"FactoredImportance({self.info.kind}, {sizes})"

    @property
    def layers(self) -> FactoredImportance:
        """Itself: the part that is held by whole layers, by the name of the layer's weight."""
        return self

    @property
    def covers(self) -> Mapping[str, Tensor]:
        """A tensor of its shape for every parameter that it says something of; those in layers take no memory."""
        return {**shapes_of(self), **self.diagonal}

    def parameter_names(self) -> list[str]:
        """Names of the parameters in factored layers."""
        return list(shapes_of(self))

    def __add__(self, other: FactoredImportance) -> FactoredImportance:
        """Layer by layer, see above; layers and parameters in only one of the two keep their value."""
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
        return FactoredImportance({**self, **other, **in_both}, diagonal, diagonal.info)

    def __mul__(self, factor: float) -> FactoredImportance:
        diagonal = self.diagonal * factor
        scaled = {name: f.scaled(factor) for name, f in self.items()}
        return FactoredImportance(scaled, diagonal, diagonal.info).with_probes(self.probes)

    __rmul__ = __mul__

    def with_info(self, **changes: Any) -> FactoredImportance:
        """The same, its `info` changed in these fields."""
        return FactoredImportance(self, self.diagonal, replace(self.info, **changes)).with_probes(self.probes)

    def with_probes(self, probes: Any) -> FactoredImportance:
        """The same, with `Probes` of the task to be retained along with it (`probes_of`); a sum has none."""
        twin = copy.copy(self)
        twin.probes = probes
        return twin

    def to(self, device: torch.device | str) -> FactoredImportance:
        """The same on another device; probes stay where they are."""
        moved = {name: f.to(device) for name, f in self.items()}
        return FactoredImportance(moved, self.diagonal.to(device), self.info).with_probes(self.probes)

    def to_diagonal(self) -> Importance:
        """The diagonal of A (x) G, for every weight, with the diagonal of the rest: what `WVA` and a budget need."""
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

        Raises:
            OutputError: if it cannot be written, or holds what holdfast did not write; it is then unchanged.
        """
        tensors, described = factors_to_tensors(self)
        with new_folder(path) as folder:
            write_tensors(folder, "factors", tensors)
            write_tensors(folder, "importance", self.diagonal)
            write_description(folder / IMPORTANCE_CONFIG, {**asdict(self.info), "factors": described})
            write_text(folder / "README.md", _card(self))

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


def _check_shapes(factors: Mapping[str, KroneckerFactors], where: str) -> None:
    wrong = []
    for name, f in factors.items():
        out, inputs = f.matrix_shape
        if not (blocks.fits(f.inputs.shape, inputs) and blocks.fits(f.outputs.shape, out)):
            wrong.append(
                f"{name!r}, a weight of {tuple(f.shape)} {'without' if f.bias is None else 'with'} bias, has factors "
                f"{tuple(f.inputs.shape)} and {tuple(f.outputs.shape)}, expected {(inputs, inputs)} and {(out, out)}, "
                "or as many columns as the largest of equal diagonal blocks has"
            )
    if wrong:
        raise ParameterMismatchError(f"{where}: {'; '.join(wrong)}.")


def _checked(factors: Mapping[str, KroneckerFactors], where: str) -> dict[str, KroneckerFactors]:
    """The same in float32 and exactly symmetric."""
    found, bad = {}, []
    for name, f in factors.items():
        parts = {part: matrix.detach().to(torch.float32) for part, matrix in f.tensors().items()}
        symmetric = {part: _symmetric(matrix) for part, matrix in parts.items()}
        faults = {part: _first_fault(matrix, symmetric[part]) for part, matrix in parts.items()}
        bad += [f"{part} of {name!r} ({fault})" for part, fault in faults.items() if fault]
        found[name] = replace(f, **symmetric)
    if bad:
        raise NotFiniteError(
            f"{where}: factors must be finite, symmetric and without negative eigenvalues; found {', '.join(bad)}. "
            "Look for NaN in the model's weights or the data, or an overflow under half precision."
        )
    return found


def _symmetric(matrix: Tensor) -> Tensor:
    if all(torch.equal(block, block.T) for block in blocks.blocks_of(matrix)):
        return matrix
    return blocks.blockwise(lambda block: (block + block.T) / 2, matrix)


def _first_fault(matrix: Tensor, symmetric: Tensor) -> str | None:
    pairs = zip(blocks.blocks_of(matrix), blocks.blocks_of(symmetric))
    return next((fault for pair in pairs if (fault := _fault(*pair))), None)


def _fault(matrix: Tensor, symmetric: Tensor) -> str | None:
    norm = _norm(matrix)
    if not math.isfinite(norm):
        return "an entry is not finite"
    if norm == 0:
        return None
    if matrix.data_ptr() != symmetric.data_ptr() and float((matrix - symmetric).norm()) > _ROUNDING / 2 * norm:
        return "not symmetric"
    for dtype in dict.fromkeys((torch.float32, _widest(matrix))):  # what the quicker finds positive is positive
        shifted = (symmetric.to(dtype) / norm).T  # whose columns lie in memory one after the other, as LAPACK has them
        shifted.diagonal().add_(_ROUNDING)
        info = torch.zeros((), dtype=torch.int32, device=matrix.device)
        if not int(torch.linalg.cholesky_ex(shifted, out=(shifted, info)).info):  # in place: factors are large
            return None
    return "a negative eigenvalue"


def _norm(matrix: Tensor) -> float:
    """In float64 by rows, for a copy of all of it would take twice its memory."""
    return math.hypot(*(float(rows.norm(dtype=_widest(matrix))) for rows in matrix.split(256)))


def _widest(matrix: Tensor) -> torch.dtype:
    return torch.float32 if matrix.device.type == "mps" else torch.float64


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


def _card(importance: FactoredImportance) -> str:
    info = importance.info
    rows = "\n".join(
        f"| {name} | {tuple(f.shape)} | {tuple(f.inputs.shape)} | {tuple(f.outputs.shape)} | {f.trace():.4g} |"
        for name, f in importance.items()
    )
    rest = ", ".join(importance.diagonal) or "none"
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
