"""A head as a folder: its sums as safetensors, and what it is as JSON."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Annotated, Any, TypeVar

import torch
from torch import Tensor

from holdfast.analytic.options import HeadOptions
from holdfast.analytic.sums import ClassSums
from holdfast.errors import FileFormatError, OptionError
from holdfast.files import Saved, new_folder, read_folder, write_description, write_tensors, write_text
from holdfast.files.typed import Count, Within, listed_mistakes, typed
from holdfast.version import __version__

CONFIG = "head_config.json"
"""Where a folder of a head says what it is."""

_STEM = "head"
_NUMBER: Any = Count
_WIDTH: Any = Annotated[int, Within(1, 10**7)]
_NOTES: Mapping[str, Any] = {
    "kind": str,
    "projection": _NUMBER | None,
    "seed": _NUMBER,
    "ridge": Any,
    "shrinkage": float,
    "keep_class_sums": bool,
    "width": _WIDTH | None,
    "classes": list[int],
    "projection_sha256": str | None,
}


T = TypeVar("T")


def save(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
    """Write the folder of a head's state; see `AnalyticHead.save`."""
    with new_folder(path) as folder:
        write_tensors(folder, _STEM, tensors)
        write_description(folder / CONFIG, {**notes, "library_version": __version__})
        write_text(folder / "README.md", _card(notes, tensors))


def load(path: str | os.PathLike[str], made: Callable[..., T]) -> T:
    """What `made(tensors, notes, where=...)` makes of the folder of a head; see `AnalyticHead.load`."""

    def read(saved: Saved) -> T:
        notes = saved.description(CONFIG)  # first: it is what says that the folder is another thing
        return made(saved.tensors(_STEM), notes, where=str(saved.path))

    return read_folder(path, read)


def read_state(
    tensors: Mapping[str, Tensor], notes: Mapping[str, Any], *, where: str
) -> tuple[HeadOptions, int | None, ClassSums]:
    """Options, width and sums, from what `AnalyticHead.state` gave.

    Raises:
        FileFormatError: something is missing, misshapen, not finite or out of its range.
    """
    found, mistakes = typed(notes, _NOTES)
    if mistakes:
        raise FileFormatError(f"{where} does not say what the head is: {listed_mistakes(mistakes)}. Save it again.")
    try:
        options = HeadOptions(**{own.name: found[own.name] for own in fields(HeadOptions)})
    except OptionError as error:
        raise FileFormatError(f"{where} does not say what the head is: {error} Save it again.") from error
    width, classes = found["width"], found["classes"]
    expected = _shapes(options, width, classes)
    wrong = [f"{name} is {_told(tensors.get(name))}, expected {_form(*form)}" for name, form in expected.items()
             if name not in tensors or (tensors[name].dtype, tuple(tensors[name].shape)) != form]  # fmt: skip
    wrong += [f"{name} is not among the sums of such a head" for name in tensors if name not in expected]
    if classes != sorted(set(classes)) or (classes and width is None):
        wrong.append("the classes are not in order, each once, with a width")
    if wrong:
        raise FileFormatError(f"{where}: the sums are not those of the head: {'; '.join(wrong)}. Save it again.")
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()) or bool((_counts(tensors) < 1).any()):
        raise FileFormatError(
            f"{where}: the sums hold a number that is not finite, or a class of no examples. Fit anew."
        )
    return options, width, _sums(options, classes, tensors)


def check_projection(digest: str | None, notes: Mapping[str, Any], *, where: str) -> None:
    """Raise `FileFormatError` where the seed gives a projection of another digest than that of the saved head."""
    saved = notes["projection_sha256"]
    if digest != saved:
        raise FileFormatError(
            f"{where}: seed {notes['seed']} gives the projection {str(digest)[:12]}, and the sums are of "
            f"{str(saved)[:12]}. The description was edited: save the head again."
        )


_DtypeAndShape = tuple[torch.dtype, tuple[int, ...]]


def _shapes(options: HeadOptions, width: int | None, classes: list[int]) -> dict[str, _DtypeAndShape]:
    """Dtype and shape of every tensor that a head has."""
    if not classes:
        return {}
    C, M = len(classes), options.projection or width or 0
    shapes: dict[str, _DtypeAndShape] = {"n": (torch.int64, (C,)), "s": (torch.float64, (C, M))}
    more: dict[str, dict[str, _DtypeAndShape]] = {
        "none": {},
        "pooled": {"G": (torch.float64, (M, M))},
        "apart": {"G_c": (torch.float64, (C, M, M))},
    }
    return shapes | more[options.second]


def _sums(options: HeadOptions, classes: list[int], tensors: Mapping[str, Tensor]) -> ClassSums:
    if not classes:
        return ClassSums(options.second)
    counts, sums, grams = tensors["n"].tolist(), tensors["s"], tensors.get("G_c", ())
    return ClassSums(
        options.second,
        dict(zip(classes, counts)),
        {c: row.clone() for c, row in zip(classes, sums)},
        {c: gram.clone() for c, gram in zip(classes, grams)},
        tensors.get("G"),
    )


def _counts(tensors: Mapping[str, Tensor]) -> Tensor:
    return tensors.get("n", torch.ones(1, dtype=torch.int64))


def _told(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else _form(tensor.dtype, tuple(tensor.shape))


def _form(dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    return f"{str(dtype).removeprefix('torch.')} {list(shape)}"


def _card(notes: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    counts = tensors["n"].tolist() if "n" in tensors else []
    rows = "\n".join(f"| {c} | {count} |" for c, count in zip(notes["classes"], counts))
    of = f"{notes['projection']} random features of seed {notes['seed']}" if notes["projection"] else "the features"
    return f"""# A head of kind {notes["kind"]}

Sums over examples that an analytic head is solved from, made with holdfast {__version__}: counts, sums and second
moments of {of}, by class. No example is in it, but means of classes are.

- features an example: {notes["width"]}; ridge: {notes["ridge"]}; shrinkage: {notes["shrinkage"]}

    import holdfast as hf
    head = hf.AnalyticHead.load("THIS FOLDER")

| class | examples |
| --- | --- |
{rows}
"""
