"""`measure`: what it chooses, and that it gives what it chose."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import holdfast as hf
from holdfast.errors import BatchError, OptionError, UnknownNameError


def data(classes: int = 3, *, sizes: tuple[int, ...] = (6, 5, 4)) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.randn(size, 4), torch.randint(classes, (size,))) for size in sizes]


def net(classes: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, classes))


class Scaled(nn.Module):
    """No layer of it can have factors."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs @ self.weight.T


def test_layers_have_damped_factors_and_the_rest_a_diagonal():
    model, batches = net(), data()
    found = hf.measure(model, batches, probes=data())
    expected = hf.kfac(model, batches, damping=0.01)
    assert isinstance(found, hf.FactoredImportance)
    assert found.info.details == expected.info.details
    assert found.info.details["damping"] == 0.01
    for name, factors in expected.items():
        assert torch.equal(found[name].inputs, factors.inputs)
        assert torch.equal(found[name].outputs, factors.outputs)
    assert set(found.diagonal) == {"1.weight", "1.bias"}


def test_of_several_classes_factors_take_the_most_probable():
    model, batches = net(7), data(7)
    found, expected = hf.measure(model, batches, probes=data(7)), hf.kfac(model, batches, damping=0.01, top_k=2)
    assert isinstance(found, hf.FactoredImportance)
    assert found.info.details == expected.info.details
    assert found.info.details["top_k"] == 2
    assert all(torch.equal(found[name].outputs, factors.outputs) for name, factors in expected.items())
    whole = hf.measure(model, batches, probes=data(7), labels="exact")
    assert "top_k" not in whole.info.details
    assert "top_k" not in hf.measure(model, batches, probes=data(7), form="diagonal").info.details
    numbers = [(x, torch.randn(len(x), 7)) for x, _ in batches]
    gaussian = hf.measure(model, numbers, loss="gaussian", probes=numbers)
    assert "top_k" not in gaussian.info.details


