"""Data that stand in files: arrays of numpy, IDX files, folders of images, what the datasets library saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from holdfast.errors import DataFileError
from holdfast.lab.packages import check_installed
from holdfast.lab.streams.idx import read_idx
from holdfast.lab.streams.mnist import FILES, mnist
from holdfast.lab.streams.pictures import PictureSettings, read_pictures

PARTS = {"train": "train", "training": "train", "val": "validation", "valid": "validation"}
PARTS |= {"validation": "validation", "test": "test", "testing": "test"}
"""How parts of data are called, and what each is."""

INPUTS = ("x", "images", "image", "img", "inputs", "input", "pixel_values", "data", "features")
TARGETS = ("y", "labels", "label", "targets", "target", "fine_label")
"""How inputs and targets are called."""


def read_data(path: Path, pictures: PictureSettings) -> Any:
    """What a file or a folder holds, in a form that `as_task` takes; `pictures` is how a folder of them is read.

    Raises:
        DataFileError: it cannot be read, or holds none of the known forms.
        OptionError: a package that reads it is not installed.
    """
    if path.is_file() and path.suffix == ".npz":
        return _npz(path)
    if path.is_dir():
        names = {each.name for each in path.iterdir()}
        if {"dataset_info.json", "dataset_dict.json"} & names:
            return _hugging_face(path)
        if any(name.removesuffix(".gz") in names or name in names for name in FILES):
            return _idx(path)
        if any(each.is_dir() for each in path.iterdir()):
            return _image_folder(path, pictures)
    raise DataFileError(
        f"{path}: no data; expected a .npz file, a folder with IDX files, a folder of images with a folder a class, or "
        "a folder that `datasets` saved."
    )


def _npz(path: Path) -> dict[str, Any]:
    """By part: x_train and y_train, train_images and train_labels, or x and y alone."""
    try:
        with np.load(path, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
    except (OSError, ValueError, EOFError) as error:
        raise DataFileError(f"{path}: no .npz of plain arrays. Write it with numpy.savez.") from error
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        words = name.lower().split("_")
        part = next((PARTS[word] for word in words if word in PARTS), "train")
        kind = "_".join(word for word in words if word not in PARTS)
        role = "inputs" if kind in INPUTS else "targets" if kind in TARGETS else None
        if role is not None:
            found.setdefault(part, {})[role] = array
    whole = {part: (own["inputs"], own["targets"]) for part, own in found.items() if len(own) == 2}
    if "train" not in whole:
        raise DataFileError(
            f"{path}: arrays {', '.join(arrays) or 'none'}; expected x_train and y_train, and x_test and y_test, or x "
            "and y alone."
        )
    return whole


def _idx(path: Path) -> Any:
    """The four files as MNIST has them; images of another size are parted as any others."""
    paths = [path / name if (path / name).exists() else (path / name).with_suffix("") for name in FILES]
    if read_idx(paths[2]).shape[1:] == (28, 28):
        return mnist(path)
    images, labels, test_images, test_labels = (read_idx(own).numpy() for own in paths)
    return {"train": (images, labels), "test": (test_images, test_labels)}


def _image_folder(path: Path, pictures: PictureSettings) -> dict[str, Any]:
    folders = [each for each in sorted(path.iterdir()) if each.is_dir()]
    parts = {PARTS[each.name]: each for each in folders if each.name in PARTS}
    return {part: read_pictures(folder, pictures) for part, folder in (parts or {"train": path}).items()}


def _hugging_face(path: Path) -> Any:
    check_installed("datasets", what=f"data {path}: what it saved is read", extra="transformers")
    from datasets import load_from_disk

    return load_from_disk(str(path))
