"""Whatever happens to a saved folder, it is refused with one line, or gives what was saved."""

from __future__ import annotations

import pytest
import torch
from tests.damages import Kind, faults
from torch import nn

from holdfast import EWC, WVA, Importance, fisher, kfac
from holdfast.factored import load_importance
from holdfast.files import read_state, write_state


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def data():
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(16, 6, generator=generator), torch.randint(0, 3, (16,), generator=generator))]


def trained(keeper, model):
    """Two tasks and a few steps, so that everything a keeper can hold is there."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    keeper.attach(optimizer)
    for _ in range(2):
        for inputs, targets in data():
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
        keeper.retain(kfac(model, data()) if keeper.factored else fisher(model, data()))
    keeper.detach()


def keeper_kind(name, mechanism, *, factored=False, **options):
    def make(path):
        model = net()
        keeper = mechanism(model, **options)
        keeper.factored = factored
        trained(keeper, model)
        keeper.save(path)

    def load(path):
        """What is loaded, and a restore into a keeper that it must leave alone where it is refused."""
        keeper = mechanism(net(), **options)
        before = keeper.state()
        try:
            keeper.restore(path)
        except BaseException:
            assert repr(keeper.state()) == repr(before), "a refused restore has changed the keeper"
            raise
        return mechanism.load(path, net()).state(), keeper.state()

    return Kind(name, make, load)


def _values(importance):
    rest = {} if isinstance(importance, Importance) else {n: (f.inputs, f.outputs) for n, f in importance.items()}
    return dict(importance if isinstance(importance, Importance) else importance.diagonal), rest, importance.info


KINDS = [
    Kind("importance", lambda path: fisher(net(), data()).save(path), lambda path: _values(load_importance(path))),
    Kind("factors", lambda path: kfac(net(), data()).save(path), lambda path: _values(load_importance(path))),
    keeper_kind("ewc", EWC, strength=1.0),
    keeper_kind("budget", EWC, budget=0.05),
    keeper_kind("per-task", EWC, strength=1.0, accumulate="per_task", importance_dtype="int8", anchor_dtype="int16"),
    keeper_kind("kronecker", EWC, strength=1.0, factored=True),
    keeper_kind("wva", WVA, strength=1.0),
    Kind("state", lambda path: write_state(path / "state.safetensors", net().state_dict(), {"step": 3, "loss": [0.5]}),
         lambda path: read_state(path / "state.safetensors")),
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_damaged_folder_is_refused_or_gives_what_was_saved(tmp_path, kind):
    found = faults(kind, tmp_path, times=25, seed=0)
    assert not found, "\n".join(found)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_many_damages(tmp_path, kind):
    found = faults(kind, tmp_path, times=250, seed=1)
    assert not found, "\n".join(found)
