"""The work of a sweep: trials taken from a study, and their runs done."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from holdfast.errors import NotFiniteError
from holdfast.lab.config import RunConfig
from holdfast.lab.pool import Done, Pool
from holdfast.lab.results import RunResult
from holdfast.lab.run import EventCallback
from holdfast.lab.sweep.board import Board, Trial
from holdfast.lab.sweep.space import Space

PATIENCE = 2.0
"""Seconds between two looks at trials that other processes are at work on."""


@dataclass(eq=False)
class _Open:
    """A trial under way: its runs by name, those that are not yet begun or not yet ended, and what the others found."""

    trial: Trial
    runs: dict[str, RunConfig]
    waiting: list[str]
    under_way: set[str] = field(default_factory=set)
    found: dict[str, RunResult] = field(default_factory=dict)
    ended: bool = False


class Drive:
    """Hands the runs of trials to a pool, as many at once as it has workers, and tells the trials what came of them."""

    def __init__(self, space: Space, on_event: EventCallback | None) -> None:
        self.space, self.on_event = space, on_event
        self.failures: dict[str, str] = {}
        self.num_runs = 0
        self._open: list[_Open] = []
        self._pool: Pool | None = None

    def go(self, boards: Sequence[Board], pool: Pool, *, jobs: int) -> None:
        """Until every trial, of this process or others, has ended and nothing is left to refine."""
        self._pool = pool
        while True:
            while self._num_under_way() < jobs and self._begin(boards, pool):
                pass
            if self._num_under_way():
                self._end(pool.wait())
            elif sum(board.recover() for board in boards):
                continue
            elif any(board.busy() for board in boards):
                time.sleep(PATIENCE)
            elif not sum(board.refine() for board in boards):
                return

    def give_back(self) -> None:
        """Leave what is under way to whoever comes next."""
        for open_ in self._open:
            if not open_.ended:
                open_.trial.give_back()

    def on_run_event(self, event: Mapping[str, Any]) -> None:
        """Follow a run, and give its trial up where it is hopeless."""
        if self.on_event is not None:
            self.on_event(event)
        open_ = self._of(event["run"])
        if event["event"] == "task" and not open_.ended:
            seed, average = open_.runs[event["run"]].seed, statistics.fmean(event["validation"])
            if self._report(open_, seed, event["task"], average):
                self._prune(open_, f"after task {event['task'] + 1} of seed {seed}, at {average:.1%}")

    def _begin(self, boards: Sequence[Board], pool: Pool) -> bool:
        """Submit one more run, of a trial under way or a new one; returns whether there is one."""
        open_ = next((open_ for open_ in self._open if open_.waiting), None) or self._claim(boards)
        if open_ is None:
            return False
        name = open_.waiting.pop(0)
        open_.under_way.add(name)
        self.num_runs += 1
        pool.submit(open_.runs[name])
        return True

    def _num_under_way(self) -> int:
        return sum(len(open_.under_way) for open_ in self._open)

    def _claim(self, boards: Sequence[Board]) -> _Open | None:
        trial = next((trial for board in boards if (trial := board.claim()) is not None), None)
        if trial is None:
            return None
        configs = [self.space.config(trial.board.method, trial.choice, seed=seed) for seed in self.space.seeds]
        runs = {config.name: config for config in configs}
        self._open.append(_Open(trial, runs, list(runs)))
        return self._open[-1]

    def _end(self, done: Done) -> None:
        name, seed = done.config.name, done.config.seed
        open_ = self._of(name)
        open_.under_way.discard(name)
        if open_.ended:
            pass  # the trial was given up meanwhile
        elif done.kind == NotFiniteError.__name__:
            self._prune(open_, f"training diverged under seed {seed}")
        elif done.result is None:
            self.failures[name] = done.error
            self._close(open_, "failed", why=done.error)
            open_.trial.fail()
        else:
            open_.found[name] = done.result
            for task, average in enumerate(done.result.validation_accuracy):
                self._report(open_, seed, task, average)  # of tasks that an earlier session learned
            if len(open_.found) == len(open_.runs):
                self._complete(open_)
        if open_.ended and not open_.under_way:
            self._open.remove(open_)

    def _complete(self, open_: _Open) -> None:
        results = [open_.found[name] for name in open_.runs]
        validation = [result.validation_accuracy[-1] for result in results]
        test = [result.final_accuracy for result in results]
        open_.trial.complete(validation=validation, test=test, runs=list(open_.runs))
        self._close(open_, "complete", validation=statistics.fmean(validation))

    def _report(self, open_: _Open, seed: int, task: int, average: float) -> bool:
        """Tell the trial how one of its runs stands; returns whether to give it up."""
        place = self.space.seeds.index(seed)
        return open_.trial.report(task * len(self.space.seeds) + place, average) and self.space.prune

    def _prune(self, open_: _Open, why: str) -> None:
        open_.trial.prune(why)
        self._close(open_, "pruned", why=why)

    def _close(self, open_: _Open, state: str, *, why: str = "", validation: float | None = None) -> None:
        open_.ended = True
        open_.waiting.clear()
        assert self._pool is not None
        for name in open_.under_way:
            self._pool.stop(open_.runs[name])
        if self.on_event is not None:
            told = {"method": open_.trial.board.method, "setting": open_.trial.choice.text, "state": state}
            self.on_event({"event": "trial", **told, "validation": validation, "why": why})

    def _of(self, name: str) -> _Open:
        return next(open_ for open_ in self._open if name in open_.runs)
