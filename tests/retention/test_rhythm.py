"""Pulls at every few steps: the last one at a lesson's end, and the rhythm that is found for layers of any size."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.optimizers import PLAIN
from tests.retention.loops import batches, factored_of, importance_of, network, same, train, weights_of
from torch import nn

import holdfast as hf
from holdfast import EWC, KroneckerFactors
from holdfast.errors import FileFormatError, OptionError
from holdfast.retention.rhythm import MOST, ROWS, SHARE, rhythm

IMPORTANCES = {"diagonal": importance_of, "layers": factored_of}


def begun(optimizer: str, importance: str, *, every: int, num_steps: int):
    """A lesson of so many steps."""
    model = network()
    steps = PLAIN[optimizer](model.parameters())
    train(model, steps, batches(3, seed=1))
    keeper = EWC(model, strength=5.0, every=every).attach(steps).retain(IMPORTANCES[importance](model))
    train(model, steps, batches(num_steps, seed=2))
    return model, steps, keeper


def resumed(model, steps, keeper, optimizer: str, *, every: int):
    """The same lesson in another process, as its state says, with another rhythm."""
    twin = copy.deepcopy(model)
    its_steps = PLAIN[optimizer](twin.parameters())
    its_steps.load_state_dict(copy.deepcopy(steps.state_dict()))
    its_keeper = EWC(twin, strength=5.0, every=every).attach(its_steps)
    its_keeper.load_state_dict(copy.deepcopy(keeper.state_dict()))
    return twin, its_steps, its_keeper


@pytest.mark.parametrize("importance", IMPORTANCES)
@pytest.mark.parametrize("optimizer", PLAIN)
def test_closing_makes_up_for_the_steps_since_the_last_pull(optimizer, importance):
    model, steps, keeper = begun(optimizer, importance, every=4, num_steps=4)
    twin, its_steps, its_keeper = resumed(model, steps, keeper, optimizer, every=2)
    for each, of in ((model, steps), (twin, its_steps)):
        train(each, of, batches(2, seed=3))
    assert not same(weights_of(model), weights_of(twin))
    keeper.close()
    assert same(weights_of(model), weights_of(twin))  # as the pull at step 6, of the two steps since step 4
    for _ in range(2):  # nothing is left to be made up for
        keeper.close()
        its_keeper.close()
    assert same(weights_of(model), weights_of(twin))
    for each, of in ((model, steps), (twin, its_steps)):  # and the next comes at step 8, with two steps' strength
        train(each, of, batches(2, seed=4))
    assert same(weights_of(model), weights_of(twin))


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_resumed_within_a_lesson_it_ends_at_the_same_bits(optimizer, closed):
    model, steps, keeper = begun(optimizer, "layers", every=4, num_steps=5)
    if closed:
        keeper.close()
    twin, its_steps, its_keeper = resumed(model, steps, keeper, optimizer, every=4)
    for each, of, its in ((model, steps, keeper), (twin, its_steps, its_keeper)):
        if closed:
            train(each, of, batches(4, seed=3))
        its.close()
    assert same(weights_of(model), weights_of(twin))


def test_what_closing_leaves_alone():
    model, _, keeper = begun("adam", "layers", every=4, num_steps=3)
    before = weights_of(model)
    keeper.detach().close()
    assert same(before, weights_of(model))
    untouched = network()
    EWC(untouched, strength=5.0, every=4).attach(torch.optim.Adam(untouched.parameters())).close()
    model, _, keeper = begun("adam", "layers", every=1, num_steps=3)
    before = weights_of(model)
    keeper.close()
    assert same(before, weights_of(model))


def test_weights_that_the_optimizer_never_moved_stay():
    model = network()
    steps = torch.optim.Adam(model.parameters(), lr=0.01)
    keeper = EWC(model, strength=5.0, every=4).attach(steps).retain(factored_of(model))
    for inputs, _ in batches(2):
        steps.zero_grad()
        model[0](inputs).square().mean().backward()
        steps.step()
    rest = weights_of(model[2])
    moved = weights_of(model[0])
    keeper.close()
    assert same(rest, weights_of(model[2]))
    assert not same(moved, weights_of(model[0]))


def test_a_damaged_count_is_refused():
    _, _, keeper = begun("sgd", "layers", every=4, num_steps=5)
    keeper.close()
    tensors, notes = keeper.state()
    assert notes["progress"]["made_up"] == [5]
    for damaged in ([6], [-1], [], "x", [1.5]):
        notes["progress"]["made_up"] = damaged
        with pytest.raises(FileFormatError, match="progress is damaged: made_up="):
            keeper.load_state(tensors, notes)


def layers(*sizes: tuple[int, int]) -> dict[str, KroneckerFactors]:
    return {
        str(number): KroneckerFactors(torch.zeros(1, 1), torch.zeros(1, 1), shape=size)
        for number, size in enumerate(sizes)
    }


def test_the_rhythm_is_counted_from_sizes():
    assert rhythm({}) == 1
    assert rhythm(layers((4, 4))) == 1
    for sizes in ([(150, 301), (300, 65)], [(64, 64)]):
        pull = sum(10 * m * n * (m + n) for m, n in sizes) / rhythm(layers(*sizes))
        assert pull <= SHARE * sum(6 * ROWS * m * n for m, n in sizes) < 2 * pull
    assert rhythm(layers((4096, 4096))) == MOST


def test_auto_is_the_rhythm_of_what_is_held(tmp_path):
    model = nn.Sequential(nn.Linear(100, 100))
    importance = hf.kfac(model, [(torch.randn(4, 100), torch.arange(4))])
    keeper = EWC(model, strength=1.0, every="auto")
    assert keeper.mechanism.period == 1
    keeper.retain(importance)
    expected = rhythm(importance.layers)
    assert keeper.mechanism.period == expected > 1
    keeper.save(tmp_path / "skills")
    assert EWC.load(tmp_path / "skills", model).mechanism.period == expected
    assert EWC(model, strength=1.0, every="auto").retain(importance.to_diagonal()).mechanism.period == 1
    assert EWC(model, budget=0.1, every="auto").retain(importance).mechanism.period == 1  # each step is projected
    probes = hf.probes_of(model, [(torch.randn(4, 100), torch.arange(4))])
    assert EWC(model, budget=0.1, every="auto").retain(importance, probes=probes).mechanism.period == expected


def test_other_rhythms_are_refused():
    with pytest.raises(OptionError, match="EWC: every is 'often'; expected a whole number >= 1 or \"auto\""):
        EWC(network(), strength=1.0, every="often")  # pyright: ignore[reportArgumentType]
    with pytest.raises(OptionError, match="EWC: every='auto' belongs to pull=\"implicit\""):
        EWC(network(), strength=1.0, every="auto", pull="gradient")
