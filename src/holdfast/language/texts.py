"""Texts that a model wrote, with its answers to them, as records and as a folder."""

from __future__ import annotations

import hashlib
import os
import warnings
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from holdfast.errors import FileFormatError, ModelMismatchError, OptionError
from holdfast.files import Saved, new_folder, read_folder, write_description, write_tensors, write_text
from holdfast.probes import Probes
from holdfast.probes.files import probes_from_state, probes_to_state
from holdfast.version import __version__

CONFIG = "dreams_config.json"
"""Where a folder of dreams says what it is."""

_STEM = "dreams"
_OTHER = 0.01
"""Nats a token between the answers of the dreams and those of a model, above which they are another's."""


@dataclass(frozen=True)
class DreamsInfo:
    """How dreams were made, and what they are like.

    Attributes:
        model: the name of the model.
        tokenizer: the sha256 of its vocabulary.
        chat: whether they are conversations.
        length: the most tokens of one.
        temperatures: in turn.
        seed: of the draws.
        written: texts that were written, of which `duplicates`, `loops` and those without an end were dropped.
        duplicates: that said what another had said.
        loops: that went round.
        distinct: share of the runs of four tokens, over all dreams, that occur once.
        perplexity: of the model itself on them; e^700 where it is more.
        rest: the probability, at a mean token, of all classes but the 64 most probable, told by 64 drawn among them.
    """

    model: str
    tokenizer: str
    chat: bool
    length: int
    temperatures: tuple[float, ...]
    seed: int
    written: int
    duplicates: int
    loops: int
    distinct: float
    perplexity: float
    rest: float


@dataclass(frozen=True)
class Dreams:
    """Texts that a model wrote, with its answers to them.

        hf.Rehearsal(model, dreams.probes, share=0.1)                            # rehearse them
        keeper.retain(hf.measure(model, dreams.batches, probes=dreams.probes))   # measure, hold and watch without data

    Attributes:
        probes: the texts in batches, as the model takes them, and what it answered.
        info: how they were made.
    """

    probes: Probes
    info: DreamsInfo

    def __len__(self) -> int:
        """How many there are."""
        return self.probes.num_examples

    @property
    def batches(self) -> list[dict[str, Tensor]]:
        """The texts alone: `input_ids`, `attention_mask` and `labels`."""
        return [probe.batch for probe in self.probes.batches]

    def split(self, count: int) -> tuple[Dreams, Dreams]:
        """The first batches, with at least `count` dreams, and the others: to rehearse on, and to watch.

        Raises:
            OptionError: nothing would be left of one.
        """
        sizes = torch.tensor([len(batch["input_ids"]) for batch in self.batches]).cumsum(dim=0)
        place = int((sizes < count).sum()) + 1
        if count < 1 or place >= len(sizes):
            raise OptionError(f"Dreams.split: count={count} of {len(self)} dreams. Leave some for either part.")
        parts = self.probes.batches[:place], self.probes.batches[place:]
        first, second = (Dreams(replace(self.probes, batches=tuple(part)), self.info) for part in parts)
        return first, second

    def check(self, model: nn.Module, tokenizer: Any) -> None:
        """Raise or warn where they are not of this model, as it is now.

        Raises:
            ModelMismatchError: they were written with another vocabulary.
        """
        if vocabulary_of(tokenizer) != self.info.tokenizer:
            raise ModelMismatchError(
                f"dreams: they were written by {self.info.model!r} with another vocabulary. Dream with this model."
            )
        rise = replace(self.probes, batches=self.probes.batches[:1]).rise(model)
        if rise > _OTHER:
            warnings.warn(
                f"dreams: the answers of this model are {rise:.3g} nats a token from those of {self.info.model!r}, "
                "which dreamt. They teach the other's. Dream again, before this one learns.",
                stacklevel=2,
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a folder of safetensors and JSON, with a card, whole or not at all.

        Raises:
            OutputError: something else stands there, or it cannot be written.
        """
        tensors, notes = probes_to_state(self.probes)
        with new_folder(path) as folder:
            write_tensors(folder, _STEM, tensors)
            content = {"library_version": __version__, "info": asdict(self.info), "probes": notes}
            write_description(folder / CONFIG, content)
            write_text(folder / "README.md", self._card())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote.

        Raises:
            FileFormatError: it is missing, truncated, edited, or something else.
        """
        return read_folder(path, cls._read)

    @classmethod
    def _read(cls, saved: Saved) -> Self:
        content, where = saved.description(CONFIG), str(saved.path)
        probes = probes_from_state(saved.tensors(_STEM), content.get("probes"), where=where)
        try:
            given = dict(content["info"])
            info = DreamsInfo(**{**given, "temperatures": tuple(given["temperatures"])})
        except (KeyError, TypeError) as error:
            raise FileFormatError(f"{where}: {CONFIG} is damaged ({error!r}). Dream again.") from error
        return cls(probes, info)

    def _card(self) -> str:
        info = self.info
        kind = "conversations" if info.chat else "texts"
        return (
            f"# Dreams of {info.model}\n\n"
            f"{len(self):,} {kind} of up to {info.length} tokens that the model wrote by itself, at temperature "
            f"{', '.join(f'{t:g}' for t in info.temperatures)}, and its 64 most probable next tokens at each place "
            "and 64 others, with their probabilities. holdfast rehearses them while the model learns on.\n\n"
            "No training data are in here. But a language model may repeat some of what it was trained on, word for "
            "word: share these dreams as you would share the model.\n\n"
            f"| | |\n| --- | --- |\n| written, duplicates, loops | {info.written:,}, {info.duplicates:,}, "
            f"{info.loops:,} |\n| distinct runs of four tokens | {info.distinct:.1%} |\n| perplexity of the model on "
            f"them | {info.perplexity:.4g} |\n| probability beyond the 64 most probable | {info.rest:.2%} |\n"
        )


def vocabulary_of(tokenizer: Any) -> str:
    """The sha256 of its tokens and their numbers."""
    words = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(repr(words).encode()).hexdigest()
