"""Data by a name, a path or a function: always one `Task`, with what is held out of it."""

from __future__ import annotations

import hashlib
import os
import random
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from holdfast.errors import DataFileError, OptionError
from holdfast.lab.importing import check_takes, imported
from holdfast.lab.registry import Entry, Registry
from holdfast.lab.streams.digits import digits
from holdfast.lab.streams.examples import Examples
from holdfast.lab.streams.files import INPUTS, PARTS, TARGETS, read_data
from holdfast.lab.streams.mnist import mnist
from holdfast.lab.streams.pictures import PictureSettings, fitted
from holdfast.lab.streams.stream import Task

DATA: Registry[Entry] = Registry("data set", Entry)
"""Data by name; `make(data_dir)` gives a `Task`, or what `as_task` takes."""

register_data = DATA.register

register_data("digits", summary="1,797 embedded digits of 8x8 pixels")(lambda data_dir: digits())
register_data("mnist", summary="MNIST, downloaded once unless --data-dir has it")(mnist)

_TEST_SHARE, _VALIDATION_SHARE = 6, 12

AS_THEY_ARE = PictureSettings()


def load_data(
    source: str | os.PathLike[str],
    *,
    data_dir: str | os.PathLike[str] | None = None,
    pictures: PictureSettings = AS_THEY_ARE,
) -> Task:
    """The data of a name, a path or a function; those that were read last are kept in memory.

    Args:
        source: a name of `DATA`; a `.npz` file, a folder with IDX files as MNIST has them, a folder of images with a
            folder a class, perhaps below train, validation and test, or a folder that `datasets` saved; or
            "module:function", called without arguments, that gives what `as_task` takes.
        data_dir: where MNIST is; see `mnist`.
        pictures: how pictures are read, and what is made of them.

    Raises:
        DataFileError: it is no name and no path, or cannot be read.
        OptionError: it holds nothing that can be learned.
    """
    if not isinstance(source, str | os.PathLike):
        raise OptionError(
            f"data: a {type(source).__name__}; expected a name, a path or module:function, which may return arrays."
        )
    source = os.fspath(source)
    if source in DATA:
        place = data_dir or (os.environ.get("HOLDFAST_DATA") if source == "mnist" else None)
        return _named(source, None if place is None else os.fspath(place), id(DATA[source]), pictures)
    if (path := Path(source)).exists():
        return _read(path.absolute(), path.stat().st_mtime_ns, pictures)  # a file that is written anew is read anew
    if ":" not in source:
        raise DataFileError(
            f"data {source!r}: no such file or folder, and no name of data ({', '.join(DATA)}). Give a path, a "
            "name or module:function."
        )
    return _made(source, pictures)


@lru_cache(maxsize=4)
def _named(name: str, data_dir: str | None, entry: int, pictures: PictureSettings) -> Task:
    return fitted(as_task(DATA[name](data_dir), name=name), pictures)


@lru_cache(maxsize=4)
def _read(path: Path, written: int, pictures: PictureSettings) -> Task:
    return fitted(as_task(read_data(path, pictures), name=path.stem), pictures)


@lru_cache(maxsize=4)
def _made(source: str, pictures: PictureSettings) -> Task:
    return fitted(as_task(_called(source), name=source.partition(":")[2]), pictures)


