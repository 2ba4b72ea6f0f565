"""The heads of a classifier: the one in use, and those for other labels, which are kept beside it in its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.errors import FileFormatError, ModelMismatchError
from holdfast.files import read_json, read_state, write_json, write_state
from holdfast.language.encoders import SentenceClassifier, SentenceEncoder

HEAD = "holdfast_head"
"""With this begin the names of all files that holdfast adds to a model's folder for its heads."""

ORIGINAL = "original"
"""The name of a head that came without one."""

_REGISTER = f"{HEAD}s.json"
_SPREAD = 0.02


@dataclass(frozen=True)
class ClassifierHead:
    """What a classifier has beyond its base.

    Attributes:
        labels: the names of the classes, in the order of the outputs.
        tensors: the weights, by the names that the module has for them.
    """

    labels: tuple[str, ...]
    tensors: Mapping[str, Tensor]


def listed_labels(labels: Sequence[str]) -> str:
    """The first of the labels."""
    return ", ".join(map(repr, labels[:4])) + (", ..." if len(labels) > 4 else "")


def base_prefix(module: nn.Module) -> str:
    """What the names of a transformers classifier's base begin with, such as "bert.".

    Raises:
        ModelMismatchError: the model is not divided into base and head.
    """
    bare: Any = module
    prefix = getattr(bare, "base_model_prefix", "")
    if not prefix or not isinstance(getattr(bare, prefix, None), nn.Module):
        raise ModelMismatchError(
            f"{type(module).__name__} has no part of its own without the head; expected a transformers classifier over "
            "a base, such as BertForSequenceClassification. Use one of these."
        )
    return f"{prefix}."


def head_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Copies of the weights of a classifier's head."""
    if isinstance(module, SentenceClassifier):
        found: Mapping[str, Tensor] = module.head.state_dict()
    else:
        prefix = base_prefix(module)
        found = {name: value for name, value in module.state_dict().items() if not name.startswith(prefix)}
    return {name: value.detach().clone() for name, value in found.items()}


def module_with(module: nn.Module, head: ClassifierHead) -> nn.Module:
    """A classifier of this head over the very same base: what the base learns, both learn.

    Raises:
        ModelMismatchError: the head is one of another model.
    """
    if isinstance(module, SentenceClassifier | SentenceEncoder):
        new: nn.Module = SentenceClassifier(module.encoder, head.labels)
        part, prefix = new.head, "encoder."
    else:
        new = part = _bare(module, head.labels)
        prefix = base_prefix(module)
        setattr(new, prefix.removesuffix("."), getattr(module, prefix.removesuffix(".")))
    like = next(module.parameters())
    tensors = {
        name: value.detach().clone().to(device=like.device, dtype=like.dtype if value.is_floating_point() else None)
        for name, value in head.tensors.items()
    }
    try:
        found = part.load_state_dict(tensors, strict=False, assign=True)
    except RuntimeError as error:
        raise ModelMismatchError(f"the head is of another model: {' '.join(str(error).split())[:300]}") from error
    wrong = [name for name in found.missing_keys if not name.startswith(prefix)] + found.unexpected_keys
    if wrong:
        raise ModelMismatchError(
            f"the head is of another model than this {type(module).__name__}: {', '.join(map(repr, wrong))} are in one "
            "of them alone. Use the head with the model that it was saved with."
        )
    return new.train(module.training)


def new_head(module: nn.Module, labels: Sequence[str]) -> ClassifierHead:
    """An untrained head for other labels over a transformers classifier.

    The layer whose size is the number of labels is drawn anew, from a Gaussian of the model's `initializer_range`;
    what is before it begins as a copy of the present head's.
    """
    one, other = (_bare(module, [*labels, *more]).state_dict() for more in ([], ["one more"]))
    bare: Any = module
    spread = getattr(bare.config, "initializer_range", None) or _SPREAD
    device = next(module.parameters()).device
    tensors = head_tensors(module)
    for name, value in one.items():
        if value.shape != other[name].shape:
            drawn = torch.zeros(value.shape, dtype=torch.float32)
            if value.dim() > 1:
                drawn.normal_(std=spread)
            tensors[name] = drawn.to(device=device, dtype=value.dtype)
    return ClassifierHead(tuple(labels), tensors)


def name_labels(config: Any, labels: Sequence[str]) -> None:
    """Write the names of the classes into a transformers configuration."""
    config.id2label = dict(enumerate(labels))
    config.label2id = {name: number for number, name in enumerate(labels)}


def write_heads(folder: Path, current: str, kept: Mapping[str, ClassifierHead]) -> None:
    """Write the name of the head in use, and each other head as a file."""
    for name, head in kept.items():
        write_state(_file(folder, name), head.tensors, {"labels": list(head.labels)})
    write_json(folder / _REGISTER, {"current": current, "kept": list(kept)})


def read_heads(folder: Path) -> tuple[str, dict[str, ClassifierHead]]:
    """The name of the head in use, and the other heads by name; ("original", {}) of a folder that says nothing.

    Raises:
        FileFormatError: a head is missing or damaged.
    """
    if not (folder / _REGISTER).is_file():
        return ORIGINAL, {}
    register = read_json(folder / _REGISTER)
    current, kept = register.get("current"), register.get("kept")
    if not isinstance(current, str) or not isinstance(kept, list) or not all(map(_is_name, kept)):
        raise FileFormatError(f"{folder / _REGISTER}: 'current' (a name) or 'kept' (names) is damaged. Copy it again.")
    return current, {name: _read(_file(folder, name)) for name in kept}


def _read(path: Path) -> ClassifierHead:
    if not path.is_file():
        raise FileFormatError(f"{path} is missing, though {_REGISTER} names it. Copy the folder whole.")
    try:
        tensors, notes = read_state(path)
        labels = notes["labels"]
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise KeyError("labels")
    except (FileFormatError, KeyError) as error:
        raise FileFormatError(f"{path} is damaged: no head can be read from it. Copy it again.") from error
    return ClassifierHead(tuple(labels), tensors)


def _is_name(name: object) -> bool:
    return isinstance(name, str) and name == Path(name).name


def _file(folder: Path, name: str) -> Path:
    return folder / f"{HEAD}-{name}.safetensors"


def _bare(module: nn.Module, labels: Sequence[str]) -> nn.Module:
    """A classifier like this one for other labels, its weights without memory."""
    bare: Any = module
    config = deepcopy(bare.config)
    name_labels(config, labels)
    config.problem_type = "single_label_classification"
    with torch.device("meta"):
        return type(module)(config).to(dtype=next(module.parameters()).dtype)
