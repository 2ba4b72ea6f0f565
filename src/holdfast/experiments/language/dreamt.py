"""What a causal model writes itself, in place of data: a part to measure on, and a part to see a rise on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from holdfast.errors import OptionError
from holdfast.experiments.language.batches import Example
from holdfast.experiments.language.models import LanguageModel
from holdfast.language import Dreams, dreams
from holdfast.language.writing import num_positions
from holdfast.probes import Probes

LEAST = 32
"""Dreams of which a quarter makes a batch."""

_WATCHED = 128
"""Dreams that are not measured on, at most a quarter: as many as `probes_of` takes of texts."""


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
    model: LanguageModel, count: int, *, length: int, seed: int, checkpoint: Path | None = None, progress: bool = False
) -> Dreamt:
    """Let a causal model write its own data.

    Args:
        model: as `holdfast.language.dreams` takes it, and left as it was.
        count: of dreams, at least 32.
        length: tokens of one at most; cut to the model's positions.
        seed: of the draws.
        checkpoint: see `dreams`.
        progress: show a progress bar.

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
    )
    measured, watched = found.split(count - min(_WATCHED, count // 4))
    return Dreamt(found, _examples(measured), watched.probes)


def _examples(found: Dreams) -> list[Example]:
    return [
        Example((tokens[mask.bool()].tolist(),))
        for batch in found.batches
        for tokens, mask in zip(batch["input_ids"], batch["attention_mask"])
    ]
