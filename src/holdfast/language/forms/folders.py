"""Which files of a folder are read: one form, and one split, by the names that the `datasets` library goes by."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from holdfast.errors import DataFileError, OptionError
from holdfast.files import MANIFEST
from holdfast.language.forms.plain import INTENTS
from holdfast.language.forms.table import suffix_of

ALL = "all"
"""In place of a split: every file, whatever its name."""
FAMILIES: Mapping[str, str] = {
    ".jsonl": "JSON",
    ".ndjson": "JSON",
    ".json": "JSON",
    ".csv": "CSV",
    ".tsv": "CSV",
    ".parquet": "Parquet",
    ".arrow": "Arrow",
    ".txt": "text",
    ".md": "text",
    ".py": "text",
}
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_KEYWORDS = {word: split for split, words in _SPLITS.items() for word in words}
_IN_NAMES = re.compile(rf"(?:^|[-._ 0-9])({'|'.join(_KEYWORDS)})(?=[-._ 0-9]|$)")
_NOTES = re.compile(r"(readme|license|licence|changelog|citation|notice)\b.*")
_OF_LIBRARIES = {"config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}


@dataclass(frozen=True)
class FolderFiles:
    """The files of a folder that are read.

    Attributes:
        files: in the order of their names.
        split: which one they are; None where the folder has no splits.
        left_out: why -> names of the files that are not read.
    """

    files: Sequence[Path]
    split: str | None = None
    left_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def split_named(name: str) -> str:
    """A split under its usual name, such as "validation" for "dev"."""
    return _KEYWORDS.get(name.strip().lower(), name)


def files_in(folder: Path, split: str) -> FolderFiles:
    """The files of a folder that belong to a split.

    Files whose names tell no split count as training data where none is named so, and are left out where one is.

    Args:
        folder: searched with all folders in it, but for hidden ones and those that holdfast wrote.
        split: "train", "validation", "test" or another name of these; or "all".

    Raises:
        DataFileError: no file to read, or none of this split.
        OptionError: the files are of several forms.
    """
    left_out: dict[str, list[str]] = defaultdict(list)
    families: dict[str, list[Path]] = defaultdict(list)
    written = {path.parent for path in folder.rglob(MANIFEST)} - {folder}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if any(part.startswith((".", "_")) for part in inside.parts) or not path.is_file():
            continue
        if not written.isdisjoint(path.parents):
            left_out["written by holdfast"].append(str(inside))
            continue
        family = "intents" if path.name == INTENTS else FAMILIES.get(suffix_of(path))
        if family is None:
            if path.name != "label":
                left_out["of no form that is read"].append(str(inside))
        elif path.name.lower() in _OF_LIBRARIES or (family == "text" and _NOTES.fullmatch(path.name.lower())):
            left_out["about the data"].append(str(inside))
        else:
            families[family].append(path)
    if not families:
        raise DataFileError(f"{folder}: no file to read in it; expected some of {', '.join(FAMILIES)}.")
    if families.keys() == {"text", "JSON"} and all(suffix_of(path) == ".json" for path in families["JSON"]):
        left_out["JSON beside texts"] = [str(path.relative_to(folder)) for path in families.pop("JSON")]
    if len(families) > 1:
        shown = ", ".join(f"{family} ({paths[0].name}, ...)" for family, paths in sorted(families.items()))
        raise OptionError(f"{folder}: holds files of several forms: {shown}. Give one file, or a folder of one form.")
    (files,) = families.values()
    return _of_split(folder, files, split, left_out)


def _of_split(folder: Path, files: Sequence[Path], split: str, left_out: dict[str, list[str]]) -> FolderFiles:
    splits: dict[str | None, list[Path]] = defaultdict(list)
    for path in files:
        splits[_split_of(path, folder)].append(path)
    asked = split_named(split)
    found: Sequence[Path] = files
    name = ALL if split == ALL else None
    if split != ALL and not (splits.keys() == {None} and asked == "train"):
        shown = ", ".join(repr(each) for each in splits if each) or "none by their names"
        if "train" not in splits and None in splits:
            splits["train"] = splits.pop(None)
        if asked not in splits:
            raise DataFileError(
                f"{folder}: no file of the split {split!r} in it; found {shown}. Choose one with --split, or --split "
                "all."
            )
        found, name = splits.pop(asked), asked
        for other, paths in splits.items():
            why = f"split {other!r}" if other else "named after no split"
            left_out[why] += [str(path.relative_to(folder)) for path in paths]
    return FolderFiles(found, name, {why: tuple(names) for why, names in left_out.items()})


def _split_of(path: Path, folder: Path) -> str | None:
    """By the name of the file or of the nearest folder; a `test_x.py` is no test data."""
    if path.suffix.lower() in (".py", ".md"):
        return None
    for part in reversed(path.relative_to(folder).parts):
        match = _IN_NAMES.search(part.lower())
        if match:
            return _KEYWORDS[match.group(1)]
    return None
