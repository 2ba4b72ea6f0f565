from collections.abc import Callable

import pytest
from benchmarks.timing import Passage, Spread, compare, in_turn, passage, spread


@pytest.fixture
def clock(monkeypatch) -> Callable[[float], None]:
    """The processor's clock, moved by hand."""
    now = 0.0

    def move(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr("benchmarks.timing.time.process_time", lambda: now)
    return move


def test_ratios_are_taken_within_rounds(clock):
    """Each round takes twice as long as the one before; the second variant always three times as long as the first."""
    calls = 0

    def takes(seconds: float) -> Callable[[], None]:
        def call() -> None:
            nonlocal calls
            clock(seconds * 2 ** (calls // 2))
            calls += 1

        return call

    found = compare({"one": takes(1.0), "three": takes(3.0)}, rounds=4, warmup=1)
    assert found["one"].seconds == (4 + 8) / 2
    assert found["three"].seconds == 3 * (4 + 8) / 2
    assert str(found["three"].ratio) == "3.00 (3.00 to 3.00)"


def test_variants_take_turns_in_both_directions():
    order = []
    found = in_turn({name: lambda name=name: order.append(name) or len(order) for name in "ab"}, rounds=2, warmup=1)
    assert order == ["b", "a", "a", "b", "b", "a"]
    assert found == {"a": [3, 6], "b": [4, 5]}


@pytest.mark.parametrize(("within", "rounds"), [(None, 9), (5.0, 6), (0.0, 3)])
def test_no_round_is_begun_after_the_time_is_up(clock, within, rounds):
    found = in_turn({"one": lambda: clock(1.0)}, rounds=9, warmup=0, within=within)
    assert len(found["one"]) == rounds


def test_the_first_batch_is_told_from_the_later_ones(clock):
    def call(batches):
        clock(1.0)
        for seconds in batches:
            clock(seconds)
        clock(0.5)

    assert passage(call, [4.0, 2.0, 3.0]) == Passage(first=5.0, later=2.75)
    assert passage(call, [4.0]) == Passage(first=5.5, later=5.5)
    assert Passage(first=5.0, later=2.0).of(10) == 23.0


def test_spreads():
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0]) == Spread(3.0, 2.0, 4.0)
    assert spread([7.0]) == Spread(7.0, 7.0, 7.0)
