"""Pictures: a folder of them decoded once into bytes, which stay on disk, and all of one size and as many channels."""

from __future__ import annotations

import hashlib
import io
import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from holdfast.choices import check_choices
from holdfast.errors import DataFileError, OptionError, OutputError
from holdfast.files.typed import Within
from holdfast.lab.packages import check_installed
from holdfast.lab.streams.download import cache_folder, placed
from holdfast.lab.streams.examples import Examples
from holdfast.lab.streams.stream import Task

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"}

_FORM = 1
"""Of the decoded files; those of another are made anew."""

_LUMA = (0.299, 0.587, 0.114)
"""ITU-R 601, as Pillow has it."""


@dataclass(frozen=True, kw_only=True)
class PictureSettings:
    """How pictures are read.

    Attributes:
        side: pictures are scaled until the shorter side has so many pixels, and the middle is cut out; None: as is.
        colors: "gray" makes gray pictures of all, of 1 channel, "rgb" colored ones, of 3; None: as they are.
        unreadable: a file of a folder of pictures that cannot be read is an error ("refuse"), or left out ("skip").
    """

    side: Annotated[int, Within(2, 4096)] | None = None
    colors: Literal["gray", "rgb"] | None = None
    unreadable: Literal["refuse", "skip"] = "refuse"

    def __post_init__(self) -> None:
        check_choices(self)


def read_pictures(folder: Path, settings: PictureSettings) -> tuple[np.ndarray, np.ndarray]:
    """Every picture below a folder, and the name of the folder in it that it stands in.

    Returns:
        uint8 [N, C, H, W], mapped from a file of decoded pictures in `cache_folder()`, where that can be written; and
        N names.

    Raises:
        DataFileError: there are none, one cannot be read, or they differ in size or in channels.
        OptionError: Pillow is not installed.
    """
    check_installed("PIL", what=f"data {folder}: pictures are read", extra="images")
    paths = [path for path in sorted(folder.glob("*/**/*")) if path.suffix.lower() in _SUFFIXES]
    if not paths:
        raise DataFileError(
            f"{folder}: no pictures in folders of it; expected a folder a class, with PNG or JPEG files."
        )
    _warn_of_empty(folder, {path.relative_to(folder).parts[0] for path in paths})
    record = cache_folder() / "pictures" / f"{_key(folder, paths, settings)}.json"
    if not record.exists():
        try:
            with placed(record.with_suffix(".bytes")) as file:
                told = _decode(folder, paths, settings, file)
            with placed(record) as file:
                file.write(json.dumps(told).encode())
        except OutputError:  # there is no place to keep them
            sink = io.BytesIO()
            told = _decode(folder, paths, settings, sink)
            return _found(folder, told, np.frombuffer(bytearray(sink.getbuffer()), dtype=np.uint8))
    told = json.loads(record.read_bytes())
    return _found(folder, told, np.memmap(record.with_suffix(".bytes"), dtype=np.uint8, mode="c"))


def fitted(task: Task, settings: PictureSettings) -> Task:
    """The same pictures, of the size and with the channels that are asked for.

    Raises:
        OptionError: something is asked for, and the inputs are no pictures.
    """
    done: dict[int, Tensor] = {}

    def fit(examples: Examples) -> Examples:
        stored = examples.stored
        if id(stored) not in done:
            if stored.ndim != 4 or stored.shape[1] not in (1, 3):
                raise OptionError(
                    f"data {task.name}: inputs of shape {list(stored.shape[1:])}; expected pictures of 1 or 3 channels "
                    "for side and colors. Leave these out."
                )
            done[id(stored)] = torch.cat([_fit(part, settings) for part in stored.split(1000)])
        return Examples(done[id(stored)], examples.targets, examples.rows)

    asked = settings.side is not None or settings.colors is not None
    return task.map(fit, name=task.name, classes=task.classes) if asked else task


