"""MNIST from IDX files: those of a folder, or downloaded once."""

from __future__ import annotations

import os
from pathlib import Path

from holdfast.errors import DataFileError
from holdfast.lab.streams.download import cache_folder, download
from holdfast.lab.streams.examples import Examples
from holdfast.lab.streams.idx import read_idx
from holdfast.lab.streams.stream import Task

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)

FILES = {
    "train-images-idx3-ubyte.gz": (
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "71524e2cd1ad2968737f7f2f2ff69cbfc32df8ccddff51593f7cb2d4e0eb5b64",  # recompressed, the same bytes inside
    ),
    "train-labels-idx1-ubyte.gz": ("3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",),
    "t10k-images-idx3-ubyte.gz": ("8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",),
    "t10k-labels-idx1-ubyte.gz": ("f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",),
}
"""File name -> the sha256 that a download may have."""


def mnist(data_dir: str | os.PathLike[str] | None = None) -> Task:
    """The 70,000 digits 0..9 as one task: the first 55,000 to train, the next 5,000 to validate, 10,000 to test.

    Inputs are float32 [N, 1, 28, 28] in 0..1 (pixels over 255), targets int64 [N]. Files of the same names and format
    may hold any number of images: the last twelfth of the training images is for validation.

    Args:
        data_dir: the folder in which, or in whose subfolder `mnist`, the four files are, gzip or plain. None: the
            one that the environment variable HOLDFAST_DATA names; where that is not set either,
            `$XDG_CACHE_HOME/holdfast` (default `~/.cache/holdfast`), into which they are downloaded once (12 MB) and
            checked by sha256.

    Raises:
        DataFileError: a file is missing from the folder named, cannot be downloaded, is damaged or fits no other.
        OutputError: the download cannot be written.

    Source: LeCun, Cortes, Burges; CC BY-SA 3.0.
    """
    train_images, train_labels, test_images, test_labels = _paths(data_dir)
    training = _examples(train_images, train_labels)
    kept = len(training) - len(training) // 12
    validation = Examples(training.stored[kept:], training.targets[kept:])
    return Task("mnist", training.take(kept), validation, _examples(test_images, test_labels), tuple(range(10)))


def _paths(data_dir: str | os.PathLike[str] | None) -> list[Path]:
    given = data_dir or os.environ.get("HOLDFAST_DATA")
    if not given:
        folder = cache_folder() / "mnist"
        for name, sha256 in FILES.items():
            if not (folder / name).exists():
                download(folder / name, mirrors=MIRRORS, sha256=sha256)
        return [folder / name for name in FILES]
    for folder in (Path(given) / "mnist", Path(given)):
        gzipped = [folder / name for name in FILES]
        paths = [path if path.is_file() else path.with_suffix("") for path in gzipped]
        if all(path.is_file() for path in paths):
            return paths
    raise DataFileError(
        f"mnist: found not all of {', '.join(FILES)} in {Path(given) / 'mnist'}, nor in {Path(given)}. Put them there, "
        "or give neither data_dir nor HOLDFAST_DATA to have them downloaded."
    )


def _examples(images_path: Path, labels_path: Path) -> Examples:
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
        raise DataFileError(
            f"mnist: found shape {list(images.shape)} in {images_path} and {list(labels.shape)} in {labels_path}, "
            "expected [N, 28, 28] and [N]. Replace the wrong one."
        )
    if (labels > 9).any():
        raise DataFileError(f"mnist: found the label {int(labels.max())} in {labels_path}, expected 0..9. Replace it.")
    return Examples(images.unsqueeze(1).float().div_(255), labels.long())
