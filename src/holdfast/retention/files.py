"""A keeper on disk: what it holds, in the form it holds it, and the options it was built with.

Importances and anchors in blocks are two files: codes under the usual name, and beside it `_exponents`. Anchors by
reference are named in the description, with the sha256 of the checkpoint they are in.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from holdfast.curvature import Decayed
from holdfast.curvature.files import layers_from, layers_to_json, layers_to_tensors
from holdfast.errors import FileFormatError
from holdfast.files import FORMAT_VERSION, Saved, new_folder, read_folder, write_description, write_tensors, write_text
from holdfast.memory import Retained
from holdfast.memory.reference import Reference, references_from, references_to_json
from holdfast.memory.stored import AnyTensor, AnyTensorMap, from_tensors, to_tensors
from holdfast.records import check_importance_values
from holdfast.retention.checks import NUMBERS, SINCE, check_numbers
from holdfast.retention.report import counted
from holdfast.tensors import Gathered, TensorMap, gathered_when_taken
from holdfast.version import __version__

KEEPER_CONFIG = "keeper_config.json"
"""Where a saved keeper says what it is."""

EXTRA = ("pulls", "residuals", "moving_statistics", "resting_statistics")
"""Tensors that beside `held` decide the steps to come."""

PROBES = "probes"
"""Tensors of the skills' probes, which only a checkpoint holds unless they are asked for."""

SkillsState = tuple[Mapping[str, Tensor], Mapping[str, Any]]
"""The probes' tensors, and the notes on the skills (`holdfast.retention.skills`)."""

_PARTS = ("importance", "importance_exponents", "anchors", "anchors_exponents", "factors")
PARTS = (*_PARTS, *EXTRA, PROBES)
"""What the tensors of a state are of."""


Contents = Mapping[str, Mapping[str, Tensor | Gathered]]
"""Of a keeper by part and name: all that is a tensor and not on disk already."""


def contents_of(held: Retained, extra: Mapping[str, TensorMap]) -> Contents:
    """What `save` is to write; DTensors are gathered one by one as it does."""
    return {part: gathered_when_taken(tensors) for part, tensors in _contents(held, extra).items()}


def save(
    path: str | os.PathLike[str],
    held: Retained,
    *,
    contents: Contents,
    mechanism: str,
    options: Mapping[str, Any],
    progress: Mapping[str, Any],
    skills: SkillsState | None,
    model: nn.Module,
) -> None:
    """Write a keeper's folder, whole or not at all; `contents` are those of `held`."""
    read = {anchor.file.path for anchor in held.anchors.values() if isinstance(anchor, Reference)}
    with new_folder(path, reading=read) as folder:
        for part, tensors in contents.items():
            if tensors or part == "importance":
                write_tensors(folder, part, tensors)
        if skills is not None:
            write_tensors(folder, PROBES, skills[0])
        content = {
            "mechanism": mechanism,
            "library_version": __version__,
            "model": type(model).__name__,
            "options": {name: option_to_json(value) for name, value in options.items()},
            "progress": progress,
            **{name: value for name, value in _description(held).items() if value},
            **({"skills": skills[1]} if skills is not None else {}),
        }
        write_description(folder / KEEPER_CONFIG, content)
        write_text(folder / "README.md", _card(content, held))


def load(
    path: str | os.PathLike[str],
    *,
    mechanism: str,
    anchors: bool,
    checkpoint: str | os.PathLike[str] | None = None,
) -> tuple[Retained, dict[str, Any], dict[str, Any], dict[str, dict[str, Tensor]], SkillsState]:
    """Read a keeper's folder: what it holds, on the CPU, its constructor's options, its progress, extra and skills.

    Args:
        path: the folder.
        mechanism: what its keeper must be.
        anchors: whether this mechanism has them.
        checkpoint: where anchors by reference are now; None for where they were.

    Raises:
        FileFormatError: a missing, truncated, edited or wrong-version file, or another mechanism's folder.
        NotFiniteError: an importance with entries that are not finite numbers >= 0.
    """
    return read_folder(path, partial(_read, mechanism=mechanism, anchors=anchors, checkpoint=checkpoint))


def _read(
    saved: Saved, *, mechanism: str, anchors: bool, checkpoint: str | os.PathLike[str] | None
) -> tuple[Retained, dict[str, Any], dict[str, Any], dict[str, dict[str, Tensor]], SkillsState]:
    config, content = saved.path / KEEPER_CONFIG, saved.description(KEEPER_CONFIG)
    if content.get("mechanism") != mechanism:
        raise FileFormatError(
            f"{config}: this keeper is {content.get('mechanism')!r}, to be loaded as {mechanism!r}. "
            f"Use {_load_call(content.get('mechanism'), 'folder')}."
        )
    numbers, options, progress = (content.get(part) for part in ("held", "options", "progress"))
    if not (isinstance(numbers, dict) and isinstance(options, dict) and isinstance(progress, dict)):
        raise FileFormatError(
            f"{config}: 'held', 'options' or 'progress' is missing or damaged. Save the keeper again."
        )
    check_numbers(numbers, where=str(config))
    if not isinstance(options.get("anchors"), str | None):
        raise FileFormatError(f"{config}: 'anchors' is {options['anchors']!r}; expected a path. Save the keeper again.")
    importance = _read_held(saved, "importance")
    check_importance_values({n: v for n, v in importance.items() if isinstance(v, Tensor)}, where=str(saved.path))
    known: dict[str, Any] = {name: numbers[name] for name in NUMBERS if name in numbers}
    held = Retained(importance=importance, **known)
    if anchors and held.num_tasks:
        on_disk = references_from(content.get("references"), checkpoint, where=str(config))
        in_memory = {} if on_disk and not saved.has("anchors") else _read_held(saved, "anchors")
        held = replace(held, anchors={**in_memory, **on_disk})
    if "factors" in content:
        held = replace(held, layers=layers_from(content["factors"], saved.tensors("factors"), where=str(config)))
    extra = {part: saved.tensors(part) if saved.has(part) else {} for part in EXTRA}
    skills = content.get("skills", {})
    if not isinstance(skills, dict):
        raise FileFormatError(f"{config}: 'skills' is damaged. Save the keeper again.")
    probes = saved.tensors(PROBES) if skills else {}
    return held, {name: option_from_json(value) for name, value in options.items()}, progress, extra, (probes, skills)


