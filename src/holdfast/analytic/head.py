"""A head that learns new classes from sums alone, and forgets none of the old."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any, assert_never

import torch
from torch import Tensor

from holdfast.analytic import files
from holdfast.analytic.means import nearest_mean
from holdfast.analytic.options import HeadKind, HeadOptions, Ridge
from holdfast.analytic.projection import RandomProjection
from holdfast.analytic.ridge import ridge_regression
from holdfast.analytic.slda import discriminant
from holdfast.analytic.solution import Solution
from holdfast.analytic.sums import ClassSums
from holdfast.errors import BatchError, NotFiniteError, OptionError, StateError
from holdfast.tensors import wide_dtype

_ROWS = 4096
"""Features that are made float64, and projected, at a time."""


class AnalyticHead:
    """A linear head on features that stay as they are, solved in closed form from sums over examples.

        head = hf.AnalyticHead("ridge", projection=2000)
        for features, labels in hf.features_of(model, data):    # today's classes; no older data
            head.fit(features, labels)
        head(new_features).argmax(1)                             # columns in the order of head.classes

    The sums of all data are the sums of their parts. So it is the same head, up to the rounding of float64, whether
    classes come one after the other, in any order, mixed, or on several machines (`merge`). No old example is kept,
    there is no step size and no epoch, and nothing is forgotten but by `forget`. What it cannot do is learn features.

    | kind | what it is | source |
    | --- | --- | --- |
    | "means" | the class whose mean is nearest (`means.py`) | iCaRL, arXiv 1611.07725 |
    | "slda" | linear discriminant analysis (`slda.py`) | Hayes & Kanan 2020, arXiv 1909.01520 |
    | "ridge" | ridge regression to one-hot labels (`ridge.py`) | ACIL, arXiv 2205.14922 |
    | "ridge" with a projection | the same on random features (`projection.py`) | RanPAC, arXiv 2307.02251 |

    Sums and solution are float64 on `device`. Features may be of any real dtype and on any device; scores come back on
    theirs, in float32 or, where that is wider, their own dtype.

    Args:
        kind: see the table.
        projection: M, the number of random features relu(W^T f) that take the features' place; None: the features
            themselves, M = d.
        seed: of the projection, >= 0.
        ridge: lambda > 0, the penalty on squared weights beside the sum of squared errors over examples; "gcv": chosen
            by generalised cross-validation.
        shrinkage: epsilon in 0..1, the part of the covariance that is replaced by a multiple of the identity.
        keep_class_sums: second moments are kept for each class, so that `forget` needs no features; "means", which has
            none, never needs them.
        device: of the sums; it must have float64, as CPU and CUDA do.

    Raises:
        UnknownNameError: there is no such kind.
        OptionError: a value is out of its range, or belongs to another kind.

    Cost: memory 8 (M^2 + M C) bytes for C classes, with `keep_class_sums` 8 (C M^2 + M C), of "means" 8 M C, and up to
    three times as much while a batch is added; the projection 8 d M on top, in memory alone. B (M^2 + d M)
    multiplications to fit B examples, B (M C + d M) to score them, and about 9 M^3 (given a ridge, or "slda": M^3 / 3)
    to solve, once, when scores are first asked for.
    """

    def __init__(
        self,
        kind: HeadKind = "ridge",
        *,
        projection: int | None = None,
        seed: int = 0,
        ridge: Ridge = "gcv",
        shrinkage: float = 1e-4,
        keep_class_sums: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        self.options = HeadOptions(
            kind=kind,
            projection=projection,
            seed=seed,
            ridge=ridge,
            shrinkage=shrinkage,
            keep_class_sums=keep_class_sums,
        )
        self._begin(ClassSums(self.options.second), torch.device(device), width=None)

    def _begin(self, sums: ClassSums, device: torch.device, *, width: int | None) -> None:
        self._sums, self._device = sums, device
        self._width: int | None = None
        self._projection: RandomProjection | None = None
        self._solution: Solution | None = None
        if width is not None:
            self._set_width(width)

    @property
    def classes(self) -> tuple[int, ...]:
        """The labels that were added, ascending: the columns of scores."""
        return self._sums.classes

    @property
    def counts(self) -> dict[int, int]:
        """Examples of each class, by label."""
        return {c: self._sums.counts[c] for c in self.classes}

    @property
    def width(self) -> int | None:
        """The number d of features of an example; None before the first."""
        return self._width

    @property
    def device(self) -> torch.device:
        """Where the sums are."""
        return self._device

    @property
    def projection_digest(self) -> str | None:
        """The sha256 of the projection's weights; None where there are none, or not yet."""
        return None if self._projection is None else self._projection.digest

    @property
    def nbytes(self) -> int:
        """Memory of the sums: what `state` gives, without the projection."""
        return sum(tensor.nbytes for tensor in self.state()[0].values())

    @property
    def solution(self) -> Solution:
        """W and b, with the penalty that was chosen; solved when first asked for, and again after a change.

        Raises:
            StateError: there is no class, or what was added cannot be solved.
        """
        if self._solution is None:
            self._solution = self._solved()
        return self._solution

    def fit(self, features: Tensor, labels: Tensor) -> AnalyticHead:
        """Add examples, of old classes or of new ones; any number of times, in any order.

        Args:
            features: [B, d], real and finite.
            labels: [B], whole numbers.

        Returns:
            Itself.

        Raises:
            BatchError: shapes or dtypes are others, or d is another than before.
            NotFiniteError: a feature is NaN or infinite.

        Nothing is added where it raises.
        """
        where = "AnalyticHead.fit"
        self._check_features(features, where=where)
        labels = _checked_labels(labels, len(features), where=where)
        self._set_width(features.shape[1])
        added = ClassSums(self.options.second)
        for part, own in zip(features.detach().split(_ROWS), labels.split(_ROWS)):
            if len(part):
                added.add(self._phi(part), own.to(self._device))
        self._sums.merge(added, device=self._device)
        self._solution = None
        return self

    def merge(self, other: AnalyticHead) -> AnalyticHead:
        """Add all that another head was given, such as by another process on its own data; the other is left alone.

        Returns:
            Itself.

        Raises:
            OptionError: the two differ in kind, width, projection, seed or in what is kept.
        """
        if not isinstance(other, AnalyticHead):
            raise OptionError(f"AnalyticHead.merge: found a {type(other).__name__}; expected an AnalyticHead.")
        mine, theirs = asdict(self.options), asdict(other.options)
        if None not in (self.width, other.width):
            mine, theirs = mine | {"width": self.width}, theirs | {"width": other.width}
        if wrong := [f"{name} {mine[name]!r} and {theirs[name]!r}" for name in mine if mine[name] != theirs[name]]:
            raise OptionError(f"AnalyticHead.merge: the two differ in {', '.join(wrong)}. Make both with the same.")
        if other.width is not None:
            self._set_width(other.width)
            self._sums.merge(other._sums, device=self._device)
        self._solution = None
        return self

    def forget(self, c: int, *, features: Tensor | None = None) -> AnalyticHead:
        """Take a class back: the head is then the one that never saw it.

        Args:
            c: its label.
            features: [n_c, d], all that were added of this class; left out where the class's own sums are kept
                (`keep_class_sums`, and kind "means").

        Returns:
            Itself.

        Raises:
            OptionError: there is no such class; features are lacking, or needless; or they are not those that were
                added, as far as their number, sum and second moments tell. Nothing is changed then.
            BatchError, NotFiniteError: as in `fit`.

        Without the features it is exact to the bit; with them up to the rounding of float64, and of the features where
        a backbone in float32 computes them anew.
        """
        where = "AnalyticHead.forget"
        if c not in self._sums.counts:
            raise OptionError(f"{where}: class {c!r} was never added; found {_listed(self.classes)}. Name one of them.")
        pooled = self._sums.second == "pooled"
        if pooled and features is None:
            raise OptionError(
                f"{where}: class {c} is pooled with the others. Give the features that were added of it, "
                "forget(c, features=...), or make the head with keep_class_sums=True."
            )
        if features is None:
            self._sums.drop(c)
        elif pooled:
            self._check_features(features, where=where)
            phi = [self._phi(part) for part in features.detach().split(_ROWS)]
            self._sums.take_back(c, torch.cat(phi))
        else:
            raise OptionError(f"{where}: the sums of class {c} are kept, and features have no effect. Leave them out.")
        self._solution = None
        return self

    @torch.no_grad()
    def scores(self, features: Tensor) -> Tensor:
        """A score for each class, the largest for the likeliest; no probabilities.

        Args:
            features: [B, d].

        Returns:
            [B, C], columns in the order of `classes`, on the features' device, in float32 or their own wider dtype.

        Raises:
            BatchError, NotFiniteError: as in `fit`.
            StateError: nothing was added yet, or what was added cannot be solved.
        """
        solution = self.solution
        self._check_features(features, where="AnalyticHead.scores")
        parts = [self._phi(part) @ solution.weight.T + solution.bias for part in features.split(_ROWS)]
        return torch.cat(parts).to(features.device, wide_dtype(features))

    __call__ = scores

    def predict(self, features: Tensor) -> Tensor:
        """The label of the largest score, int64 [B]; see `scores`."""
        labels = torch.tensor(self.classes, dtype=torch.int64, device=features.device)
        return labels[self.scores(features).argmax(1)]

    def to(self, device: torch.device | str) -> AnalyticHead:
        """Put the sums on another device; returns itself."""
        self._device, self._solution = torch.device(device), None
        self._sums.to(device)
        return self

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Its sums by name ("n", "s", and "G" or "G_c"), and JSON notes; the projection is its seed and digest."""
        sums, tensors = self._sums, {}
        if sums.counts:
            tensors = {"n": torch.tensor([sums.counts[c] for c in self.classes], dtype=torch.int64), "s": sums.s}
            if sums.second == "pooled":
                tensors["G"] = sums.G
            elif sums.second == "apart":
                tensors["G_c"] = torch.stack([sums.grams[c] for c in self.classes])
        notes = {"width": self.width, "classes": list(self.classes), "projection_sha256": self.projection_digest}
        return tensors, {**asdict(self.options), **notes}

    @classmethod
    def from_state(
        cls, tensors: Mapping[str, Tensor], notes: Mapping[str, Any], *, where: str, device: torch.device | str = "cpu"
    ) -> AnalyticHead:
        """The head that gave this `state`.

        Raises:
            FileFormatError: it is damaged, or the projection that its seed gives is another; `where` is named.
        """
        options, width, sums = files.read_state(tensors, notes, where=where)
        head = cls(**asdict(options), device=device)
        sums.to(head.device)
        head._begin(sums, head.device, width=width)
        files.check_projection(head.projection_digest, notes, where=where)
        return head

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the folder `path`: `head.safetensors`, `head_config.json` and `README.md`, whole or not at all.

        Raises:
            OutputError: it cannot be written, or holds what holdfast did not write; it is then unchanged.
        """
        files.save(path, *self.state())

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> AnalyticHead:
        """Read a folder that `save` wrote.

        Raises:
            FileFormatError: a file is missing, truncated, edited or of another version, or the projection that the seed
                gives is another than that of the head that was saved.
        """
        return files.load(path, partial(cls.from_state, device=device))

    def __repr__(self) -> str:
        size = "no examples yet" if self.width is None else f"width {self.width}, {len(self.classes)} classes"
        projected = f", {self.options.projection} random features" if self.options.projection else ""
        return f"AnalyticHead({self.options.kind}{projected}, {size}, {sum(self._sums.counts.values())} examples)"

    def _solved(self) -> Solution:
        if not self.classes:
            raise StateError("AnalyticHead: no class was added yet. Call fit(features, labels) first.")
        options = self.options
        match options.kind:
            case "means":
                return nearest_mean(self._sums)
            case "slda":
                return discriminant(self._sums, shrinkage=options.shrinkage)
            case "ridge":
                return ridge_regression(self._sums, ridge=None if options.ridge == "gcv" else options.ridge)
            case other:
                assert_never(other)

    def _phi(self, features: Tensor) -> Tensor:
        """What is summed: the features, or random ones in their place, float64 [B, M]."""
        plain = features.to(self._device, torch.float64)
        return plain if self._projection is None else self._projection(plain)

    def _set_width(self, width: int) -> None:
        if self._width is None:
            self._width = width
            if self.options.projection is not None:
                self._projection = RandomProjection(width, self.options.projection, seed=self.options.seed)

    def _check_features(self, features: Tensor, *, where: str) -> None:
        if not isinstance(features, Tensor) or features.ndim != 2 or features.is_complex():
            found = f"{features.dtype} {list(features.shape)}" if isinstance(features, Tensor) else type(features)
            raise BatchError(
                f"{where}: found features {found}; expected real numbers of shape [B, d], a row an example."
            )
        if self._width is not None and features.shape[1] != self._width:
            raise BatchError(
                f"{where}: found {features.shape[1]} features an example; this head was given {self._width}. Use the "
                "same layer of the same backbone."
            )
        if count := int((~torch.isfinite(features)).sum()):
            raise NotFiniteError(
                f"{where}: {count} of {features.numel()} features are NaN or infinite. Look at the backbone's weights "
                "and inputs."
            )


def _checked_labels(labels: Tensor, count: int, *, where: str) -> Tensor:
    if not isinstance(labels, Tensor) or labels.shape != (count,):
        found = list(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
        raise BatchError(f"{where}: found labels {found}; expected a tensor of shape [{count}], one an example.")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise BatchError(f"{where}: the labels are {labels.dtype}; expected whole numbers, such as torch.int64.")
    return labels.detach().to(torch.int64)


def _listed(classes: tuple[int, ...], most: int = 10) -> str:
    shown = ", ".join(map(str, classes[:most])) or "none yet"
    return shown if len(classes) <= most else f"{shown} and {len(classes) - most} more"
