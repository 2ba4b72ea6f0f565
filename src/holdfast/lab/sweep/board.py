"""The trials of one method in an Optuna study, which any number of processes and machines may share.

Optuna's grid sampler draws the same point twice where several processes ask at once (issue 2039 of optuna/optuna). So
every trial waits in the study's queue, from which it is taken atomically; a setting that two processes queued at once
counts by its first trial.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import optuna
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from holdfast.lab.sweep import storage as database
from holdfast.lab.sweep.findings import Finding
from holdfast.lab.sweep.rules import hopeless, next_strengths
from holdfast.lab.sweep.space import Space, SweepChoice
from holdfast.lab.training import OptimizerName

_ANY = [1e-30, 1e30]


class SuperfluousError(Exception):
    """Another process was first with what a trial was to try."""


class HopelessPruner(optuna.pruners.BasePruner):
    """Gives up what is `hopeless` by the value that was reported last.

    None of Optuna's own does: the median and percentile pruners take a trial's best value so far, which for an average
    that falls from task to task is always its first. Wilcoxon's test takes the tasks of a run for independent, and so
    gives up what holds more and therefore learns the first tasks a little less well, whatever comes of it at the end.
    """

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether to give up a trial."""
        *_, (step, value) = trial.intermediate_values.items()
        others = [
            other.intermediate_values[step]
            for other in study.get_trials(deepcopy=False)
            if other.number != trial.number and other.state != TrialState.FAIL and step in other.intermediate_values
        ]
        return hopeless(value, others)


class Board:
    """The trials of one method; see the module.

    Attributes:
        method: its name.
        study: where its trials stand.
        failed: settings that could not be tried in this process; a later sweep tries them again.
    """

    def __init__(self, space: Space, method: str, *, storage: optuna.storages.RDBStorage) -> None:
        self.space, self.method = space, method
        self.study = optuna.create_study(
            storage=storage,
            study_name=space.study_name(method),
            direction="maximize",
            sampler=optuna.samplers.TPESampler(),
            pruner=HopelessPruner() if space.prune else optuna.pruners.NopPruner(),
            load_if_exists=True,
        )
        self.failed: set[SweepChoice] = set()
        self._seen: dict[int, float] = {}

    def offer(self) -> bool:
        """Queue the next setting; returns whether a trial waits."""
        trials = self._trials()
        params = next(self._offers(trials), None)
        if params is not None:
            self.study.enqueue_trial(dict(params))
        return params is not None or any(trial.state == TrialState.WAITING for trial in trials)

    def begin(self, own: optuna.Trial) -> SweepChoice:
        """The setting that a trial is to try.

        Raises:
            SuperfluousError: there is none, or another trial tries it.
        """
        if "fixed_params" not in self.study.get_trials(deepcopy=False)[own.number].system_attrs:
            raise SuperfluousError  # the queue was empty
        choice = self._suggested(own)
        if own.number not in [trial.number for trial in self._trials()[: self.space.trials]]:
            raise SuperfluousError
        return choice

    def busy(self) -> bool:
        """Whether trials are under way, here or elsewhere."""
        return any(not trial.state.is_finished() for trial in self._trials())

    def recover(self) -> None:
        """Fail the trials of processes that died; their settings are then offered again."""
        optuna.storages.fail_stale_trials(self.study)
        for trial in self._trials():
            # one that died before its first sign of life is unknown to Optuna, and so are those of earlier versions
            silent = trial.state == TrialState.RUNNING and (not trial.params or "owner" in trial.user_attrs)
            since = self._seen.setdefault(trial.number, time.monotonic()) if silent else time.monotonic()
            if time.monotonic() - since > database.GRACE:
                self.study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)

    def findings(self) -> list[Finding]:
        """Of every trial that has ended."""
        return [_finding(self.method, trial) for trial in self._trials() if trial.state.is_finished()]

    def _trials(self) -> list[FrozenTrial]:
        """Every trial that counts: not those that failed, and of a setting that stands there twice the first."""
        seen: set[SweepChoice] = set()
        counted = []
        for trial in self.study.get_trials(deepcopy=False):
            choice = choice_of(trial)
            if trial.state != TrialState.FAIL and choice not in seen:
                counted.append(trial)
                seen |= {choice} if choice else set()
        return counted

    def _offers(self, trials: list[FrozenTrial]) -> Iterator[Mapping[str, Any]]:
        """What is left to try, as far as it is known."""
        taken = {choice_of(trial) for trial in trials} | self.failed
        if self.space.trials is not None:
            if len(trials) + len(self.failed) < self.space.trials:
                lost = [choice_of(trial) for trial in self.study.get_trials(deepcopy=False)]
                yield from (choice.settings for choice in lost if choice and choice not in taken)
                yield {}  # for the sampler to fill
            return
        yield from (choice.settings for choice in self.space.grid(self.method) if choice not in taken)
        if self.space.refines(self.method) and all(trial.state.is_finished() for trial in trials):
            yield from (choice.settings for choice in self._refined() if choice not in taken)

    def _refined(self) -> list[SweepChoice]:
        """Settings next to the best."""
        found = self.findings()
        whole = [finding for finding in found if finding.state == "complete"]
        if not whole:
            return []
        best = max(whole, key=lambda finding: statistics.fmean(finding.validation)).choice
        line = {
            finding.choice.strength: finding.validation or None
            for finding in found
            if finding.choice.strength and (finding.choice.optimizer, finding.choice.lr) == (best.optimizer, best.lr)
        }
        grid = [choice.strength for choice in self.space.grid(self.method) if choice.strength]
        return [SweepChoice(best.optimizer, best.lr, strength) for strength in next_strengths(line, grid)]

    def _suggested(self, own: optuna.Trial) -> SweepChoice:
        grid = self.space.grid(self.method)
        if self.space.sampler == "grid":  # these are only the bounds of what may be queued
            optimizers, lrs, strengths = list(get_args(OptimizerName)), _ANY, _ANY
        else:
            optimizers, lrs = sorted({choice.optimizer for choice in grid}), [choice.lr for choice in grid]
            strengths = [choice.strength for choice in grid if choice.strength]
        optimizer = own.suggest_categorical("optimizer", optimizers)
        strength = None
        if grid[0].strength is not None:
            strength = own.suggest_float("strength", min(strengths), max(strengths), log=True)
        return SweepChoice(optimizer, own.suggest_float("lr", min(lrs), max(lrs), log=True), strength)


def choice_of(trial: FrozenTrial) -> SweepChoice | None:
    """The setting of a trial that waits or has begun; None where it is not drawn yet."""
    params = trial.system_attrs.get("fixed_params") or trial.params
    return SweepChoice(**params) if "lr" in params else None  # which is drawn last


def _finding(method: str, trial: FrozenTrial) -> Finding:
    choice = choice_of(trial)
    assert choice is not None
    if trial.state == TrialState.PRUNED:
        return Finding(method, choice, state="pruned", why=trial.user_attrs["why"])
    validation, test, runs = (tuple(trial.user_attrs[name]) for name in ("validation", "test", "runs"))
    return Finding(method, choice, validation=validation, test=test, runs=runs)