def as_task(found: Any, *, name: str) -> Task:
    """Data in any usual form as a task: what to train, to validate and to test on.

    What lacks is held out of the training data in an order that only their number decides: a sixth to test, then a
    twelfth to validate.

    Args:
        found: a `Task`; a map-style dataset of (input, target) or of mappings, or a Hugging Face dataset; a pair
            (inputs, targets) of arrays; a sequence of two or three of these (train, test, and validation between them),
            or a mapping of them by part.
        name: for people.

    Returns:
        Inputs float32 [N, ...], or bytes, of which 255 stands for 1; targets int64 [N] from 0 up, of whatever labels
        in their order, or float32 [N, C] of a regression.

    Raises:
        OptionError: it has none of these forms, or parts that do not fit together.
    """
    if isinstance(found, Task):
        return found
    parts = {part: _arrays(own, f"{name}, {part}") for part, own in _parts(found).items()}
    if "train" not in parts:
        raise OptionError(f"data {name}: parts {', '.join(parts)}; expected one that is called train.")
    kinds = {np.issubdtype(targets.dtype, np.floating) for _, targets in parts.values()}
    if len(kinds) > 1:
        raise OptionError(f"data {name}: numbers in one part and classes in another; expected one kind of target.")
    labels = None
    if not np.issubdtype(parts["train"][1].dtype, np.floating):
        labels = np.unique(parts["train"][1])
        for part, (_, targets) in parts.items():
            if new := sorted(set(np.unique(targets).tolist()) - set(labels.tolist())):
                raise OptionError(f"data {name}: classes {new} of {part} are not among those to train on.")
    examples = {part: _examples(*arrays, labels, f"{name}, {part}") for part, arrays in parts.items()}
    shapes = {tuple(part.stored.shape[1:]) for part in examples.values()}
    if len(shapes) > 1:
        raise OptionError(
            f"data {name}: inputs of shapes {sorted(map(list, shapes))}; expected one shape in all parts."
        )
    if labels is None and _is_one_hot(examples["train"].targets):
        warnings.warn(
            f"data {name}: each row of its targets is a single 1 among zeros, so they are likely classes; they are "
            "learned as numbers. Give targets.argmax(1) to have classes.",
            stacklevel=2,
        )
    if labels is not None and len(labels) < 2:
        raise OptionError(f"data {name}: one class alone, {labels[0]}; expected two or more, to be told apart.")
    for part, share in (("test", _TEST_SHARE), ("validation", _VALIDATION_SHARE)):
        if part not in examples:
            examples["train"], examples[part] = _held_out(examples["train"], share)
    width = len(labels) if labels is not None else examples["train"].targets.shape[1]
    return Task(name, examples["train"], examples["validation"], examples["test"], tuple(range(width)))


_fingerprints: WeakKeyDictionary[Task, str] = WeakKeyDictionary()


def fingerprint(*tasks: Task) -> str:
    """Sixteen hexadecimal digits that stand for all examples of data, in their order."""
    if len(tasks) != 1:
        return hashlib.sha256(" ".join(map(fingerprint, tasks)).encode()).hexdigest()[:16]
    task = tasks[0]
    if task not in _fingerprints:
        digest = hashlib.sha256()
        for part in (task.train, task.validation, task.test):
            dtype = torch.float32 if part.stored.dtype == torch.uint8 else part.stored.dtype
            digest.update(f"{dtype} {[len(part), *part.stored.shape[1:]]}".encode())
            for inputs, _ in part.batches(4096):  # as numbers, whatever they are stored as
                digest.update(inputs.contiguous().numpy().data)
            digest.update(f"{part.targets.dtype} {list(part.targets.shape)}".encode())
            digest.update(part.targets.contiguous().numpy().data)
        _fingerprints[task] = digest.hexdigest()[:16]
    return _fingerprints[task]


def _called(source: str) -> Any:
    """What a function of one's own gives, the same each time: it draws at random under seed 0."""
    make = imported(source, what="data")
    check_takes(make, (), what=f"data {source}")
    states = random.getstate(), np.random.get_state()
    random.seed(0)
    np.random.seed(0)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return make()
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def _parts(found: Any) -> dict[str, Any]:
    if isinstance(found, Mapping):
        known = {part: found[key] for key in found if (part := PARTS.get(str(key)))}
        return known or {"train": found}
    if isinstance(found, tuple | list) and 2 <= len(found) <= 3 and not _is_array(found[0]):
        return dict(zip(("train", "test") if len(found) == 2 else ("train", "validation", "test"), found))
    return {"train": found}


