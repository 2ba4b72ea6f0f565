"""What a model has written so far, round by round, and the checkpoint that it goes on from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from holdfast.errors import CollapseError, FileFormatError, RunMismatchError
from holdfast.files import read_state, write_state
from holdfast.language.writing import is_loop

ROUND = 32
"""Texts that are written together."""
_PATIENCE = 4
"""So many times the rounds that would do are written before a model counts as collapsed."""


@dataclass
class Written:
    """Texts so far: `rounds` of them, `count` texts in all, of which some were dropped."""

    texts: list[Tensor] = field(default_factory=list)
    rounds: int = 0
    count: int = 0
    duplicates: int = 0
    loops: int = 0
    known: set[tuple[int, ...]] = field(init=False)

    def __post_init__(self) -> None:
        self.known = {tuple(text.tolist()) for text in self.texts}

    def add(self, found: Iterable[Tensor], count: int) -> None:
        """Take the texts of a round of `count` that are neither loops nor there already."""
        self.rounds, self.count = self.rounds + 1, self.count + count
        for text in found:
            key = tuple(text.tolist())
            if key in self.known:
                self.duplicates += 1
            elif is_loop(text):
                self.loops += 1
            else:
                self.known.add(key)
                self.texts.append(text)

    def check(self, count: int) -> None:
        """Raise `CollapseError` where these rounds should have been enough several times over."""
        if self.rounds >= _PATIENCE * math.ceil(count / ROUND) and len(self.texts) < count:
            without_end = self.count - len(self.texts) - self.duplicates - self.loops
            raise CollapseError(
                f"dreams: of {self.count:,} texts that the model wrote {self.duplicates:,} were duplicates, "
                f"{self.loops:,} loops, and {without_end:,} had no end. It has collapsed, or is no model of such "
                "texts: look at what it writes, or dream at a higher temperature, or of another length."
            )

    def state(self) -> tuple[dict[str, Tensor], dict[str, int]]:
        """The texts, and the numbers as notes."""
        lengths = torch.tensor([len(text) for text in self.texts], dtype=torch.int32)
        tokens = torch.cat(self.texts) if self.texts else torch.empty(0, dtype=torch.int32)
        numbers = {name: getattr(self, name) for name in ("rounds", "count", "duplicates", "loops")}
        return {"lengths": lengths, "tokens": tokens}, numbers

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> Self:
        """What `state` gave."""
        texts = list(tensors["tokens"].split(tensors["lengths"].tolist()))
        return cls(texts, *(int(notes[name]) for name in ("rounds", "count", "duplicates", "loops")))

    def save(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Write a checkpoint."""
        tensors, numbers = self.state()
        write_state(path, tensors, {"identity": identity, **numbers})

    @classmethod
    def at(cls, path: Path, identity: Mapping[str, Any]) -> Self:
        """What a checkpoint holds; nothing where there is none."""
        if not path.exists():
            return cls()
        tensors, notes = read_state(path)
        if notes.get("identity") != identity:
            raise RunMismatchError(f"{path} is of other dreams: {notes.get('identity')}. Delete it, or name another.")
        try:
            return cls.of(tensors, notes)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise FileFormatError(f"{path} is damaged ({error!r}). Delete it to dream anew.") from error
