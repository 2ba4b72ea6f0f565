"""What a causal model writes itself, in place of data: a part to measure on, and a part to see a rise on."""

from __future__ import annotations

import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.errors import CollapseError, HoldfastError, OptionError
from holdfast.language import CONFIG, Dreams, dreams
from holdfast.language.batches import Example
from holdfast.language.models import LanguageModel
from holdfast.language.processes import ALONE, Processes
from holdfast.language.writing import num_positions
from holdfast.probes import Probes

LEAST = 32
"""Dreams of which a quarter makes a batch."""

WATCHED = 128
"""Examples on which a rise is measured and nothing else, at most a quarter of all: as many as `probes_of` takes of
texts."""

WRITING = ".holdfast-dreams.safetensors"
"""What dreaming that was killed goes on from, in the folder of the dreams."""

DREAMS = "dreams"
"""The folder of dreams within another, such as an importance's."""


@dataclass(frozen=True)
class Dreamt:
    """Dreams in two parts.

    Attributes:
        dreams: all of them.
        measured: the tokens of the first, which an importance is measured on.
        probes: the last, with the model's answers, on which a rise of the loss is measured.
    """

    dreams: Dreams
    measured: list[Example]
    probes: Probes


def dreamt(
    model: LanguageModel,
    count: int,
    *,
    length: int,
    seed: int,
    checkpoint: Path | None = None,
    progress: bool = False,
    processes: Processes = ALONE,
) -> Dreamt:
    """Let a causal model write its own data.

    Args:
        model: as `holdfast.language.dreams` takes it, and left as it was.
        count: of dreams, at least 32.
        length: tokens of one at most; cut to the model's positions.
        seed: of the draws.
        checkpoint: see `dreams`.
        progress: show a progress bar.
        processes: that write together.

    Raises:
        OptionError: too few, or a model that does not write; and what else `dreams` raises.
    """
    if count < LEAST:
        raise OptionError(
            f"importance: --self is {count}; expected a whole number from {LEAST}: a quarter of the texts is not "
            "measured on."
        )
    if model.task != "causal-lm":
        raise OptionError(
            f"importance: --self is for a causal language model, which can write, and {model.name} was made for "
            f"{model.task}. Give DATA that show its skill."
        )
    found = dreams(
        model.base,
        model.tokenizer,
        count=count,
        length=min(length, num_positions(model.base) or length),
        seed=seed,
        name=model.name,
        checkpoint=checkpoint,
        progress=progress,
        processes=processes,
    )
    measured, watched = set_apart(found)
    return Dreamt(found, _examples(measured), watched.probes)


def set_apart(found: Dreams) -> tuple[Dreams, Dreams]:
    """The dreams to measure on or to rehearse, and those on which a rise is measured."""
    return found.split(len(found) - min(WATCHED, len(found) // 4))


def probes_beside(importance: Path) -> Probes | None:
    """Of the dreams that an importance was measured on, those that were set apart; None where it was not.

    Raises:
        FileFormatError: they are damaged.
    """
    if not (importance / DREAMS / CONFIG).is_file():
        return None
    return set_apart(Dreams.load(importance / DREAMS))[1].probes


def dreams_in(path: Path, model: LanguageModel, *, processes: Processes = ALONE, **options: Any) -> Dreams:
    """The dreams in a folder where they are these, else the model dreams there; killed, it goes on.

    Args:
        path: of the folder.
        model: a causal language model.
        processes: that write together; the first decides whether the dreams are there.
        options: of `holdfast.language.dreams`; a length beyond the model's positions is cut to them.
    """
    options["length"] = length = min(options["length"], num_positions(model.base) or options["length"])
    asked = (options["count"], length, options["seed"])
    if processes.of_first(lambda: ({}, _are_there(path, model, asked)))[1]:
        return Dreams.load(path)
    return dream_into(path, model, processes=processes, **options)


def _are_there(path: Path, model: LanguageModel, asked: tuple[int, int, int]) -> bool:
    """Whether a folder holds dreams of this model, so many, of this length and seed."""
    if not (path / CONFIG).is_file():
        return False
    try:
        found = Dreams.load(path)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            found.check(model.module, model.tokenizer)
        return (len(found), found.info.length, found.info.seed) == asked
    except (HoldfastError, UserWarning):  # damaged, or another's: it is only a copy of what can be dreamt again
        return False


def dream_into(path: Path, model: LanguageModel, *, processes: Processes = ALONE, **options: Any) -> Dreams:
    """Let a model dream into a folder, from where a killed one stopped.

    Args:
        path: of the folder.
        model: a causal language model.
        processes: that write together; the first saves.
        options: of `holdfast.language.dreams`.

    Raises:
        CollapseError: it writes nothing of use; nothing is left in the folder, for other dreams may be asked for.
    """
    own = {"name": model.name, "checkpoint": path / WRITING, "processes": processes, **options}
    try:
        found = dreams(model.base, model.tokenizer, **own)
    except CollapseError:
        if processes.is_first:
            (path / WRITING).unlink(missing_ok=True)
            with suppress(OSError):  # something else is in it, or it was never made
                path.rmdir()
        raise
    if processes.is_first:
        found.save(path)
        (path / WRITING).unlink(missing_ok=True)
    processes.wait()
    return found


def _examples(found: Dreams) -> list[Example]:
    return [
        Example((tokens[mask.bool()].tolist(),))
        for batch in found.batches
        for tokens, mask in zip(batch["input_ids"], batch["attention_mask"])
    ]
