"""Kept and learned: old and new skill, before and after fine-tuning that holds, and plain beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from holdfast.errors import OptionError
from holdfast.experiments.language.batches import Example, batches, classes_of, examples
from holdfast.experiments.language.checkpoints import checkpoints
from holdfast.experiments.language.encoders import SentenceEncoder
from holdfast.experiments.language.finetuning import Holding, Settings, fine_tune, keeper_of
from holdfast.experiments.language.importance_folder import read_importance
from holdfast.experiments.language.models import LanguageModel, Task, load_model
from holdfast.experiments.language.rows import Columns, Row, read_rows
from holdfast.experiments.language.skills import Skill, evaluate
from holdfast.files import check_output, new_folder, write_json

KEPT = "kept_and_learned.json"
_NAMES = (KEPT, "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
"""Of files that are written in any case."""

_HELD_OUT = 10
"""Every so many-th example measures the new skill, where no test data are given."""


@dataclass(frozen=True)
class Source:
    """Data as they are asked for.

    Attributes:
        path: see `read_rows`.
        columns: of a table.
        split: of a `datasets` name.
    """

    path: str
    columns: Columns = field(default_factory=Columns)
    split: str = "train"

    def rows(self) -> Any:
        """The stream of rows, from the beginning."""
        return read_rows(self.path, columns=self.columns, split=self.split)

    def first(self) -> Row | None:
        """The first row."""
        return next(iter(self.rows()), None)


@dataclass(frozen=True)
class Kept:
    """What became of two skills.

    Attributes:
        old: name of the way -> skill on the old data; empty without old data. "before" is one of the ways.
        new: name of the way -> skill on held-out new data.
        predicted_rise: of the old loss in nats, where a keeper knows it.
        report: what the keeper says of itself.
        folder: of the fine-tuned model.
    """

    old: Mapping[str, Skill]
    new: Mapping[str, Skill]
    predicted_rise: float | None
    report: str
    folder: Path

    @property
    def measured_rise(self) -> float | None:
        """Of the old loss in nats."""
        return self.old["held"].loss - self.old["before"].loss if "held" in self.old else None


def task_for(model: LanguageModel, source: Source) -> Task:
    """What an architecture and the form of the data make of the task."""
    row = source.first()
    if model.task == "causal-lm" and (row is None or row.label is None):
        return "causal-lm"
    if row is not None and len(row.texts) == 2:
        return "similarity"
    return "classification" if row is not None and row.label is not None else model.task


def keep_and_learn(
    name: str,
    data: Source,
    *,
    keep: Path,
    output: Path,
    settings: Settings,
    holding: Holding,
    task: Task | None = None,
    old_data: Source | None = None,
    test_data: Source | None = None,
    compare: bool = False,
    length: int = 128,
    device: str | torch.device = "cpu",
    dtype: Any = None,
    watch: Callable[[str, Mapping[str, Any]], None] | None = None,
) -> Kept:
    """Fine-tune a model under a keeper, and measure both skills before and after.

    Args:
        name: of the model, see `find_model`.
        data: what is learned.
        keep: folder of an importance.
        output: folder of the fine-tuned model.
        settings: of the training.
        holding: what holds it.
        task: what is learned; None: what the data look like.
        old_data: for the old skill.
        test_data: for the new skill; None: a tenth of the data, which is not trained on.
        compare: fine-tune plainly too.
        length: tokens of an example at most.
        device: where.
        dtype: of the weights, float32 by default.
        watch: told ("held" or "plain", logs).

    Raises:
        OutputError: `output` may not be written, see `holdfast.files.check_output`, or is read from.
        HoldfastError: see `load_model`, `read_importance`, `keeper_of` and `fine_tune`; nothing is written then.
    """
    others = [source.path for source in (data, old_data, test_data) if source is not None]
    reading = [name, *others, keep, *([] if holding.anchors is None else [holding.anchors])]
    check_output(output, reading=reading, names=_NAMES)
    given = {"device": device, **({} if dtype is None else {"dtype": dtype})}
    ready = load_model(name, **given)
    importance = read_importance(keep, ready)
    asked = task or task_for(ready, data)
    labels = classes_of(data.rows()) if asked == "classification" else ()
    model = ready
    if asked != ready.task or labels != ready.labels:
        ready = replace(ready, module=nn.Identity(), base=nn.Identity())  # one model in memory is enough
        torch.manual_seed(settings.seed)  # of a new head
        model = load_model(name, task=asked, labels=labels, **given)
    keeper = keeper_of(model, importance, holding)
    del importance
    found = list(examples(model, data.rows(), length=length, labelled=True))
    if test_data is None:
        tested = found[_HELD_OUT - 1 :: _HELD_OUT]
        found = [example for place, example in enumerate(found, start=1) if place % _HELD_OUT]
    else:
        tested = list(examples(model, test_data.rows(), length=length, labelled=True))
    plain_model = deepcopy(model) if compare else None

    def old_skill(learned: LanguageModel) -> Skill | None:
        return None if old_data is None else _old_skill(ready, learned, old_data, length, settings.batch_size)

    def new_skill(learned: LanguageModel) -> Skill:
        return evaluate(learned, batches(learned, tested, settings.batch_size))

    old, new = {"before": old_skill(model)}, {"before": new_skill(model)}
    identity = {
        "model": model.revision,
        "data": data.path,
        "task": asked,
        "length": length,
        "dtype": str(dtype),
        "keep": str(keep),
        **asdict(settings),
        **asdict(holding),
    }
    with checkpoints(output, identity) as training:
        fine_tune(model, found, settings, folder=training / "held", keeper=keeper, watch=_for(watch, "held"))
        old["held"], new["held"] = old_skill(model), new_skill(model)
        if plain_model is not None:
            plain_settings = replace(settings, save_every=None)
            fine_tune(plain_model, found, plain_settings, folder=training / "plain", watch=_for(watch, "plain"))
            old["plain"], new["plain"] = old_skill(plain_model), new_skill(plain_model)
        report = keeper.report()
        kept = Kept(
            {way: skill for way, skill in old.items() if skill is not None},
            new,
            report.predicted_rise,
            str(report),
            output,
        )
        with new_folder(output, reading=reading) as folder:
            model.save(folder)
            write_json(folder / KEPT, to_dict(kept))
    return kept


def to_dict(kept: Kept) -> dict[str, Any]:
    """As JSON values."""
    return {
        "old": {way: asdict(skill) for way, skill in kept.old.items()},
        "new": {way: asdict(skill) for way, skill in kept.new.items()},
        "predicted_rise": kept.predicted_rise,
        "measured_rise": kept.measured_rise,
        "keeper": kept.report,
    }


def _old_skill(ready: LanguageModel, learned: LanguageModel, data: Source, length: int, size: int) -> Skill:
    """The skill that the ready model had, with the weights of the model that learned."""
    row = data.first()
    if learned.base is not learned.module or isinstance(learned.module, SentenceEncoder):
        if row is None or len(row.texts) != 2:
            raise OptionError(
                f"finetune: the old skill of {ready.name} is similarity, and {data.path} holds no pairs of texts. "
                "Give --old-data two texts and their similarity in each row."
            )
        model = replace(ready, task="similarity", module=SentenceEncoder(learned.base), base=learned.base)
    elif ready.task != learned.task:
        raise OptionError(
            f"finetune: {ready.name} was made for {ready.task} and now learns {learned.task}; its old skill cannot be "
            "measured without its old head. Leave out --old-data."
        )
    else:
        model = learned
    found = list(examples(model, data.rows(), length=length, labelled=True))
    return evaluate(model, batches(model, _by_length(found), size))


def _by_length(found: Sequence[Example]) -> list[Example]:
    return sorted(found, key=lambda example: max(map(len, example.tokens)))


def _for(watch: Callable[[str, Mapping[str, Any]], None] | None, way: str) -> Any:
    return None if watch is None else lambda logs: watch(way, logs)
