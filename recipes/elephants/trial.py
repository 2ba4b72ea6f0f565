"""One trial: a method, a setting and a seed; done once, kept as a small JSON file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from holdfast.curvature.factored import AnyImportance, load_importance
from holdfast.errors import OptionError
from holdfast.files import read_json, read_state, write_json
from holdfast.files.exclusive import locked
from holdfast.lab.folder import check_same, versions
from holdfast.probes import Probes
from holdfast.tensors import all_parameters


@dataclass(frozen=True)
class StoryTrial:
    """What is to be done.

    Attributes:
        story: "encoder" or "gpt".
        method: a name of `STORY_METHODS`.
        lr: times the learning rate of the pace.
        value: of what the method has to be set; None: nothing.
        seed: of data order, dropout and new heads.
        size: "full" or "quick".
        tuning: whether it serves to choose a setting, and stops after the first task.
    """

    story: str
    method: str
    lr: float
    value: float | None
    seed: int
    size: str = "full"
    tuning: bool = False

    @property
    def name(self) -> str:
        """Of its file."""
        value = "" if self.value is None else f"-at-{self.value:g}"
        tuned = "-tuning" if self.tuning else ""
        return f"{self.method}{value}-lr-{self.lr:g}-{self.seed}{tuned}"


TrialResult = dict[str, Any]
"""What a trial found, as JSON values."""

MessageCallback = Callable[[str], None]


class _BusyError(Exception):
    """Another process does this trial."""


def do_all(
    trials: Iterable[StoryTrial],
    do: Callable[[StoryTrial, MessageCallback], TrialResult],
    folder: Path,
    *,
    settings: Mapping[str, Any],
    on_message: MessageCallback,
) -> dict[StoryTrial, TrialResult]:
    """Do what is missing, and return what is known; several processes on one folder share the work.

    Args:
        trials: in order.
        do: carries one out.
        folder: of the files.
        settings: what all trials share, as JSON values; kept in each file.
        on_message: called with a line of each trial.

    Raises:
        RunMismatchError: a file is of other settings.
    """
    found: dict[StoryTrial, TrialResult] = {}
    left = list(dict.fromkeys(trials))
    while left:
        busy = []
        for trial in left:
            path = folder / f"{trial.name}.json"
            try:
                with locked(_lock(folder, trial), waiting=_busy):
                    if not path.exists():
                        on_message(f"{trial.name} ...")
                        content = {
                            "trial": asdict(trial),
                            "settings": settings,
                            **do(trial, on_message),
                            "versions": versions(),
                        }
                        write_json(path, content)
            except _BusyError:
                busy.append(trial)
                continue
            found[trial] = _read(path, settings)
        if len(busy) == len(left):  # all that is left is under way elsewhere: wait for the first
            with locked(_lock(folder, busy[0])):
                pass
        left = busy
    return found


def _lock(folder: Path, trial: StoryTrial) -> Path:
    return folder / f".holdfast-{trial.name}.lock"


def known_trials(folder: Path, settings: Mapping[str, Any]) -> dict[StoryTrial, TrialResult]:
    """Every trial that is done in a folder.

    Raises:
        RunMismatchError: one is of other settings.
    """
    found = {}
    for path in sorted(folder.glob("*.json")):
        content = _read(path, settings)
        if "trial" in content:
            found[StoryTrial(**content["trial"])] = content
    return found


def _read(path: Path, settings: Mapping[str, Any]) -> TrialResult:
    content: TrialResult = read_json(path)
    check_same(path.parent, content.get("settings", {}), settings)
    return content


def _busy() -> None:
    raise _BusyError


@torch.no_grad()
def put(module: nn.Module, path: Path) -> None:
    """Give a module the weights that plain training left in a file.

    Raises:
        OptionError: there is no such file.
    """
    if not path.exists():
        raise OptionError(f"{path}: no such file; plain training is taken back from there. Do that trial again.")
    weights, _ = read_state(path)
    for name, parameter in all_parameters(module).items():
        parameter.copy_(weights[name])


WEIGHTS, PROBES = "weights", "probes"
"""Folders of an importance, and of its probes."""


def save(importance: AnyImportance, folder: Path) -> None:
    """Write an importance and its probes, these first: it is there when both are."""
    importance.probes.save(folder / PROBES)
    importance.save(folder / WEIGHTS)


def load(folder: Path) -> AnyImportance:
    """An importance that `save` wrote, with its probes."""
    return load_importance(folder / WEIGHTS).with_probes(Probes.load(folder / PROBES))