def _arrays(found: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets of one part."""
    if isinstance(found, Sequence) and len(found) == 2 and _is_array(found[0]):
        inputs, targets = map(_array, found)
    elif hasattr(found, "__getitem__") and hasattr(found, "__len__") and len(found):
        inputs, targets = _of_items([found[number] for number in range(len(found))], name)
    else:
        raise OptionError(
            f"data {name}: a {type(found).__name__}; expected a Task, a dataset of (input, target), a Hugging Face "
            "dataset, or arrays (inputs, targets)."
        )
    if len(inputs) != len(targets) or not len(inputs):
        raise OptionError(f"data {name}: {len(inputs)} inputs and {len(targets)} targets; expected as many, above 0.")
    return inputs, targets


def _of_items(items: Sequence[Any], name: str) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(items[0], Mapping):
        own, wanted = (_column(items[0], known, name) for known in (INPUTS, TARGETS))
        items = [(item[own], item[wanted]) for item in items]
    if not all(isinstance(item, Sequence) and len(item) >= 2 for item in items):
        raise OptionError(f"data {name}: its items are {type(items[0]).__name__}; expected (input, target).")
    inputs = [np.asarray(item[0]) for item in items]
    if len({each.shape for each in inputs}) > 1:
        raise OptionError(f"data {name}: inputs of different shapes; expected one. Resize the images, or pad.")
    return np.stack(inputs), np.asarray([_array(item[1]) for item in items])


def _column(item: Mapping[str, Any], known: Iterable[str], name: str) -> str:
    found = next((column for column in known if column in item), None)
    if found is None:
        raise OptionError(f"data {name}: columns {', '.join(item)}; expected one of {', '.join(known)}.")
    return found


def _is_array(found: Any) -> bool:
    return isinstance(found, np.ndarray | Tensor)


def _array(found: Any) -> np.ndarray:
    return found.numpy(force=True) if isinstance(found, Tensor) else np.asarray(found)


def _examples(inputs: np.ndarray, targets: np.ndarray, labels: np.ndarray | None, name: str) -> Examples:
    """As a network takes them: images with their channels first."""
    if inputs.dtype == np.uint8:
        if inputs.ndim == 4 and inputs.shape[-1] in (1, 3, 4) and inputs.shape[1] not in (1, 3, 4):
            inputs = np.moveaxis(inputs, -1, 1)
        elif inputs.ndim == 3:
            inputs = inputs[:, None]
    if inputs.ndim < 2:
        raise OptionError(f"data {name}: inputs of shape {list(inputs.shape)}; expected [N, ...], a row an example.")
    if not (np.issubdtype(inputs.dtype, np.number) or inputs.dtype == np.bool_) or np.iscomplexobj(inputs):
        raise OptionError(f"data {name}: inputs of type {inputs.dtype}; expected numbers.")
    is_bytes = inputs.dtype == np.uint8
    x = torch.from_numpy(_writable(np.ascontiguousarray(inputs, dtype=np.uint8 if is_bytes else np.float32)))
    if not is_bytes and not bool(x.isfinite().all()):
        raise OptionError(f"data {name}: an input is not finite. Clean the data.")
    if labels is None:
        y = torch.from_numpy(np.ascontiguousarray(targets, dtype=np.float32)).reshape(len(targets), -1)
        if not bool(y.isfinite().all()):
            raise OptionError(f"data {name}: a target is not finite. Clean the data.")
        return Examples(x, y)
    if targets.ndim != 1:
        raise OptionError(
            f"data {name}: targets of shape {list(targets.shape)}; expected one class an example, such as "
            "targets.argmax(1) of rows of a single 1."
        )
    return Examples(x, torch.from_numpy(np.searchsorted(labels, targets)))


def _writable(array: np.ndarray) -> np.ndarray:
    """Itself, or a copy of what may not be written to, which torch warns of."""
    return array if array.flags.writeable else array.copy()


def _is_one_hot(targets: Tensor) -> bool:
    return targets.shape[1] > 1 and bool(((targets == 0) | (targets == 1)).all() and (targets.sum(1) == 1).all())


def _held_out(examples: Examples, share: int) -> tuple[Examples, Examples]:
    """What remains, and one of `share` examples that is held out."""
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0))
    count = len(examples) // share
    if not 0 < count < len(examples):
        raise OptionError(
            f"data: {len(examples)} examples to train on; expected at least {share}, to hold some out. Give more, or "
            "parts for validation and test."
        )
    return examples.select(order[count:].sort().values), examples.select(order[:count].sort().values)
