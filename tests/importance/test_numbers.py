"""Options that are numbers: any other value is one clear error, before the data are read."""

from __future__ import annotations

from collections.abc import Iterator
from inspect import signature

import pytest
import torch
from torch import nn

import holdfast as hf
from holdfast.errors import OptionError

ESTIMATORS = {
    "fisher": hf.fisher,
    "mas": hf.mas,
    "signal": hf.signal,
    "taylor": hf.taylor,
    "kfac": hf.kfac,
    "measure": hf.measure,
    "probes_of": hf.probes_of,
}
COUNTS = ("num_draws", "num_examples", "num_probes", "max_size", "block_size", "chunk_bytes", "top_k", "seed")
CASES = [
    (name, option) for name, call in ESTIMATORS.items() for option in COUNTS if option in signature(call).parameters
]


def unread() -> Iterator[None]:
    raise AssertionError("the data were read")
    yield


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2))


@pytest.mark.parametrize(("name", "option"), CASES)
@pytest.mark.parametrize("value", ["x", 0.5, float("nan"), True, -1])
def test_a_count_is_a_whole_number(name: str, option: str, value: object):
    with pytest.raises(OptionError, match=rf"^{name}.*: {option}={value!r}, expected a whole number >= [01]"):
        ESTIMATORS[name](small(), unread(), **{option: value})


@pytest.mark.parametrize("name", ["kfac", "measure"])
@pytest.mark.parametrize("value", ["x", None, float("nan"), float("inf"), True, -0.1])
def test_damping_is_a_number(name: str, value: object):
    with pytest.raises(OptionError, match=rf"^{name}: damping={value!r}, expected a number >= 0, such as 0.01"):
        ESTIMATORS[name](small(), unread(), damping=value)


def test_none_means_what_the_message_says():
    data = [(torch.randn(4, 3), torch.randint(0, 2, (4,)))]
    with pytest.raises(OptionError, match="or None for all"):
        hf.kfac(small(), data, num_examples=0)
    assert hf.kfac(small(), data, num_examples=None, max_size=None).info.num_examples == 4
