"""What happens between two processes at the wrong moment, done one after the other."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
from optuna.trial import TrialState

from holdfast.lab.sweep.board import Board, boards_of
from holdfast.lab.sweep.session import living
from holdfast.lab.sweep.space import Space, SweepChoice

SPACE = Space(
    stream="permuted-digits",
    methods=("ewc-fisher",),
    strengths=(1.0, 10.0),
    optimizers=("sgd",),
    lrs=(0.1,),
    seeds=(0,),
)
ONE, TEN = SweepChoice("sgd", 0.1, 1.0), SweepChoice("sgd", 0.1, 10.0)


@pytest.fixture
def board(tmp_path):
    with boards_of(SPACE, folder=tmp_path, storage=None) as (board,):
        yield board


def num_waiting(board: Board) -> int:
    return sum(trial.state == TrialState.WAITING for trial in board.trials())


def finish(trial) -> None:
    trial.complete(validation=[0.5], test=[0.4], runs=["run"])


def test_a_grid_waits_in_its_order_and_is_taken_once(board):
    assert num_waiting(board) == 2
    first, second = board.claim(), board.claim()
    assert (first.choice, second.choice) == (ONE, TEN)
    assert board.claim() is None
    assert board.busy()
    finish(first)
    finish(second)
    assert not board.busy()
    assert [finding.choice for finding in board.findings()] == [ONE, TEN]


def test_of_points_that_were_queued_twice_the_first_counts(board):
    for choice in (ONE, TEN):
        board.study.enqueue_trial(asdict(choice))
    claimed = []
    while trial := board.claim():
        claimed.append(trial.choice)
        finish(trial)
    assert claimed == [ONE, TEN]
    states = [trial.state for trial in board.study.trials]
    assert states == [TrialState.COMPLETE] * 2 + [TrialState.WAITING] * 2


def test_a_new_trial_that_another_process_made_superfluous_is_let_go(board, monkeypatch):
    finish(board.claim())
    taken = board.claim()
    seen = board.trials()
    waiting = replace_state(seen)
    monkeypatch.setattr(board, "trials", lambda: waiting.pop() if waiting else seen)
    assert board.claim() is None
    assert board.study.trials[-1].state == TrialState.FAIL
    finish(taken)


def replace_state(trials):
    """What a process saw the moment before: the last trial still waited."""
    import copy

    stale = copy.deepcopy(trials)
    stale[-1].state = TrialState.WAITING
    return [stale]


def test_what_a_dead_session_was_at_is_queued_again_by_one_process_alone(board, tmp_path):
    with living([], folder=tmp_path) as dead:
        theirs = Board(SPACE, "ewc-fisher", study=board.study, session=dead)
        taken = theirs.claim()
        assert board.recover() == 0
    assert board.recover() == 1
    board.requeue(taken.own.number, taken.choice)  # a second process, a moment later
    assert num_waiting(board) == 2
    assert [trial.state for trial in board.study.trials].count(TrialState.FAIL) == 1


def test_a_trial_that_failed_is_tried_again_by_the_next_sweep(board, tmp_path):
    board.claim().fail()
    finish(board.claim())
    with boards_of(SPACE, folder=tmp_path, storage=None) as (again,):
        assert again.claim().choice == ONE


def test_more_strengths_join_the_same_study_and_other_seeds_do_not(board, tmp_path):
    finish(board.claim())
    finish(board.claim())
    with boards_of(replace(SPACE, strengths=(10.0, 100.0)), folder=tmp_path, storage=None) as (more,):
        assert more.claim().choice.strength == 100.0
    with boards_of(replace(SPACE, seeds=(0, 1)), folder=tmp_path, storage=None) as (other,):
        assert num_waiting(other) == 2


def test_trials_of_tpe_beyond_those_asked_for_are_let_go(tmp_path):
    space = replace(SPACE, sampler="tpe", trials=2)
    with boards_of(space, folder=tmp_path, storage=None) as (board,):
        first, second = board.claim(), board.claim()
        assert board.claim() is None
        assert {first.choice.lr, second.choice.lr} == {0.1}
        assert all(1 <= trial.choice.strength <= 10 for trial in (first, second))
