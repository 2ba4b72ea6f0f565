"""Probes as tensors and JSON notes, for a checkpoint, and as a folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any, NoReturn

from torch import Tensor

from holdfast.errors import FileFormatError, StateError
from holdfast.files import Saved, new_folder, read_folder, write_description, write_tensors
from holdfast.likelihoods.likelihood import (
    AtTargets,
    Bernoulli,
    Categorical,
    Comparable,
    Gaussian,
    PerExample,
    Similarity,
)
from holdfast.probes.probes import Probe, Probes

CONFIG = "probes_config.json"
"""Where a folder of probes says what it is."""

_STEM = "probes"
_LOSSES: dict[str, Any] = {
    "categorical": Categorical,
    "gaussian": Gaussian,
    "bernoulli": Bernoulli,
    "similarity": Similarity,
}


def probes_to_state(probes: Probes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by "batch/part", and what else `probes_from_state` needs.

    Raises:
        StateError: a batch holds something that is neither a tensor nor a JSON value.
    """
    tensors: dict[str, Tensor] = {}
    batches = []
    for number, probe in enumerate(probes.batches):
        found: dict[str, Tensor] = {}
        tree = _tree(probe.batch, found)
        tensors |= {f"{number}/inputs.{key}": tensor for key, tensor in found.items()}
        tensors |= {f"{number}/answers.{key}": tensor for key, tensor in probe.answers.items()}
        batches.append({"tree": tree, "num_targets": probe.num_targets})
    return tensors, {"loss": _loss_to_json(probes.loss), "batches": batches}


def probes_from_state(tensors: Mapping[str, Tensor], notes: Any, *, where: str) -> Probes:
    """What `probes_to_state` was given; a loss of one's own is not among it, and says so when it is called.

    Raises:
        FileFormatError: notes or tensors are missing or damaged.
    """
    try:
        found = []
        for number, batch in enumerate(notes["batches"]):
            parts: dict[str, dict[str, Tensor]] = {"inputs": {}, "answers": {}}
            for key, tensor in tensors.items():
                place, _, name = key.partition("/")
                if place == str(number):
                    part, _, name = name.partition(".")
                    parts[part][name] = tensor
            inputs, answers = _content(batch["tree"], parts["inputs"]), parts["answers"]
            num_targets = int(batch["num_targets"])
            if not answers or num_targets < 0:
                raise ValueError(batch)
            found.append(Probe(inputs, answers, num_targets))
        if not any(probe.num_targets for probe in found):
            raise ValueError(notes)
        return Probes(_loss_from_json(notes["loss"]), tuple(found))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileFormatError(
            f"{where}: the probes are damaged ({error!r}). Take an older checkpoint, or take probes again."
        ) from error


def save(probes: Probes, path: str | os.PathLike[str]) -> None:
    """Write a folder; see `Probes.save`."""
    tensors, notes = probes_to_state(probes)
    with new_folder(path) as folder:
        write_tensors(folder, _STEM, tensors)
        write_description(folder / CONFIG, {"probes": notes})


def load(path: str | os.PathLike[str]) -> Probes:
    """Read a folder; see `Probes.load`."""

    def read(saved: Saved) -> Probes:
        return probes_from_state(saved.tensors(_STEM), saved.description(CONFIG).get("probes"), where=str(saved.path))

    return read_folder(path, read)


def _tree(content: Any, found: dict[str, Tensor]) -> Any:
    """The form of nested tensors as JSON; the tensors go into `found`."""
    if isinstance(content, Tensor):
        found[str(len(found))] = content
        return {"tensor": str(len(found) - 1)}
    if isinstance(content, Mapping):
        return {"mapping": {str(key): _tree(value, found) for key, value in content.items()}}
    if isinstance(content, tuple | list):
        kind = "tuple" if isinstance(content, tuple) else "list"
        return {kind: [_tree(value, found) for value in content]}
    if content is None or isinstance(content, str | int | float | bool):
        return {"value": content}
    raise StateError(
        f"probes: a batch holds a {type(content).__name__}, which no checkpoint can keep. Take probes on batches of "
        "tensors, numbers and texts."
    )


def _content(tree: Any, found: Mapping[str, Tensor]) -> Any:
    ((kind, value),) = tree.items()
    if kind == "tensor":
        return found[value]
    if kind == "mapping":
        return {key: _content(item, found) for key, item in value.items()}
    if kind in ("tuple", "list"):
        items = [_content(item, found) for item in value]
        return tuple(items) if kind == "tuple" else items
    if kind == "value":
        return value
    raise ValueError(kind)


def _loss_to_json(loss: Comparable) -> dict[str, Any]:
    if type(loss) in _LOSSES.values() and is_dataclass(loss):
        return {"name": loss.name, **asdict(loss)}
    return {"name": "custom"}


def _loss_from_json(content: Mapping[str, Any]) -> Comparable:
    options = dict(content)
    name = options.pop("name")
    return _LOSSES[name](**options) if name in _LOSSES else AtTargets(PerExample(_unknown))


def _unknown(outputs: Any, batch: Any) -> NoReturn:
    raise StateError(
        "probes: their loss is a function of your own, which no file holds. Put the function back: "
        "keeper.skills[0].probes = keeper.skills[0].probes.with_loss(function), for each skill."
    )