def _fit(pictures: Tensor, settings: PictureSettings) -> Tensor:
    """Pictures [N, C, H, W], bytes or numbers."""
    numbers = pictures.float()
    if settings.colors == "rgb" and numbers.shape[1] == 1:
        numbers = numbers.expand(-1, 3, -1, -1)
    if settings.colors == "gray" and numbers.shape[1] == 3:
        numbers = (numbers * numbers.new_tensor(_LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
    if settings.side is not None:
        height, width = numbers.shape[2:]
        scale = settings.side / min(height, width)
        size = [max(settings.side, round(scale * length)) for length in (height, width)]
        if size != [height, width]:
            numbers = F.interpolate(numbers, size, mode="bilinear", antialias=True, align_corners=False)
        top, left = ((length - settings.side) // 2 for length in size)
        numbers = numbers[..., top : top + settings.side, left : left + settings.side]
    if pictures.dtype == torch.uint8:
        return numbers.round().clamp(0, 255).to(torch.uint8)
    return numbers.to(pictures.dtype).contiguous()


def _warn_of_empty(folder: Path, labels: set[str]) -> None:
    empty = {each.name for each in folder.iterdir() if each.is_dir() and each.name[0] not in "._"} - labels
    if empty:
        warnings.warn(
            f"data {folder}: no pictures in {', '.join(sorted(empty))}, of which no class is made. Put PNG or JPEG "
            "files there, or remove it.",
            stacklevel=2,
        )


def _key(folder: Path, paths: Sequence[Path], settings: PictureSettings) -> str:
    """Digits that stand for the files as they are, and for how they are read."""
    digest = hashlib.sha256(json.dumps([_FORM, str(folder.resolve()), asdict(settings)]).encode())
    for path in paths:
        about = path.stat()
        digest.update(f"{path.relative_to(folder)} {about.st_size} {about.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:24]


def _found(folder: Path, told: dict[str, Any], pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if told["skipped"]:
        some = ", ".join(told["skipped"][:8]) + (" and others" if len(told["skipped"]) > 8 else "")
        warnings.warn(
            f"data {folder}: {len(told['skipped'])} files that cannot be read are left out: {some}.", stacklevel=3
        )
    return pixels.reshape(told["shape"]), np.asarray(told["labels"])


def _decode(folder: Path, paths: Sequence[Path], settings: PictureSettings, file: BinaryIO) -> dict[str, Any]:
    """Write the bytes of all pictures, one after the other; what is to be known of them."""
    labels, skipped = [], []
    first: tuple[Path, torch.Size] | None = None
    # disable=None: shown on a terminal only
    for path in tqdm(paths, desc=f"decoding {folder.name}", unit=" pictures", disable=None, leave=False):
        try:
            picture = _picture(path, settings)
        except DataFileError:
            if settings.unreadable == "refuse":
                raise
            skipped.append(str(path.relative_to(folder)))
            continue
        if first is None:
            first = path, picture.shape
        elif picture.shape != first[1]:
            raise _unlike(folder, *first, path, picture.shape)
        file.write(picture.contiguous().numpy().tobytes())
        labels.append(path.relative_to(folder).parts[0])
    if first is None:
        raise DataFileError(f"{folder}: none of its {len(paths)} pictures can be read. Replace them.")
    return {"shape": [len(labels), *first[1]], "labels": labels, "skipped": skipped}


def _picture(path: Path, settings: PictureSettings) -> Tensor:
    """uint8 [C, H, W]."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            pixels = np.array(image if image.mode == "L" else image.convert("RGB"))
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataFileError(
            f"{path}: no picture that can be read: {error}. Replace it or remove it, or leave out such files by "
            "--unreadable skip."
        ) from error
    picture = torch.from_numpy(pixels)
    picture = picture.unsqueeze(0) if picture.ndim == 2 else picture.permute(2, 0, 1)
    return _fit(picture.unsqueeze(0), settings).squeeze(0)


def _unlike(folder: Path, path: Path, shape: torch.Size, other: Path, other_shape: torch.Size) -> DataFileError:
    told = " and ".join(
        f"{each.relative_to(folder)} has {_size(own)}" for each, own in ((path, shape), (other, other_shape))
    )
    if shape[1:] == other_shape[1:]:
        return DataFileError(
            f"{folder}: gray pictures among colored ones: {told}. Make them alike by --colors rgb or --colors gray."
        )
    return DataFileError(f"{folder}: pictures of several sizes: {told}; expected one. Make them alike by --side 32.")


def _size(shape: torch.Size) -> str:
    return f"{shape[2]}x{shape[1]} pixels of {shape[0]} channel{'s' if shape[0] > 1 else ''}"
