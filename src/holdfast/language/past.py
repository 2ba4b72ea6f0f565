"""What a fine-tuning rehearses: dreams, old answers to new inputs, or old data."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from holdfast.errors import EmptyDataError, OptionError
from holdfast.language import CONFIG, Dreams
from holdfast.language.batches import Example, LanguageBatch, batches_by_length, drawn, examples
from holdfast.language.choosing import number_of, number_read
from holdfast.language.dreamt import WATCHED, dreams_in, set_apart
from holdfast.language.encoders import SentenceEncoder
from holdfast.language.models import LanguageModel, LanguageTask
from holdfast.language.old_skill import OldSkill
from holdfast.language.processes import ALONE, Processes
from holdfast.language.rows import Source
from holdfast.language.skills import likelihood_of
from holdfast.language.ticks import OnProgress, counted
from holdfast.likelihoods import Similarity
from holdfast.likelihoods.batches import batch_to
from holdfast.probes import Probes
from holdfast.probes.probes import Probe
from holdfast.replay import Rehearsal

PastKind = Literal["self", "new", "dreams", "data"]

SHARE = 0.1
_FEWEST, _MOST = 256, 1600
"""Dreams that a model writes by itself for a fine-tuning: enough to measure by, and no more than `holdfast dream`."""


@dataclass(frozen=True)
class RehearsalOptions:
    """What is rehearsed, and how much of it.

    Attributes:
        what: "self", "new", a folder of dreams, or the name of data.
        share: of the batches that are of the past, as of `Rehearsal`.
        source: the old data, where `what` names some.
    """

    what: str
    share: float = SHARE
    source: Source | None = None

    @property
    def kind(self) -> PastKind:
        """Words come before folders and files of the same name."""
        if self.what == "self":
            return "self"
        if self.what == "new":
            return "new"
        return "dreams" if (Path(self.what) / CONFIG).is_file() else "data"

    @property
    def every(self) -> int:
        """Steps of which one rehearses, as of `Rehearsal`."""
        return max(1, round(1 / self.share))

    def steps_of(self, total: int) -> int:
        """How many of all steps rehearse.

        Warns:
            UserWarning: none does.
        """
        if total < self.every:
            warnings.warn(
                f"finetune: of {number_of(total, 'step')} none rehearses, with a share of {self.share:g} one of every "
                f"{self.every}. Give a larger --share, or more steps.",
                stacklevel=2,
            )
        return total // self.every

    @property
    def path(self) -> str | None:
        """What is read; None for words."""
        return None if self.kind in ("self", "new") else self.what


@dataclass(frozen=True)
class Past:
    """What is rehearsed, as it is at hand.

    Attributes:
        judge: the old network's head over the base that learns, which gives the old answers.
        rehearsed: old answers, or batches of old data.
        shown: what the old skill is seen on, such as for an importance; of similarities single texts.
        loss: of `shown`, by which answers are compared.
        watched: old answers that are not rehearsed, to measure a budget by; None where none is.
        told: what it is, in words.
    """

    judge: LanguageModel
    rehearsed: Probes | Sequence[LanguageBatch]
    shown: Sequence[Any]
    loss: Any
    watched: Probes | None
    told: str

    def rehearsal(self, *, share: float, seed: int) -> Rehearsal:
        """A rehearsal of it."""
        loss = None if isinstance(self.rehearsed, Probes) else likelihood_of(self.judge.task)
        return Rehearsal(self.judge.module, self.rehearsed, share=share, loss=loss, seed=seed)


class OldAnswers:
    """How the past is had for a fine-tuning; what does not fit the model is refused here, before any work.

    Args:
        ready: the model before it learns.
        options: what is rehearsed.
        asked: the task that is learned.
        measured: the head that an importance was measured with, if any.

    Raises:
        OptionError: the model has no such past.
        DataFileError, EmptyDataError: the old data cannot be read, or are empty.
        ModelMismatchError: the dreams are of another tokenizer.
        FileFormatError: they are damaged.

    Warns:
        UserWarning: the dreams are another model's.
    """

    def __init__(
        self, ready: LanguageModel, options: RehearsalOptions, *, asked: LanguageTask, measured: object = None
    ) -> None:
        self._options, self._head, self._of_causal = options, ready.head, ready.task == "causal-lm"
        self._dreams: Dreams | None = None
        self._skill: OldSkill | None = None
        kind, name = options.kind, ready.name
        if kind in ("self", "dreams") and not self._of_causal:
            what = "self" if kind == "self" else f"{options.what}, which are dreams,"
            raise OptionError(
                f"finetune: --rehearse {what} is for a causal language model, and {name} was made for {ready.task}. "
                "Give --rehearse new, its old answers to the new data, or old data."
            )
        if self._of_causal and asked != "causal-lm":
            raise OptionError(
                f"finetune: {name} was made for causal-lm and now learns {asked}; its old head is not kept, without "
                "which its past cannot be rehearsed. Leave out --rehearse, and give --keep DIR."
            )
        if kind == "dreams":
            self._dreams = Dreams.load(options.what)
            self._dreams.check(ready.module, ready.tokenizer)
        if kind == "data":
            assert options.source is not None
            row = options.source.first()
            has_target = row is not None and row.label is not None and (ready.head_labels or len(row.texts) == 2)
            if has_target and not self._of_causal:
                self._skill = OldSkill(ready, measured, options.source, asked=asked, option="--rehearse")

    @property
    def can_be_watched(self) -> bool:
        """Whether a part of it can stand for the old skill, which new inputs cannot."""
        return self._options.kind != "new"

    def judge(self, learned: LanguageModel) -> LanguageModel:
        """The old network's head over the weights of the one that learns."""
        if self._skill is not None:
            return self._skill.judge(learned)
        if self._of_causal:
            return learned
        if self._head:
            return learned.with_head(self._head)
        return replace(learned, task="similarity", module=SentenceEncoder(learned.base), labels=(), head="")

    def past(
        self,
        model: LanguageModel,
        new: Sequence[Example],
        *,
        num_batches: int,
        batch_size: int,
        length: int,
        seed: int,
        watch: bool,
        place: Path,
        on_progress: OnProgress | None = None,
        processes: Processes = ALONE,
    ) -> Past:
        """Take the old answers of a model that has not learned yet, or read the old data.

        No more is taken than the fine-tuning will rehearse.

        Args:
            model: what will learn.
            new: what it will learn.
            num_batches: of the past that will be rehearsed.
            batch_size: examples of one; those of a folder of dreams stay as they are.
            length: tokens of an example at most.
            seed: of what is drawn.
            watch: whether a part is set apart to measure a budget by.
            place: a folder for dreams, read where they are in it already.
            on_progress: called as long work goes on.
            processes: that write dreams together; each takes all of the old answers.

        Raises:
            EmptyDataError: there is too little.
            CollapseError, NotFiniteError: the model writes nothing of use.
        """
        judge = self.judge(model)
        learning = {id(parameter) for parameter in model.module.parameters()}
        for parameter in judge.module.parameters():
            if id(parameter) not in learning:  # of the old head, which stays as it is
                parameter.requires_grad_(False)
        wanted = max(1, num_batches) * batch_size + watch * WATCHED
        if self._options.kind in ("self", "dreams"):
            count = min(_MOST, max(_FEWEST, wanted))
            own = {"count": count, "length": length, "batch_size": batch_size, "seed": seed}
            dreamt = self._dreams or dreams_in(place, model, processes=processes, **own)
            told = f"{number_of(len(dreamt), 'dream')} of {dreamt.info.model}"
            watched = None
            if watch:
                dreamt, apart = set_apart(dreamt)
                watched = apart.probes
            return Past(judge, dreamt.probes, dreamt.batches, dreamt.probes.loss, watched, told)
        found = self._examples(judge, new, wanted, length=length, seed=seed, on_progress=on_progress)
        apart = min(WATCHED, len(found) // 4) if watch else 0
        least = 1
        if judge.task == "similarity":
            least, batch_size = 2, max(2, batch_size)  # one alone is like no other
        if len(found) - apart < least or (watch and apart < least):
            raise EmptyDataError(
                f"finetune: --rehearse {self._options.what} holds {number_of(len(found), 'example')}, which is too few "
                f"to rehearse{' and to measure a budget by' if watch else ''}. Give more."
            )
        loss: Any = Similarity() if judge.task == "similarity" else likelihood_of(judge.task)

        def answered(data: Sequence[LanguageBatch]) -> Probes:
            told = "asking for the old answers"
            found = Probes.taken(judge.module, counted(data, on_progress, told, total=len(data)), loss)
            return replace(found, batches=[_in_memory(probe) for probe in found.batches])

        watched = answered(batches_by_length(judge, self._singles(found[:apart]), batch_size)) if apart else None
        shown = batches_by_length(judge, self._singles(found[apart:]), batch_size)
        told, is_real = self._told(found, judge)
        rehearsed = batches_by_length(judge, found[apart:], batch_size) if is_real else answered(shown)
        return Past(judge, rehearsed, shown, loss, watched, told)

    def _singles(self, found: Sequence[Example]) -> list[Example]:
        """Each text of a pair by itself: it has a class of its own, or is compared with any other."""
        if self._of_causal:
            return list(found)
        return [replace(example, tokens=(tokens,)) for example in found for tokens in example.tokens]

    def _examples(
        self,
        judge: LanguageModel,
        new: Sequence[Example],
        count: int,
        *,
        length: int,
        seed: int,
        on_progress: OnProgress | None,
    ) -> list[Example]:
        """So many in random order, or all there are."""
        source = self._options.source
        if source is None:
            found: Iterable[Example] = (replace(example, target=None) for example in new)
        elif self._skill is not None:
            found = self._skill.examples(judge, length, on_progress)
        else:
            found = examples(judge, source.rows(), length=length, labelled=False)
        return list(drawn(found, count, seed=seed))

    def _told(self, found: Sequence[Example], judge: LanguageModel) -> tuple[str, bool]:
        """What it is, in words, and whether old data are taught with their own targets."""
        noun = "text" if self._skill is None else "example"
        count = number_read(judge, len(found)) if self._of_causal else number_of(len(found), noun)
        if self._options.kind == "new":
            return f"old answers to {count} of the new data{_headed(judge)}", False
        if self._skill is None and not self._of_causal:
            return f"old answers to {count} of {self._options.what}{_headed(judge)}", False
        return f"{count} of {self._options.what}{_headed(judge)}", True


def _headed(judge: LanguageModel) -> str:
    return f", head {judge.head!r}" if judge.task == "classification" else ""


def _in_memory(probe: Probe) -> Probe:
    """Off the device, whose memory the training needs."""
    return replace(probe, batch=batch_to(probe.batch, "cpu"), answers=batch_to(probe.answers, "cpu"))
