"""The trials of one method in an Optuna study, which any number of processes and machines may share.

Optuna's grid sampler draws the same point twice where several processes ask at once (issue 2039 of optuna/optuna), and
its heartbeat serves `Study.optimize` alone. So the points of a grid wait in the study's queue, from which a trial is
taken atomically; a point that two processes queued at once counts by its first trial; and each trial bears the name of
the session that is at work on it, which tells the living from the dead.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import get_args

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from holdfast.lab.sweep.findings import Finding
from holdfast.lab.sweep.rules import hopeless, next_strengths
from holdfast.lab.sweep.session import Session, living
from holdfast.lab.sweep.space import Space, SweepChoice
from holdfast.lab.sweep.storage import storage_at
from holdfast.lab.training import OptimizerName

_ANY = [1e-30, 1e30]


@dataclass(eq=False)
class Trial:
    """A trial that this process is at work on."""

    board: Board
    choice: SweepChoice
    own: optuna.Trial
    reported: dict[int, float] = field(default_factory=dict)

    def report(self, step: int, value: float) -> bool:
        """Tell the average validation accuracy at a step; returns whether the trial is hopeless by it."""
        if step in self.reported:
            return False
        self.reported[step] = value
        self.own.report(value, step)
        others = [
            trial.intermediate_values[step]
            for trial in self.board.trials()
            if trial.number != self.own.number and step in trial.intermediate_values
        ]
        return hopeless(value, others)

    def complete(self, *, validation: Sequence[float], test: Sequence[float], runs: Sequence[str]) -> None:
        """Its runs are done."""
        for name, values in (("validation", validation), ("test", test), ("runs", runs)):
            self.own.set_user_attr(name, list(values))
        self.board.study.tell(self.own, statistics.fmean(validation))

    def prune(self, why: str) -> None:
        """Give it up for good."""
        self.own.set_user_attr("why", why)
        self.board.study.tell(self.own, state=TrialState.PRUNED)

    def fail(self) -> None:
        """It could not be done; a later sweep tries again."""
        self.board.study.tell(self.own, state=TrialState.FAIL)

    def give_back(self) -> None:
        """Leave it to whoever comes next."""
        self.board.requeue(self.own.number, self.choice)


class Board:
    """The trials of one method; see the module."""

    def __init__(self, space: Space, method: str, *, study: optuna.Study, session: Session) -> None:
        self.space, self.method, self.study = space, method, study
        self._session = session
        if space.sampler == "grid":
            self._enqueue(space.grid(method))

    def trials(self) -> list[FrozenTrial]:
        """Every trial that counts: not those that failed, and of a point that stands there twice the first."""
        seen: set[SweepChoice] = set()
        counted = []
        for trial in self.study.get_trials(deepcopy=False):
            choice = _choice_of(trial)
            if trial.state == TrialState.FAIL or choice is None or choice in seen:
                continue
            seen.add(choice)
            counted.append(trial)
        return counted

    def claim(self) -> Trial | None:
        """Take a trial to work on; None where there is none to take now."""
        while True:
            trials = self.trials()
            waiting = any(trial.state == TrialState.WAITING for trial in trials)
            if not waiting and len(trials) >= (self.space.trials or 0):
                return None
            own = self.study.ask()
            own.set_user_attr("owner", self._session.owner)
            queued = "fixed_params" in self.study.get_trials(deepcopy=False)[own.number].system_attrs
            if queued or self.space.sampler == "tpe":
                choice = self._suggested(own)
                if own.number in [trial.number for trial in self.trials()[: self.space.trials]]:
                    return Trial(self, choice, own)
            self.study.tell(own, state=TrialState.FAIL)  # another process was first

    def busy(self) -> bool:
        """Whether trials are under way, here or elsewhere."""
        return any(trial.state == TrialState.RUNNING for trial in self.trials())

    def recover(self) -> int:
        """Queue again what dead sessions were at work on; returns how many trials that were."""
        running = [trial for trial in self.trials() if trial.state == TrialState.RUNNING]
        dead = [t for t in running if self._session.is_dead(t.user_attrs.get("owner"), self.study)]
        for trial in dead:
            choice = _choice_of(trial)
            assert choice is not None
            self.requeue(trial.number, choice)
        return len(dead)

    def requeue(self, number: int, choice: SweepChoice) -> None:
        """Fail a trial that nobody is at work on any more, and queue its point again."""
        with suppress(UpdateFinishedTrialError, ValueError):  # another process was first
            self.study.tell(number, state=TrialState.FAIL)
            self._enqueue([choice])

    def refine(self) -> bool:
        """Queue strengths next to the best, when all trials have ended; returns whether there are any."""
        if not self.space.refines(self.method):
            return False
        found = self.findings()
        whole = [finding for finding in found if finding.state == "complete"]
        if not whole:
            return False
        best = max(whole, key=lambda finding: statistics.fmean(finding.validation)).choice
        line = {
            finding.choice.strength: finding.validation or None
            for finding in found
            if finding.choice.strength and (finding.choice.optimizer, finding.choice.lr) == (best.optimizer, best.lr)
        }
        grid = [choice.strength for choice in self.space.grid(self.method) if choice.strength]
        return self._enqueue(
            [SweepChoice(best.optimizer, best.lr, strength) for strength in next_strengths(line, grid)]
        )

    def findings(self) -> list[Finding]:
        """Of every trial that has ended."""
        ended = [trial for trial in self.trials() if trial.state.is_finished()]
        return [_finding(self.method, trial) for trial in ended]

    def _enqueue(self, choices: Sequence[SweepChoice]) -> bool:
        there = {_choice_of(trial) for trial in self.trials()}
        fresh = [choice for choice in choices if choice not in there]
        for choice in fresh:
            params = {name: value for name, value in asdict(choice).items() if value is not None}
            self.study.enqueue_trial(params)
        return bool(fresh)

    def _suggested(self, own: optuna.Trial) -> SweepChoice:
        grid = self.space.grid(self.method)
        if self.space.sampler == "grid":  # queued, so that these are only the bounds of what may be queued
            optimizers, lrs, strengths = list(get_args(OptimizerName)), _ANY, _ANY
        else:
            optimizers, lrs = sorted({choice.optimizer for choice in grid}), [choice.lr for choice in grid]
            strengths = [choice.strength for choice in grid if choice.strength]
        optimizer = own.suggest_categorical("optimizer", optimizers)
        strength = None
        if grid[0].strength is not None:
            strength = own.suggest_float("strength", min(strengths), max(strengths), log=True)
        return SweepChoice(optimizer, own.suggest_float("lr", min(lrs), max(lrs), log=True), strength)


def _choice_of(trial: FrozenTrial) -> SweepChoice | None:
    """Of a trial that waits or has begun; None of one that is only just being asked for."""
    params = trial.system_attrs.get("fixed_params") or trial.params
    return SweepChoice(**params) if "lr" in params else None  # which is drawn last


def _finding(method: str, trial: FrozenTrial) -> Finding:
    choice = _choice_of(trial)
    assert choice is not None
    if trial.state == TrialState.PRUNED:
        return Finding(method, choice, state="pruned", why=trial.user_attrs["why"])
    validation, test, runs = (tuple(trial.user_attrs[name]) for name in ("validation", "test", "runs"))
    return Finding(method, choice, validation=validation, test=test, runs=runs)


@contextmanager
def boards_of(space: Space, *, folder: Path, storage: str | None) -> Iterator[list[Board]]:
    """One board a method, in a storage; this process is a living session for the length of the block.

    Raises:
        OptionError: the storage cannot be used.
        OutputError: the folder cannot be written.
    """
    with storage_at(storage, folder=folder) as opened:
        studies = [
            optuna.create_study(
                storage=opened,
                study_name=space.study_name(method),
                direction="maximize",
                sampler=optuna.samplers.TPESampler(),
                load_if_exists=True,
            )
            for method in space.methods
        ]
        with living(studies, folder=folder) as session:
            yield [
                Board(space, method, study=study, session=session)
                for method, study in zip(space.methods, studies, strict=True)
            ]
