import os

import pytest
import torch
from benchmarks.memory import MB, in_fresh_process, measurable, peak

pytestmark = pytest.mark.skipif(not measurable(), reason="this system does not tell its high-water mark")


def _peak_of(sizes: list[float], together: bool) -> float:
    """Peak of tensors of so many MB, held together or one after the other."""

    def call(sizes: list[float]) -> None:
        held = []
        for size in sizes:
            fresh = torch.ones(int(size * MB / 4))
            if together:
                held.append(fresh)
            del fresh

    return peak(lambda: call(sizes), warmup=lambda: call(sizes[:1]))


@pytest.mark.parametrize(
    ("sizes", "together", "expected"),
    [
        ([50.0], True, 50.0),
        ([0.1] * 200, True, 20.0),
        ([8.0] * 5, True, 40.0),
        ([8.0] * 5, False, 8.0),
        ([0.0], True, 0.0),
    ],
)
def test_known_allocations(sizes, together, expected):
    assert in_fresh_process(_peak_of, sizes, together, preload=["torch"]) == pytest.approx(expected, abs=0.5)


def test_each_process_is_a_fresh_one():
    assert len({os.getpid(), *(in_fresh_process(os.getpid, preload=["torch"]) for _ in range(2))}) == 3
