"""Kept and learned: old and new skill, before and after fine-tuning that holds, and plain beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from holdfast.errors import EmptyDataError
from holdfast.experiments.language.batches import Example, batches, classes_of, examples
from holdfast.experiments.language.checkpoints import checkpoints
from holdfast.experiments.language.choosing import choose_task, head_for, known_labels, number_read, plan
from holdfast.experiments.language.finetuning import FineTuneSettings, HoldOptions, fine_tune, keeper_of
from holdfast.experiments.language.importance_folder import read_importance
from holdfast.experiments.language.kept import SkillChange, to_dict
from holdfast.experiments.language.models import LanguageModel, LanguageTask, load_model
from holdfast.experiments.language.old_skill import OldSkill
from holdfast.experiments.language.skills import Skill, evaluate
from holdfast.experiments.language.sources import Source
from holdfast.experiments.language.ticks import OnProgress, counted
from holdfast.files import check_output, new_folder, write_json
from holdfast.retention import EWC, WVA

KEPT = "kept_and_learned.json"
_NAMES = (KEPT, "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
"""Of files that are written in any case."""

_HELD_OUT = 10
"""Every so many-th example measures the new skill, where no test data are given."""

PLAIN = "plain"
"""The folder of the plainly fine-tuned model, in that of the other."""


def keep_and_learn(
    name: str,
    data: Source,
    *,
    keep: Path,
    output: Path,
    settings: FineTuneSettings,
    holding: HoldOptions,
    task: LanguageTask | None = None,
    head: str | None = None,
    old_data: Source | None = None,
    test_data: Source | None = None,
    compare: bool = False,
    length: int = 128,
    device: str | torch.device = "cpu",
    dtype: Any = None,
    on_log: Callable[[str, Mapping[str, Any]], None] | None = None,
    on_plan: Callable[[Sequence[str]], None] | None = None,
    on_progress: OnProgress | None = None,
) -> SkillChange:
    """Fine-tune a model under a keeper, and measure both skills before and after.

    A classifier that learns labels which are not its own gets a new head for them. The old head is kept as it is: it
    takes no part in the training, measures the old skill, and is saved with the model.

    Args:
        name: of the model, see `find_model`.
        data: what is learned.
        keep: folder of an importance.
        output: folder of the fine-tuned model.
        settings: of the training.
        holding: what holds it.
        task: what is learned; None: what the model was made for, see `choose_task`.
        head: name of the classifier's head that learns; None: the one that has the labels, else a new one.
        old_data: for the old skill.
        test_data: for the new skill; None: a tenth of the data, which is not trained on.
        compare: fine-tune plainly too, and save that model in the folder `plain` of `output`.
        length: tokens of an example at most.
        device: where.
        dtype: of the weights, float32 by default.
        on_log: called with ("held" or "plain", logs) whenever the Trainer logs.
        on_plan: called with lines that say what will be done, before any work.
        on_progress: called as long work goes on.

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
    asked, why = choose_task(ready, data, asked=task, learns=True, labelled=True)
    old_length = importance.info.details.get("length")
    old = None if old_data is None else OldSkill(ready, importance.info.details.get("head"), old_data, asked=asked)
    model = ready
    torch.manual_seed(settings.seed)  # of a new head
    labels: tuple[str, ...] = ()
    if asked == "classification":
        labels = classes_of(counted(data.rows(), on_progress, f"reading the labels of {data.path}"))
        head, is_new = head_for(ready, labels, data, asked=head)
        if ready.task != "causal-lm":
            model = ready.with_new_head(head, labels) if is_new else ready.with_head(head)
    if model is ready and (asked != ready.task or (head is not None and head != ready.head)):
        ready = replace(ready, module=nn.Identity(), base=nn.Identity())  # one model in memory is enough
        model = load_model(name, task=asked, labels=labels, head=head, **given)
    keeper = keeper_of(model, importance, holding)
    del importance

    def read(source: Source, what: str) -> list[Example]:
        rows = known_labels(model, source.rows(), where=source.path)
        found = examples(model, rows, length=length, labelled=True)
        return list(counted(found, on_progress, f"reading {what} {source.path}"))

    found = read(data, "new data")
    if test_data is None:
        total = len(found)
        tested = found[_HELD_OUT - 1 :: _HELD_OUT]
        found = [example for place, example in enumerate(found, start=1) if place % _HELD_OUT]
        if not tested:
            raise EmptyDataError(
                f"finetune: {data.path} holds {number_read(model, total)}; expected at least {_HELD_OUT}, every tenth "
                "of which measures the new skill. Give more, or --test-data."
            )
        told = f"{number_read(model, total)}, of which every tenth measures the new skill; in a new order each epoch"
    else:
        tested = read(test_data, "test data")
        told = f"{number_read(model, len(found))}, in a new order each epoch; the new skill is measured on "
        told += f"{number_read(model, len(tested))} of {test_data.path}"
    old_length = old_length if isinstance(old_length, int) else length
    remembered = [] if old is None else old.examples(model, old_length, on_progress)
    if on_plan is not None:
        lines = plan(model, data, why=why, length=length, labelled=True, examples_read=told)
        on_plan([*lines, *([] if old is None else [old.told(model, remembered)])])
    plain_model = deepcopy(model) if compare else None

    old_skills: dict[str, Skill] = {}
    new_skills: dict[str, Skill] = {}

    def judge(learned: LanguageModel, way: str) -> None:
        given: Any = {"size": settings.batch_size, "on_progress": on_progress}
        if old is not None:
            old_skills[way] = _skill(old.judge(learned), remembered, work=f"old skill, {way}", **given)
        new_skills[way] = _skill(learned, tested, work=f"new skill, {way}", **given)

    def train(learned: LanguageModel, way: str, folder: Path, own: FineTuneSettings, holder: EWC | WVA | None) -> None:
        on_its_log = None if on_log is None else partial(on_log, way)
        step = None if on_progress is None else partial(on_progress, f"training, {way}")
        fine_tune(learned, found, own, folder=folder / way, keeper=holder, on_log=on_its_log, on_step=step)
        judge(learned, way)

    judge(model, "before")
    identity = {
        "model": model.revision,
        "data": data.path,
        "task": asked,
        "head": model.head,
        "length": length,
        "dtype": str(dtype),
        "keep": str(keep),
        **asdict(settings),
        **asdict(holding),
    }
    with checkpoints(output, identity) as training:
        train(model, "held", training, settings, keeper)
        if plain_model is not None:
            train(plain_model, "plain", training, replace(settings, save_every=None), None)
        report = keeper.report()
        kept = SkillChange(
            old_skills,
            new_skills,
            report.predicted_rise,
            str(report),
            output,
            plain_folder=None if plain_model is None else output / PLAIN,
            rise_unit=report.rise_unit,
            method=holding.method,
            strength=holding.strength,
            budget=holding.budget,
            old_head="" if old is None else old.head,
            new_head=model.head,
            kept_heads=tuple(model.heads),
        )
        with new_folder(output, reading=reading) as folder:
            model.save(folder)
            if plain_model is not None:
                plain_model.save(folder / PLAIN)
            write_json(folder / KEPT, to_dict(kept))
    return kept


def _skill(
    model: LanguageModel, found: Sequence[Example], *, size: int, work: str, on_progress: OnProgress | None
) -> Skill:
    return evaluate(model, counted(batches(model, found, size), on_progress, work, total=len(found), by=size))
