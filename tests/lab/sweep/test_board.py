"""What happens between two processes at the wrong moment, done one after the other."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from holdfast.lab.sweep import storage as database
from holdfast.lab.sweep.board import Board, HopelessPruner, SuperfluousError
from holdfast.lab.sweep.space import Space, SweepChoice
from holdfast.lab.sweep.storage import storage_at

pytestmark = pytest.mark.filterwarnings("ignore:Heartbeat of storage is supposed:UserWarning")  # here they ask by hand

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
def storage(tmp_path, monkeypatch) -> Iterator[optuna.storages.RDBStorage]:
    monkeypatch.setattr(database, "BEAT", 1)
    monkeypatch.setattr(database, "GRACE", 1)
    with storage_at(None, folder=tmp_path) as opened:
        yield opened


def board_of(storage, **changes) -> Board:
    return Board(replace(SPACE, **changes), "ewc-fisher", storage=storage)


@pytest.fixture
def board(storage) -> Board:
    return board_of(storage)


def taken(board: Board) -> SweepChoice:
    """The setting of a trial that is under way from now on."""
    return board.begin(board.study.ask())


def done(board: Board) -> SweepChoice:
    """That of one that is tried."""
    own = board.study.ask()
    choice = board.begin(own)
    finish(board, own)
    return choice


def finish(board: Board, own: optuna.Trial) -> None:
    for name in ("validation", "test", "runs"):
        own.set_user_attr(name, [0.5])
    board.study.tell(own, 0.5)


def states(board: Board) -> list[TrialState]:
    return [trial.state for trial in board.study.trials]


def test_a_grid_is_offered_in_its_order_and_once(board):
    assert board.offer()
    assert board.offer()
    assert [done(board), taken(board)] == [ONE, TEN]
    assert not board.offer()
    assert board.busy()
    assert [finding.choice for finding in board.findings()] == [ONE]
    assert states(board) == [TrialState.COMPLETE, TrialState.RUNNING]


def test_of_settings_that_were_queued_twice_the_first_counts(board):
    for choice in (ONE, TEN, ONE, TEN):
        board.study.enqueue_trial(choice.settings)
    assert [done(board), done(board)] == [ONE, TEN]
    for _ in range(2):
        own = board.study.ask()
        with pytest.raises(SuperfluousError):
            board.begin(own)
        board.study.tell(own, state=TrialState.FAIL)
    assert [finding.choice for finding in board.findings()] == [ONE, TEN]
    assert not board.busy()
    assert not board.offer()


def test_a_trial_whose_setting_another_process_took_is_superfluous(board):
    with pytest.raises(SuperfluousError):
        board.begin(board.study.ask())
    assert not board.findings()


def test_what_a_dead_process_was_at_is_offered_again_and_by_one_process_alone(board, storage):
    board.offer()
    own = board.study.ask()
    board.begin(own)
    identity = storage.get_trial_id_from_study_id_trial_number(
        storage.get_study_id_from_name(board.study.study_name), own.number
    )
    storage.record_heartbeat(identity)
    board.recover()
    assert states(board) == [TrialState.RUNNING]
    time.sleep(2.5)  # the database counts whole seconds
    board.recover()
    board_of(storage).recover()  # another process, a moment later
    assert states(board) == [TrialState.FAIL]
    assert board.offer()
    assert done(board) == ONE


@pytest.mark.parametrize("how", ["before its first sign of life", "under an earlier version"])
def test_one_that_gave_no_sign_of_life_is_dead_after_a_while(board, monkeypatch, how):
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    board.offer()
    own = board.study.ask()
    if how == "under an earlier version":
        board.begin(own)
        own.set_user_attr("owner", {"session": "it"})
    for passed, expected in ((0.0, TrialState.RUNNING), (0.9, TrialState.RUNNING), (1.1, TrialState.FAIL)):
        now = 1000.0 + passed
        board.recover()
        assert states(board) == [expected]


def test_a_setting_that_failed_is_tried_again_by_the_next_sweep(board, storage):
    board.offer()
    own = board.study.ask()
    board.failed.add(board.begin(own))
    board.study.tell(own, state=TrialState.FAIL)
    board.offer()
    assert done(board) == TEN
    assert not board.offer()
    again = board_of(storage)
    assert again.offer()
    assert done(again) == ONE


def test_more_strengths_join_the_same_study_and_other_seeds_do_not(board, storage):
    while board.offer():
        done(board)
    more = board_of(storage, strengths=(10.0, 100.0))
    assert more.offer()
    assert done(more).strength == 100.0
    assert not more.offer()
    assert len(more.findings()) == 3
    other = board_of(storage, seeds=(0, 1))
    assert other.offer()
    assert not other.findings()


def test_strengths_next_to_the_best_are_offered_when_all_have_ended(storage):
    board = board_of(storage, refine=True)
    assert board.offer()
    assert board.offer()
    first, second = board.study.ask(), board.study.ask()
    assert [board.begin(own) for own in (first, second)] == [ONE, TEN]
    finish(board, first)
    assert not board.offer()
    finish(board, second)
    assert board.offer()
    assert taken(board).strength == 3.16


def test_tpe_draws_as_many_settings_as_asked_for_and_first_what_was_lost(storage):
    board = board_of(storage, sampler="tpe", trials=2)
    board.offer()
    own = board.study.ask()
    lost = board.begin(own)
    board.study.tell(own, state=TrialState.FAIL)  # as by Ctrl-C
    assert board.offer()
    assert board.offer()
    assert not [state for state in states(board)[1:] if state != TrialState.WAITING]
    assert done(board) == lost
    assert lost != done(board)
    assert not board.offer()
    for finding in board.findings():
        assert 1 <= (finding.choice.strength or 0) <= 10
    another = board_of(storage, sampler="tpe", trials=2)
    another.study.enqueue_trial({})  # another process saw one trial only
    with pytest.raises(SuperfluousError):
        taken(another)


def test_tpe_ends_where_every_run_fails(storage):
    board = board_of(storage, sampler="tpe", trials=2)
    while board.offer():
        own = board.study.ask()
        board.failed.add(board.begin(own))
        board.study.tell(own, state=TrialState.FAIL)
    assert states(board) == [TrialState.FAIL] * 2


def test_a_trial_is_pruned_by_the_value_reported_last(storage):
    board = board_of(storage)
    for strength in (1.0, 2.0, 3.0, 4.0, 5.0):
        board.study.enqueue_trial(SweepChoice("sgd", 0.1, strength).settings)
    trials = [board.study.ask() for _ in range(5)]
    for own in trials:
        board.begin(own)
    for own in trials[:4]:
        own.report(0.9, 0)
        own.report(0.8, 1)
    trials[4].report(0.79, 1)
    assert not trials[4].should_prune()
    trials[4].report(0.5, 0)
    assert trials[4].should_prune()
    assert isinstance(board.study.pruner, HopelessPruner)
    assert not isinstance(board_of(storage, prune=False).study.pruner, HopelessPruner)


def test_a_database_of_another_version_of_optuna_is_one_line(tmp_path: Path, monkeypatch):
    from holdfast.errors import OptionError

    def raised(*_, **__):
        raise RuntimeError("The runtime optuna version 1.0 is no longer compatible with the table schema.\nUpgrade.")

    monkeypatch.setattr(database, "ATTEMPTS", 1)
    monkeypatch.setattr(optuna.storages, "RDBStorage", raised)
    with (
        pytest.raises(OptionError, match=r"sweep\.db cannot be used: The runtime optuna version"),
        storage_at(None, folder=tmp_path),
    ):
        pass
