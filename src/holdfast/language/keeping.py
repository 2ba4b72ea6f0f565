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

from holdfast.curvature.joining import importance_digest
from holdfast.errors import EmptyDataError, OptionError
from holdfast.files import check_output, new_folder, write_json
from holdfast.language.automatic import AutomaticChoice, choose, importance_of_past
from holdfast.language.batches import Example, batches, classes_of, digest_of, examples
from holdfast.language.checkpoints import checkpoints
from holdfast.language.choosing import choose_task, head_for, number_read, plan
from holdfast.language.dreamt import DREAMS, probes_beside
from holdfast.language.finetuning import (
    FineTuneSettings,
    HoldOptions,
    fine_tune,
    held_by,
    keeper_of,
    num_steps,
)
from holdfast.language.importance_folder import read_importance
from holdfast.language.kept import SkillChange, to_dict
from holdfast.language.models import LanguageModel, LanguageTask, load_model
from holdfast.language.old_skill import OldSkill
from holdfast.language.past import OldAnswers, RehearsalOptions
from holdfast.language.processes import ALONE, Processes
from holdfast.language.rows import Source
from holdfast.language.skills import MeasuredSkill, evaluate
from holdfast.language.ticks import OnProgress, counted
from holdfast.replay import Rehearsal
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
    keep: Path | None,
    output: Path,
    settings: FineTuneSettings,
    holding: HoldOptions,
    rehearsing: RehearsalOptions | None = None,
    automatic: bool = False,
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
    processes: Processes = ALONE,
) -> SkillChange:
    """Fine-tune a model under a keeper, with a past to rehearse, or both, and measure both skills before and after.

    A classifier that learns labels which are not its own gets a new head for them. The old head is kept as it is: it
    takes no part in the training, measures the old skill, and is saved with the model.

    Args:
        name: of the model, see `find_model`.
        data: what is learned.
        keep: folder of an importance; None for none.
        output: folder of the fine-tuned model.
        settings: of the training.
        holding: what holds it, where there is an importance. A budget is measured on probes: those of the dreams in
            `keep`, else a part of the past that is set apart, where this is not of the new data.
        rehearsing: what it rehearses; None for nothing.
        automatic: choose what is held and rehearsed, as far as it was not given; see `automatic.choose`.
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
        processes: that train together, and of which each measures a share of the examples; the first writes, into a
            folder that all of them see. Each holds all of the probes and of the past.

    Raises:
        RunMismatchError: the processes are not about to do the same.
        LostProcessError: one of them is gone; the same call goes on from the last checkpoint.
        OutputError: `output` may not be written, see `holdfast.files.check_output`, or is read from.
        HoldfastError: see `load_model`, `read_importance`, `keeper_of`, `OldAnswers` and `fine_tune`; nothing is
            written then.
    """
    others = [source.path for source in (data, old_data, test_data) if source is not None]
    past_path = None if rehearsing is None else rehearsing.path
    reading = [name, *others, *(path for path in (keep, holding.anchors, past_path) if path is not None)]
    check_output(output, reading=reading, names=_NAMES)
    given = {"device": device, **({} if dtype is None else {"dtype": dtype})}
    ready = load_model(name, **given)
    importance = None if keep is None else read_importance(keep, ready)
    held_digest = None if importance is None or processes.count == 1 else importance_digest(importance)
    details = {} if importance is None else importance.info.details
    asked, why = choose_task(ready, data, asked=task, learns=True, labelled=True)
    if keep is not None and importance is not None and asked == ready.task == "causal-lm":
        importance = importance.with_probes(probes_beside(keep))
    choice = AutomaticChoice(None if keep is None else holding, rehearsing)
    if automatic:
        choice = choose(ready, asked, importance, holding, rehearsing)
    old_answers = None
    if choice.rehearsing is not None:
        old_answers = OldAnswers(ready, choice.rehearsing, asked=asked, measured=details.get("head"))
    old_length = details.get("length")
    old = None if old_data is None else OldSkill(ready, details.get("head"), old_data, asked=asked)
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
    watches = old_answers is not None and old_answers.can_be_watched and choice.lacks_probes(importance)
    if watches and holding.anchors is not None and model.prefix:
        raise OptionError(
            f"finetune: --anchors names the weights of {name} as a file has them, and a budget that is measured on "
            "what is rehearsed holds them under other names. Leave out --anchors, or give --strength."
        )
    keeper = None
    if choice.holding is not None and importance is not None and not watches:
        keeper, importance = keeper_of(model, importance, choice.holding), None

    def read(source: Source, what: str) -> list[Example]:
        found = examples(model, source.rows(), length=length, labelled=True)
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
        on_plan([*lines, *([] if old is None else [old.told(model, remembered)]), *choice.reasons])
    plain_model = deepcopy(model) if compare else None

    old_skills: dict[str, MeasuredSkill] = {}
    new_skills: dict[str, MeasuredSkill] = {}

    def judge(learned: LanguageModel, way: str) -> None:
        given: Any = {"size": settings.batch_size, "on_progress": on_progress, "processes": processes}
        if old is not None:
            old_skills[way] = _skill(old.judge(learned), remembered, work=f"old skill, {way}", **given)
        new_skills[way] = _skill(learned, tested, work=f"new skill, {way}", **given)

    def train(learned: LanguageModel, way: str, folder: Path, own: FineTuneSettings, **beside: Any) -> None:
        on_its_log = None if on_log is None else partial(on_log, way)
        step = None if on_progress is None else partial(on_progress, f"training, {way}")
        beside |= {"on_log": on_its_log, "on_step": step, "processes": processes}
        fine_tune(learned, found, own, folder=folder / way, **beside)
        judge(learned, way)

    def taken(place: Path) -> tuple[EWC | WVA | None, Rehearsal | None, str]:
        """What holds the model, what rehearses, and what the past is, in words."""
        if old_answers is None or choice.rehearsing is None:
            return keeper, None, ""
        past = old_answers.past(
            model,
            found,
            num_batches=choice.rehearsing.steps_of(num_steps(settings, len(found))),
            batch_size=settings.batch_size,
            length=length,
            seed=settings.seed,
            watch=watches,
            place=place / DREAMS,
            on_progress=on_progress,
            processes=processes,
        )
        rehearsal = past.rehearsal(share=choice.rehearsing.share, seed=settings.seed)
        if on_plan is not None:
            on_plan([f"rehearsal: {past.told}; one step of {rehearsal.every} learns a batch of them again"])
        if choice.holding is None or not watches:
            return keeper, rehearsal, past.told
        own = {"probes": past.watched}
        if importance is not None:
            return keeper_of(model, importance, choice.holding, judge=past.judge, **own), rehearsal, past.told
        measured = importance_of_past(past, seed=settings.seed, place=place, processes=processes)
        if on_plan is not None:
            on_plan([f"importance of what is rehearsed: {measured}"])
        return held_by(past.judge.module, measured, choice.holding, free=True, **own), rehearsal, past.told

    identity = {
        "model": model.revision,
        "data": data.path,
        "task": asked,
        "head": model.head,
        "length": length,
        "dtype": str(dtype),
        "keep": str(keep),
        **asdict(settings),
        **asdict(choice.holding or holding),
        "rehearse": None if choice.rehearsing is None else choice.rehearsing.what,
        "share": None if choice.rehearsing is None else choice.rehearsing.share,
    }
    if processes.count > 1:
        processes.agree("finetune", **identity, examples=digest_of(found, tested, remembered), importance=held_digest)
    judge(model, "before")
    with checkpoints(output, identity, processes=processes) as training:
        keeper, rehearsal, told_of_past = taken(training)
        importance = None
        train(model, "held", training, settings, keeper=keeper, rehearsal=rehearsal)
        if plain_model is not None:
            train(plain_model, "plain", training, replace(settings, save_every=None))
        report = None if keeper is None else keeper.report()
        kept = SkillChange(
            old_skills,
            new_skills,
            None if report is None else report.predicted_rise,
            "" if report is None else str(report),
            output,
            plain_folder=None if plain_model is None else output / PLAIN,
            rise_unit="nats" if report is None else report.rise_unit,
            method="rehearsal" if choice.holding is None else choice.holding.method,
            strength=None if choice.holding is None else choice.holding.strength,
            budget=None if choice.holding is None else choice.holding.budget,
            rehearsed=told_of_past,
            share=None if choice.rehearsing is None else choice.rehearsing.share,
            choices=choice.reasons,
            old_head="" if old is None else old.head,
            new_head=model.head,
            kept_heads=tuple(model.heads),
        )
        if processes.is_first:
            with new_folder(output, reading=reading) as folder:
                model.save(folder)
                if plain_model is not None:
                    plain_model.save(folder / PLAIN)
                write_json(folder / KEPT, to_dict(kept))
    return kept


def _skill(
    model: LanguageModel,
    found: Sequence[Example],
    *,
    size: int,
    work: str,
    on_progress: OnProgress | None,
    processes: Processes,
) -> MeasuredSkill:
    read = counted(batches(model, found, size), on_progress, work, total=len(found), by=size)
    return evaluate(model, read, processes=processes)
