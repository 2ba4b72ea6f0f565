"""Today's steps to the bit. A golden changes only in a commit that does nothing else (`tests.goldens.make`)."""

from __future__ import annotations

import pytest
from tests.goldens.cases import Case, cases, every_case, run, table
from tests.goldens.stored import check_report, check_weights

pytestmark = pytest.mark.filterwarnings('ignore:WVA. on="gradients" is cancelled:UserWarning')


@pytest.mark.parametrize("case", cases(), ids=str)
def test_training_ends_at_the_stored_weights(case: Case):
    ended = run(case)
    assert ended.weights().isfinite().all()
    check_weights(str(case), ended.weights())
    check_report(str(case), str(ended.keeper.report()))


def test_every_two_values_that_go_together_occur():
    def pairs(found):
        return {pair for case in found for pair in case.pairs()}

    assert pairs(table()) == pairs(every_case())
    assert len(set(cases())) == len({str(case) for case in cases()}) == len(cases())
