"""A keeper on disk: what it holds, and the options it was built with."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.errors import FileFormatError
from holdfast.files import (
    existing_folder,
    new_folder,
    read_description,
    read_tensors,
    write_description,
    write_tensors,
    write_text,
)
from holdfast.memory import Accumulate, Decayed, Retained
from holdfast.records import check_importance_values
from holdfast.version import __version__

_NUMBERS = ("constant", "start", "num_tasks", "first_examples", "nats_per_unit", "largest")


def save(
    path: str | os.PathLike[str],
    held: Retained,
    *,
    mechanism: str,
    options: Mapping[str, Any],
    progress: Mapping[str, Any],
    model: nn.Module,
) -> None:
    """Write a keeper's folder, whole or not at all."""
    with new_folder(path) as folder:
        digests = write_tensors(folder, "importance", held.importance)
        if held.anchors:
            digests |= write_tensors(folder, "anchors", held.anchors)
        content = {
            "mechanism": mechanism,
            "library_version": __version__,
            "model": type(model).__name__,
            "options": {name: _to_json(value) for name, value in options.items()},
            "progress": progress,
            "held": numbers_of(held),
            "files": digests,
        }
        write_description(folder / "keeper_config.json", content)
        write_text(folder / "README.md", _card(content, held))


def load(
    path: str | os.PathLike[str], *, mechanism: str, anchors: bool
) -> tuple[Retained, dict[str, Any], dict[str, Any]]:
    """Read a keeper's folder: what it holds, on the CPU, the options of its constructor, and its progress.

    Raises:
        FileFormatError: a missing, truncated, edited or wrong-version file, or another mechanism's folder.
        NotFiniteError: an importance with entries that are not finite numbers >= 0.
    """
    folder = existing_folder(path)
    config = folder / "keeper_config.json"
    content = read_description(config)
    if content.get("mechanism") != mechanism:
        raise FileFormatError(
            f"{config}: this keeper is {content.get('mechanism')!r}, to be loaded as {mechanism!r}. "
            f"Use hf.{content.get('mechanism')}.load."
        )
    numbers, options, progress = (content.get(part) for part in ("held", "options", "progress"))
    if not (isinstance(numbers, dict) and isinstance(options, dict) and isinstance(progress, dict)):
        raise FileFormatError(
            f"{config}: 'held', 'options' or 'progress' is missing or damaged. Save the keeper again."
        )
    wrong = [name for name in _NUMBERS if not isinstance(numbers.get(name, "missing"), int | float | None)]
    if wrong:
        raise FileFormatError(f"{config}: no number stands for {', '.join(wrong)}. Save the keeper again.")
    digests = content.get("files", {})
    importance = read_tensors(folder, "importance", digests)
    check_importance_values(importance, where=str(folder))
    held = Retained(importance=importance, **{name: numbers[name] for name in _NUMBERS})
    if anchors and held.num_tasks:
        held = replace(held, anchors=read_tensors(folder, "anchors", digests))
    return held, {name: _from_json(value) for name, value in options.items()}, progress


def numbers_of(held: Retained) -> dict[str, Any]:
    """The fields of `Retained` that are no tensors, as JSON values."""
    return {name: getattr(held, name) for name in _NUMBERS}


def on_devices(held: Retained, devices: Mapping[str, torch.device]) -> Retained:
    """The same, each tensor on the device of its parameter."""

    def moved(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(devices.get(name, tensor.device)) for name, tensor in tensors.items()}

    return replace(held, importance=moved(held.importance), anchors=moved(held.anchors))


def accumulate_to_json(rule: Accumulate) -> str | dict[str, float]:
    """The rule's name, or {"decayed": gamma}."""
    return {"decayed": rule.gamma} if isinstance(rule, Decayed) else rule


def _to_json(value: Any) -> Any:
    return "infinity" if isinstance(value, float) and math.isinf(value) else value


def _from_json(value: Any) -> Any:
    if value == "infinity":
        return math.inf
    if isinstance(value, dict) and set(value) == {"decayed"}:
        return Decayed(value["decayed"])
    return value


def _card(content: Mapping[str, Any], held: Retained) -> str:
    weights = sum(value.numel() for value in held.importance.values())
    options = ", ".join(f"{name}={value}" for name, value in content["options"].items())
    return f"""# Skills of {content["model"]}, held by {content["mechanism"]}

Saved with holdfast {content["library_version"]}: {held.num_tasks} tasks, {weights:,} weights.
Options: {options}

    import holdfast as hf
    keeper = hf.{content["mechanism"]}.load("THIS FOLDER", model).attach(optimizer)
"""