def check_saved_options(saved: Mapping[str, Any], known: Collection[str], *, where: Any, kind: str) -> None:
    """Raise `FileFormatError` where a keeper of this kind has no such options."""
    if unknown := sorted(set(saved) - set(known)):
        raise FileFormatError(f"{where}: unknown options of {kind}: {', '.join(unknown)}. Save it again.")


def to_state(held: Retained, extra: Mapping[str, TensorMap]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The same content for a training checkpoint: tensors by "part/name", and JSON notes."""
    parts = _contents(held, extra)
    tensors = {f"{part}/{name}": tensor for part, content in parts.items() for name, tensor in content.items()}
    return tensors, {"format_version": FORMAT_VERSION, **_description(held)}


def from_state(
    tensors: Mapping[str, Tensor], notes: Mapping[str, Any], *, checkpoint: str | None, where: str
) -> tuple[Retained, dict[str, dict[str, Tensor]]]:
    """What `to_state` was given; `checkpoint`: as for `load`.

    Raises:
        FileFormatError: codes without their exponents, or a checkpoint with anchors that is gone or another.
    """
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in PARTS}
    for key, tensor in tensors.items():
        part, _, name = key.partition("/")
        parts[part][name] = tensor
    importance = from_tensors(parts["importance"], parts["importance_exponents"], where=where)
    anchors: dict[str, AnyTensor] = from_tensors(parts["anchors"], parts["anchors_exponents"], where=where)
    anchors |= references_from(notes.get("references"), checkpoint, where=where)
    layers = layers_from(notes.get("factors", {}), parts["factors"], where=where)
    return Retained(importance, anchors, **notes["held"], layers=layers), {part: parts[part] for part in EXTRA}


def _contents(held: Retained, extra: Mapping[str, TensorMap]) -> dict[str, TensorMap]:
    """All that is a tensor and not on disk already, by part and name."""
    _, anchors = _apart(held.anchors)
    contents = *to_tensors(held.importance), *to_tensors(anchors), layers_to_tensors(held.layers)
    return {**dict(zip(_PARTS, contents, strict=True)), **extra}


def _description(held: Retained) -> dict[str, Any]:
    """What is no tensor, as JSON values."""
    on_disk, _ = _apart(held.anchors)
    references = {"references": references_to_json(on_disk)} if on_disk else {}
    numbers = {name: getattr(held, name) for name in NUMBERS}
    numbers = {name: value for name, value in numbers.items() if value is not None or name not in SINCE}
    return {"held": numbers, "factors": layers_to_json(held.layers), **references}


def _read_held(saved: Saved, stem: str) -> dict[str, AnyTensor]:
    tensors, beside = saved.tensors(stem), f"{stem}_exponents"
    exponents = saved.tensors(beside) if saved.has(beside) else {}
    return from_tensors(tensors, exponents, where=str(saved.path / f"{stem}.safetensors"))


def _apart(anchors: AnyTensorMap) -> tuple[dict[str, Reference], dict[str, AnyTensor]]:
    """Those on disk, and those in memory."""
    on_disk = {name: anchor for name, anchor in anchors.items() if isinstance(anchor, Reference)}
    return on_disk, {name: anchor for name, anchor in anchors.items() if name not in on_disk}


def option_to_json(value: Any) -> Any:
    """An option of a keeper as a JSON value."""
    if isinstance(value, Decayed):
        return {"decayed": value.gamma}
    return "infinity" if isinstance(value, float) and value == math.inf else value


def option_from_json(value: Any) -> Any:
    """What `option_to_json` was given."""
    if value == "infinity":
        return math.inf
    if isinstance(value, dict) and set(value) == {"decayed"}:
        return Decayed(value["decayed"])
    return value


def _card(content: Mapping[str, Any], held: Retained) -> str:
    weights = sum(value.numel() for value in held.covered.values())
    options = ", ".join(f"{name}={value}" for name, value in content["options"].items())
    mechanism = content["mechanism"]
    return f"""# Skills of {content["model"]}, held by {mechanism}

Saved with holdfast {content["library_version"]}: {counted(held.num_tasks, "task")}, {weights:,} weights.
Options: {options}

    import holdfast as hf
    keeper = {_load_call(content["mechanism"], '"THIS FOLDER"')}.attach(optimizer)
"""


def _load_call(mechanism: Any, folder: str) -> str:
    """How a keeper of this mechanism is loaded; one that is not ours is named by its class."""
    ours = {"EWC": "hf.EWC", "WVA": "hf.WVA", "LoraEWC": "holdfast.integrations.peft.LoraEWC"}
    if isinstance(mechanism, str) and mechanism in ours:
        return f"{ours[mechanism]}.load({folder}, model)"
    return f"hf.Keeper.load({folder}, model, mechanism={mechanism})"
