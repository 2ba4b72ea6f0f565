"""The work of a sweep: settings taken from the boards, tried, and told."""

from __future__ import annotations

import statistics
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor, as_completed
from contextlib import closing
from functools import partial
from typing import Any

import optuna
from optuna.exceptions import TrialPruned, UpdateFinishedTrialError
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from holdfast.errors import NotFiniteError
from holdfast.lab.config import RunConfig
from holdfast.lab.pool import Pool
from holdfast.lab.result import RunResult
from holdfast.lab.running import EventCallback
from holdfast.lab.sweep.board import Board, SuperfluousError, choice_of
from holdfast.lab.sweep.space import Space

PATIENCE = 2.0
"""Seconds between two looks at trials that other processes are at work on."""

_STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


class FailedTrialError(Exception):
    """A run of a trial could not be done."""


class Drive:
    """Tries settings, each as one trial whose runs, one a seed, are done by a pool.

    Attributes:
        failures: name of the folder of each run that could not be done -> why.
        runs: names of the folders of all that have ended.
    """

    def __init__(self, space: Space, boards: Sequence[Board], do: Pool, tell: EventCallback) -> None:
        self.space, self.boards, self.do, self.tell = space, boards, do, tell
        self.failures: dict[str, str] = {}
        self.runs: set[str] = set()
        self._changed = threading.Condition()
        self._over = False

    def go(self, threads: Executor, *, jobs: int) -> None:
        """Until every trial, of this process or others, has ended and nothing is left to refine.

        Args:
            threads: which try a setting each, as many as there are jobs; one job needs none.
            jobs: how many.
        """
        if jobs == 1:
            return self._work()
        try:
            for each in as_completed([threads.submit(self._work) for _ in range(jobs)]):
                each.result()
        finally:
            with self._changed:
                self._over = True
                self._changed.notify_all()

    def _work(self) -> None:
        while board := self._next():
            self._try(board)
            with self._changed:
                self._changed.notify_all()

    def _next(self) -> Board | None:
        """A board where a trial waits; None when all is done."""
        with self._changed:
            while not self._over:
                for board in self.boards:
                    if board.offer():
                        return board
                if not any(board.busy() for board in self.boards):
                    return None
                self._changed.wait(PATIENCE)
                for board in self.boards:
                    board.recover()
        return None

    def _try(self, board: Board) -> None:
        """Try the setting that waits."""
        lost = False

        def validation(own: optuna.Trial) -> float:
            nonlocal lost
            try:
                return self._validation(board, own)
            except UpdateFinishedTrialError:
                lost = True
                raise

        try:
            board.study.optimize(
                validation,
                n_trials=1,
                catch=(FailedTrialError, SuperfluousError),
                callbacks=[partial(self._ended, board)],
            )
        except ValueError:
            if not lost:  # else this process slept, was taken for dead, and another tries the setting
                raise

    def _validation(self, board: Board, own: optuna.Trial) -> float:
        """Do a trial's runs; returns the mean validation accuracy at the end."""
        choice = board.begin(own)
        configs = [self.space.config(board.method, choice, seed=seed) for seed in self.space.seeds]
        watch = _Watch(own, configs, self.tell)
        found: dict[RunConfig, RunResult] = {}
        try:
            with closing(self.do(configs, watch)) as runs:
                for config, done in runs:
                    self.runs.add(config.name)
                    if done.result is None:
                        diverged = done.kind == NotFiniteError.__name__
                        why = f"training diverged under seed {config.seed}" if diverged else done.error
                        own.set_user_attr("why", why)
                        if diverged:
                            raise TrialPruned
                        self.failures[config.name] = why
                        board.failed.add(choice)
                        raise FailedTrialError
                    found[config] = done.result
                    watch.report_all(config, done.result.validation_accuracy)
        finally:
            watch.over = True
        results = [found[config] for config in configs]
        averages = [result.validation_accuracy[-1] for result in results]
        own.set_user_attr("validation", averages)
        own.set_user_attr("test", [result.final_accuracy for result in results])
        own.set_user_attr("runs", [config.name for config in configs])
        return statistics.fmean(averages)

    def _ended(self, board: Board, _: Study, trial: FrozenTrial) -> None:
        state, why = _STATES[trial.state], trial.user_attrs.get("why", "")
        choice = choice_of(trial)
        if choice and (why or state == "complete"):
            told = {"event": "trial", "method": board.method, "setting": choice.text, "state": state, "why": why}
            runs = [self.space.config(board.method, choice, seed=seed).name for seed in self.space.seeds]
            self.tell({**told, "validation": trial.value if state == "complete" else None, "runs": runs})


class _Watch:
    """Follows the runs of a trial, and ends them when it is over."""

    def __init__(self, own: optuna.Trial, configs: Sequence[RunConfig], tell: EventCallback) -> None:
        self.over = False
        self._own, self._tell = own, tell
        self._configs = {config.name: config for config in configs}
        self._lock = threading.Lock()
        self._reported: set[int] = set()

    def __call__(self, event: Mapping[str, Any]) -> None:
        if self.over:
            raise TrialPruned
        self._tell(event)
        if event["event"] == "task":
            config, average = self._configs[event["run"]], statistics.fmean(event["validation"])
            if self._report(config, event["task"], average):
                why = f"after task {event['task'] + 1} of seed {config.seed}, at {average:.1%}"
                self._own.set_user_attr("why", why)
                raise TrialPruned

    def report_all(self, config: RunConfig, averages: Iterable[float]) -> None:
        """With those of tasks that an earlier session learned; what has come so far is not given up."""
        for task, average in enumerate(averages):
            self._report(config, task, average)

    def _report(self, config: RunConfig, task: int, average: float) -> bool:
        """Report how a run stands after a task; returns whether the trial is hopeless by it."""
        step = task * len(self._configs) + list(self._configs).index(config.name)
        with self._lock:
            if step in self._reported:
                return False
            self._reported.add(step)
            self._own.report(average, step)
            return self._own.should_prune()
