"""The skill that a model had before it learned something new: on what it is measured, and by which head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from holdfast.errors import OptionError
from holdfast.language.batches import Example, classes_of, examples
from holdfast.language.choosing import fits, number_of
from holdfast.language.encoders import SentenceEncoder
from holdfast.language.heads import listed_labels
from holdfast.language.models import LanguageModel, LanguageTask
from holdfast.language.rows import Source
from holdfast.language.ticks import OnProgress, counted


class OldSkill:
    """How the old skill is measured: on what, and with which head.

    Args:
        ready: the model before it learns.
        measured: the head that the importance was measured with, which comes first where several have the labels.
        source: the old data.
        asked: the task that is learned.
        option: by which the old data were given.

    Raises:
        OptionError: the old data do not show a skill that the model has.
    """

    def __init__(
        self, ready: LanguageModel, measured: object, source: Source, *, asked: LanguageTask, option: str = "--old-data"
    ) -> None:
        self._name, self._source, self.head = ready.name, source, ""
        row = source.first()
        self._of_encoder = isinstance(ready.module, SentenceEncoder) or ready.base is not ready.module
        if self._of_encoder and (not ready.head_labels or row is None or len(row.texts) == 2):
            if row is None or len(row.texts) != 2:
                raise OptionError(
                    f"finetune: the old skill of {ready.name} is similarity, and {source.path} holds no pairs of "
                    f"texts. Give {option} two texts and their similarity in each row."
                )
        elif ready.head_labels and (asked == "classification" or self._of_encoder):
            labels = classes_of(source.rows())
            known = ready.head_labels
            order = [str(name) for name in (measured, *known) if name in known]
            by_name = [name for name in order if fits(known[name], labels)]
            by_number = [name for name in order if fits(known[name], labels, by_number=True)]
            fitting = next(iter(by_name + by_number), None)
            if fitting is None:
                told = "; ".join(f"{name!r}: {listed_labels(own)}" for name, own in known.items())
                raise OptionError(
                    f"finetune: {source.path} has the labels {listed_labels(labels)}, and no head of {ready.name} has "
                    f"all of these ({told}). Give {option} data that show what the model could do."
                )
            self.head = fitting
        elif ready.task != asked:
            raise OptionError(
                f"finetune: {ready.name} was made for {ready.task} and now learns {asked}; its old skill cannot be "
                f"measured without its old head. Leave out {option}."
            )

    def judge(self, learned: LanguageModel) -> LanguageModel:
        """The old skill's model over the weights of the one that learned."""
        if self.head:
            return learned.with_head(self.head)
        if self._of_encoder:
            return replace(learned, task="similarity", module=SentenceEncoder(learned.base), labels=())
        return learned

    def examples(self, model: LanguageModel, length: int, on_progress: OnProgress | None) -> list[Example]:
        """The old data, texts of like length together."""
        judge = self.judge(model)
        found = examples(judge, self._source.rows(), length=length, labelled=True)
        found = counted(found, on_progress, f"reading old data {self._source.path}")
        return sorted(found, key=lambda example: max(map(len, example.tokens)))

    def told(self, model: LanguageModel, found: Sequence[Example]) -> str:
        """What the old skill is measured on, in words."""
        judge = self.judge(model)
        head = f", head {self.head!r}" if self.head else ""
        return f"old skill: {judge.task}{head}, on {number_of(len(found), 'example')} of {self._source.path}"
