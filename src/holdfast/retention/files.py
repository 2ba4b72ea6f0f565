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
from holdfast.memory.kronecker import layers_from, layers_to_json, layers_to_tensors
from holdfast.records import check_importance_values
from holdfast.tensors import TensorMap
from holdfast.version import __version__

EXTRA = ("pulls", "residuals")
"""Tensors that beside `held` decide the steps to come."""

_NUMBERS = ("constant", "start", "num_tasks", "first_examples", "nats_per_unit", "largest")


def save(
    path: str | os.PathLike[str],
    held: Retained,
    *,
    mechanism: str,
    options: Mapping[str, Any],
    progress: Mapping[str, Any],
    extra: Mapping[str, TensorMap],
    model: nn.Module,
) -> None:
    """Write a keeper's folder, whole or not at all."""
    with new_folder(path) as folder:
        digests = write_tensors(folder, "importance", held.importance)
        if held.anchors:
            digests |= write_tensors(folder, "anchors", held.anchors)
        if held.factors:
            digests |= write_tensors(folder, "factors", layers_to_tensors(held.factors))
        for part, tensors in extra.items():
            if tensors:
                digests |= write_tensors(folder, part, tensors)
        content = {
            "mechanism": mechanism,
            "library_version": __version__,
            "model": type(model).__name__,
            "options": {name: _to_json(value) for name, value in options.items()},
            "progress": progress,
            "held": numbers_of(held),
            **({"factors": layers_to_json(held.factors)} if held.factors else {}),
            "files": digests,
        }
        write_description(folder / "keeper_config.json", content)
        write_text(folder / "README.md", _card(content, held))


def load(
    path: str | os.PathLike[str], *, mechanism: str, anchors: bool
) -> tuple[Retained, dict[str, Any], dict[str, Any], dict[str, TensorMap]]:
    """Read a keeper's folder: what it holds, on the CPU, the options of its constructor, its progress and the extra.

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
    if "factors" in content:
        tensors = read_tensors(folder, "factors", digests)
        held = replace(held, factors=layers_from(content["factors"], tensors, where=str(config)))
    written = [part for part in EXTRA if any(name.startswith(part) for name in digests)]
    extra = {part: read_tensors(folder, part, digests) if part in written else {} for part in EXTRA}
    return held, {name: _from_json(value) for name, value in options.items()}, progress, extra


def to_state(held: Retained, extra: Mapping[str, TensorMap]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The same content for a training checkpoint: tensors by "part/name", and JSON notes."""
    parts = {
        "importance": held.importance,
        "anchors": held.anchors,
        "factors": layers_to_tensors(held.factors),
        **extra,
    }
    tensors = {f"{part}/{name}": tensor for part, content in parts.items() for name, tensor in content.items()}
    return tensors, {"held": numbers_of(held), "factors": layers_to_json(held.factors)}


def from_state(
    tensors: Mapping[str, Tensor], notes: Mapping[str, Any], *, where: str
) -> tuple[Retained, dict[str, TensorMap]]:
    """What `to_state` was given."""
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in ("importance", "anchors", "factors", *EXTRA)}
    for key, tensor in tensors.items():
        part, _, name = key.partition("/")
        parts[part][name] = tensor
    factors = layers_from(notes.get("factors", {}), parts["factors"], where=where)
    return Retained(parts["importance"], parts["anchors"], **notes["held"], factors=factors), {
        part: parts[part] for part in EXTRA
    }


def numbers_of(held: Retained) -> dict[str, Any]:
    """The fields of `Retained` that are no tensors, as JSON values."""
    return {name: getattr(held, name) for name in _NUMBERS}


def on_devices(held: Retained, devices: Mapping[str, torch.device]) -> Retained:
    """The same, each tensor on the device of its parameter."""

    def moved(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(devices.get(name, tensor.device)) for name, tensor in tensors.items()}

    factors = {name: layer.to(devices.get(name)) for name, layer in held.factors.items()}
    return replace(held, importance=moved(held.importance), anchors=moved(held.anchors), factors=factors)


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
    weights = sum(value.numel() for value in held.covered.values())
    options = ", ".join(f"{name}={value}" for name, value in content["options"].items())
    return f"""# Skills of {content["model"]}, held by {content["mechanism"]}

Saved with holdfast {content["library_version"]}: {held.num_tasks} tasks, {weights:,} weights.
Options: {options}

    import holdfast as hf
    keeper = hf.{content["mechanism"]}.load("THIS FOLDER", model).attach(optimizer)
"""