class Reading(nn.Module):
    """Two layers read the same sequence."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(width, 3), nn.Linear(width, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return (self.one(inputs) * self.other(inputs)).mean(1)


@pytest.mark.parametrize(("width", "shared"), [(6, False), (1030, True)])
def test_wide_layers_that_read_the_same_input_share_its_basis(width: int, shared: bool):
    batches = [(torch.randn(3, 2, width), torch.randint(3, (3,)))]
    found = hf.measure(Reading(width), batches, probes=batches, form="kronecker")
    assert isinstance(found, hf.FactoredImportance)
    assert (found["one.weight"].reads is not None) == shared
    assert found["one.weight"].reads == found["other.weight"].reads


def test_without_such_a_layer_a_diagonal():
    model, batches = Scaled(), data()
    found = hf.measure(model, batches, probes=data())
    assert isinstance(found, hf.Importance)
    assert torch.equal(found["weight"], hf.fisher(model, batches)["weight"])
    with pytest.raises(OptionError, match='form="kronecker", and the model has no plain'):
        hf.measure(model, batches, probes=data(), form="kronecker")
    assert isinstance(hf.measure(net(), batches, probes=data(), form="diagonal"), hf.Importance)


def test_factors_far_larger_than_the_weights_are_left(monkeypatch):
    narrow = nn.Sequential(nn.Linear(4, 300), nn.ReLU(), nn.Linear(300, 3))  # 300^2 numbers for 300 * 4 weights
    assert isinstance(hf.measure(narrow, data(), probes=data()), hf.Importance)
    assert isinstance(hf.measure(narrow, data(), probes=data(), form="kronecker"), hf.FactoredImportance)
    monkeypatch.setattr("holdfast.importance.choosing._MAX_SIZE", 100)
    assert isinstance(hf.measure(narrow, data(), probes=data()), hf.Importance)


def test_a_wide_layer_alone_has_the_diagonal_where_that_is_asked_for():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 40))
    found = hf.kfac(model, data(40), kind="sampled", max_size=10, block_size=0)
    assert set(found) == {"0.weight"}
    assert set(found.diagonal) == {"2.weight", "2.bias"}


@pytest.mark.parametrize(
    ("most", "form", "layers"), [(4.4, "auto", 2), (4.3, "auto", 1), (4.3, "kronecker", 1), (0.1, "auto", 0)]
)
def test_a_wide_layer_has_blocks_where_they_are_not_too_large(most, form, layers, monkeypatch):
    for name, value in (("_MAX_SIZE", 30), ("_BLOCK_SIZE", 20), ("_MOST_HELD", most)):
        monkeypatch.setattr(f"holdfast.importance.choosing.{name}", value)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 60))
    # of 25 and 360 weights 3 * 25 and 60 * 20 + 36 + 360 numbers are held, 4.34 times as many
    found = hf.measure(model, data(60), probes=data(60), form=form)
    assert list(found.layers) == ["0.weight", "2.weight"][:layers]
    if layers == 2:
        assert found.layers["2.weight"].outputs.shape == (60, 20)
    assert set(found.to_diagonal()) == set(dict(model.named_parameters()))


def test_few_classes_are_taken_exactly_and_many_are_drawn():
    assert hf.measure(net(33), data(33), probes=data(33)).info.kind == "kfac-exact"
    assert hf.measure(net(34), data(34), probes=data(34)).info.kind == "kfac-sampled"
    assert hf.measure(net(34), data(34), probes=data(34), labels="exact").info.kind == "kfac-exact"

    def loss(outputs, batch):
        return F.cross_entropy(outputs, batch[1], reduction="none")

    found = hf.measure(net(), data(), probes=data(), loss=loss)
    assert found.info.kind == "kfac-empirical"
    assert found.probes.rise(net()) != 0


def test_classes_that_take_part_are_counted():
    batches = [(torch.randn(6, 4), torch.randint(3, (6,)))]
    found = hf.measure(net(40), batches, probes=batches, loss=hf.Categorical(classes=(0, 1, 2)), form="diagonal")
    assert found.info.kind == "fisher-exact"


def test_a_sequence_counts_its_positions():
    class Language(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(9, 6), nn.Linear(6, 9)

        def forward(self, input_ids, labels=None):
            return {"logits": self.head(self.table(input_ids))}

    ids = torch.randint(9, (4, 7))
    found = hf.measure(Language(), [{"input_ids": ids, "labels": ids}], probes=[{"input_ids": ids, "labels": ids}])
    assert found.info.kind == "kfac-sampled"
    assert found.probes.num_targets == 4 * 6


def test_probes_are_the_last_examples_where_none_are_given_and_it_says_so():
    model, batches = net(), data()
    with pytest.warns(UserWarning, match="the last 7 examples of the data themselves"):
        found = hf.measure(model, iter(batches), num_probes=7)
    inputs = torch.cat([probe.batch[0] for probe in found.probes.batches])
    assert torch.equal(inputs, torch.cat([x for x, _ in batches])[-7:])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        given = hf.measure(model, iter(batches), probes=data(sizes=(300,)), num_probes=9)
        own = hf.probes_of(model, data())
        assert hf.measure(model, iter(batches), probes=own).probes is own
    assert given.probes.num_examples == 9


def test_more_data_than_probes_are_not_kept():
    seen = []

    def stream():
        for batch in data(sizes=(5,) * 20):
            seen.append(batch)
            yield batch

    with pytest.warns(UserWarning, match="the last 8"):
        found = hf.measure(net(), stream(), num_probes=8)
    assert len(seen) == 20
    assert found.info.num_examples == 100
    assert found.probes.num_examples == 8


def test_bad_options():
    with pytest.raises(UnknownNameError, match="form"):
        hf.measure(net(), data(), form="big")
    with pytest.raises(UnknownNameError, match="labels"):
        hf.measure(net(), data(), labels="all")
    with pytest.raises(OptionError, match="num_probes=0"):
        hf.measure(net(), data(), num_probes=0)


def test_it_goes_into_a_keeper_as_it_is():
    model = net()
    keeper = hf.EWC(model, budget=0.05).retain(hf.measure(model, data(), probes=data()))
    assert len(keeper.skills) == 1
    assert keeper.skills[0].budget == 0.05


def test_bad_probes_are_found_before_the_data_are_read():
    def unread():
        raise AssertionError
        yield

    with pytest.raises(BatchError, match="probes_of: data is one batch"):
        hf.measure(net(), unread(), probes=data()[0])
    with pytest.raises(BatchError, match="measure: data is one batch"):
        hf.measure(net(), data()[0])


def test_the_last_examples_of_data_that_use_their_memory_again():
    memory = torch.empty(4, 4)
    given = data(sizes=(4, 4))
    with pytest.warns(UserWarning, match="themselves"):
        found = hf.measure(net(), ((memory.copy_(inputs), labels) for inputs, labels in given))
    assert found.probes is not None
    assert all(torch.equal(probe.batch[0], inputs) for probe, (inputs, _) in zip(found.probes.batches, given))


def test_embeddings_are_measured_by_what_their_similarities_rest_on():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 40))
    batches = [(torch.randn(16, 5), torch.zeros(16)) for _ in range(8)]
    importance = hf.measure(model, batches, loss="similarity", probes=batches[:2])
    assert importance.info.kind == "kfac-sampled"
    assert importance.probes.loss == hf.Similarity()
    assert hf.measure(model, batches, loss="similarity", labels="exact", probes=batches[:2]).info.loss == "similarity"
    keeper = hf.EWC(model, budget=1e-3).retain(importance)
    with torch.no_grad():
        model[0].weight += 0.2 * torch.randn_like(model[0].weight)
    assert keeper.close().kept
