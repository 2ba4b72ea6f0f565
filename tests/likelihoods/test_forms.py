"""Data in a form that nothing can read are refused with the line that mends them, wherever data are given."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import holdfast as hf
from holdfast.errors import BatchError


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        return self.layer(x) if shift is None else self.layer(x) + shift[:, None]


def inputs(size: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(size, 3, generator=generator), torch.arange(size) % 2


TAKERS: dict[str, Callable[[nn.Module, Any], Any]] = {
    "fisher": hf.fisher,
    "kfac": hf.kfac,
    "mas": hf.mas,
    "signal": hf.signal,
    "taylor": hf.taylor,
    "measure": lambda model, data: hf.measure(model, data, probes=[inputs()]),
    "measure's probes": lambda model, data: hf.measure(model, [inputs()], probes=data),
    "probes_of": hf.probes_of,
    "Rehearsal": hf.Rehearsal,
    "calibrated": lambda model, data: hf.calibrated(
        model, hf.fisher(model, [inputs()]), data, steps=2, lessons=1, rounds=4, budget=1e9
    ),
}
everywhere = pytest.mark.parametrize("taker", TAKERS)


@everywhere
def test_a_dataset_of_examples(taker: str):
    data = TensorDataset(*inputs())
    with pytest.raises(
        BatchError, match=r"data is a TensorDataset, .* Pass torch.utils.data.DataLoader\(data, batch_si"
    ):
        TAKERS[taker](Net(), data)
    TAKERS[taker](Net(), DataLoader(data, batch_size=2))


@everywhere
def test_triples(taker: str):
    x, y = inputs()
    data = [(x, y, torch.ones(4))]
    with pytest.raises(
        BatchError, match=r"a tuple of \(Tensor, Tensor, Tensor\).* Leave the third out: \[\(x, y\) for x"
    ):
        TAKERS[taker](Net(), data)
    TAKERS[taker](Net(), [(x, y) for x, y, _ in data])
    TAKERS[taker](Net(), [((x, t), y) for x, y, t in data])


@everywhere
@pytest.mark.parametrize("names", [("image", "label"), ("image", "labels"), ("pixels", "target")])
def test_a_mapping_whose_names_the_model_does_not_know(taker: str, names: tuple[str, str]):
    data = [dict(zip(names, inputs(), strict=True))]
    remedy = f'Pass [(batch["{names[0]}"], batch["{names[1]}"]) for batch in data].'
    with pytest.raises(
        BatchError, match=rf"Net.forward \(x, shift\) has none called '{names[0]}', .* {re.escape(remedy)}"
    ):
        TAKERS[taker](Net(), data)
    TAKERS[taker](Net(), [(batch[names[0]], batch[names[1]]) for batch in data])


def test_inputs_that_are_a_mapping():
    x, y = inputs()
    with pytest.raises(
        BatchError, match=r"has none called 'image'. Name the entries as the arguments are, or pass \(\("
    ):
        hf.fisher(Net(), [({"image": x}, y)])
    expected = hf.fisher(Net().requires_grad_(), [(x, y)]).info.num_examples
    assert hf.fisher(Net(), [({"x": x}, y)]).info.num_examples == expected
    with pytest.raises(
        BatchError, match=r"called 'image', 'more', 'y'. Pass .*image.*, batch\[.more.\]\), batch\[.y.\]\) for"
    ):
        hf.fisher(Net(), [{"image": x, "more": torch.ones(4), "y": y}])


def test_a_model_that_takes_any_name_is_believed():
    class Any_(Net):
        def forward(self, **entries: Tensor) -> Tensor:
            return self.layer(entries["image"])

    x, y = inputs()
    hf.fisher(Any_(), [{"image": x, "labels": y}])


def test_datasets_that_give_batches():
    class Items(Dataset):
        def __len__(self) -> int:
            return 1

        def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
            if place:
                raise IndexError
            return inputs()

    class Stream(IterableDataset):
        def __iter__(self):
            yield inputs()

    assert hf.fisher(Net(), Stream()).info.num_examples == 4
    with pytest.raises(BatchError, match=r"data is a Items, .* or batch_size=None where its items are batches"):
        hf.fisher(Net(), Items())
    assert hf.fisher(Net(), DataLoader(Items(), batch_size=None)).info.num_examples == 4
