"""Whatever happens to a saved folder, it is refused with one line, or gives what was saved."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch
from safetensors.torch import save_file
from tests.damages import Kind, check, check_beside
from torch import nn

from holdfast import EWC, WVA, AnalyticHead, Importance, fisher, kfac, mas
from holdfast.curvature.factored import load_importance
from holdfast.files import (
    new_folder,
    read_sealed,
    read_state,
    write_description,
    write_sealed,
    write_state,
    write_tensors,
)
from holdfast.memory.stored import read
from holdfast.records import IMPORTANCE_CONFIG


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


def in_shards(path):
    importance = fisher(net(), data())
    with new_folder(path) as folder:
        write_tensors(folder, "importance", importance, limit=150)
        write_description(folder / IMPORTANCE_CONFIG, asdict(importance.info))


def by_reference(path):
    model = net()
    path.mkdir()
    save_file(model.state_dict(), path / "model.safetensors")
    keeper = EWC(model, strength=1.0, anchors=path / "model.safetensors").retain(fisher(model, data()))
    keeper.save(path / "keeper")


def load_by_reference(path):
    """Every anchor as its checkpoint has it."""
    held = EWC.load(path / "keeper", net(), anchors=path / "model.safetensors").held
    anchors = {n: read(a, dtype=torch.float32, device=torch.device("cpu")) for n, a in held.anchors.items()}
    return dict(held.importance), anchors


def head(path, kind="ridge", **options):
    inputs, targets = data()[0]
    AnalyticHead(kind, **options).fit(inputs, targets).save(path)


def load_head(path):
    """Its sums and what it says of itself, but for what a solution is made by."""
    found = AnalyticHead.load(path)
    return found.state(), found(data()[0][0])


KINDS = [
    Kind("head", lambda path: head(path, projection=12), load_head),
    Kind("head-apart", lambda path: head(path, "slda", keep_class_sums=True), load_head),
    Kind("importance", lambda path: fisher(net(), data()).save(path), lambda path: _values(load_importance(path))),
    Kind("shards", in_shards, lambda path: _values(load_importance(path))),
    Kind("factors", lambda path: kfac(net(), data()).save(path), lambda path: _values(load_importance(path))),
    keeper_kind("ewc", EWC, strength=1.0),
    keeper_kind("budget", EWC, budget=0.05),
    keeper_kind("per-task", EWC, strength=1.0, accumulate="per_task", importance_dtype="int8", anchor_dtype="int16"),
    keeper_kind("bfloat16", EWC, strength=1.0, importance_dtype="bfloat16", anchor_dtype="bfloat16"),
    keeper_kind("kronecker", EWC, strength=1.0, factored=True),
    keeper_kind("wva", WVA, strength=1.0),
    Kind("reference", by_reference, load_by_reference),
    Kind("state", lambda path: write_state(path / "state.safetensors", net().state_dict(), {"step": 3, "loss": [0.5]}),
         lambda path: read_state(path / "state.safetensors")),
]  # fmt: skip


def other_net():
    """As `net`, with other weights."""
    model = net()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5)
    return model


def _ewc(model, **options):
    return EWC(model, strength=1.0, **options).retain(fisher(model, data()))


def _loaded_ewc(path):
    return EWC.load(path, net()).state()


def _loaded(path):
    return _values(load_importance(path))


BESIDE = {
    "head": (head, lambda path: head(path, projection=4), load_head),
    "importance": (lambda path: fisher(net(), data()).save(path), lambda path: mas(net(), data()).save(path), _loaded),
    "or-factors": (lambda path: fisher(net(), data()).save(path), lambda path: kfac(net(), data()).save(path), _loaded),
    "shards": (in_shards, lambda path: mas(net(), data()).save(path), _loaded),
    "ewc": (lambda path: _ewc(net()).save(path), lambda path: _ewc(other_net()).save(path), _loaded_ewc),
    "forms": (lambda path: _ewc(net(), importance_dtype="int8", anchor_dtype="int16").save(path),
              lambda path: _ewc(other_net()).save(path), _loaded_ewc),
    "state": (lambda path: write_state(path / "a", net().state_dict(), {"of": 1}),
              lambda path: write_state(path / "a", other_net().state_dict(), {"of": 2}),
              lambda path: read_state(path / "a")),
    "sealed": (lambda path: write_sealed(path, {"a": 1, "b": 1}), lambda path: write_sealed(path, {"a": 2, "b": 2}),
               read_sealed),
}  # fmt: skip


@pytest.mark.parametrize("name", BESIDE)
def test_a_reader_beside_a_writer_finds_one_save_whole(tmp_path, name):
    one, other, load = BESIDE[name]
    check_beside(Kind(name, one, load), other, tmp_path, times=8)


@pytest.mark.slow
@pytest.mark.parametrize("name", BESIDE)
def test_many_loads_beside_a_writer(tmp_path, name):
    one, other, load = BESIDE[name]
    check_beside(Kind(name, one, load), other, tmp_path, times=300)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_damaged_folder_is_refused_or_gives_what_was_saved(tmp_path, kind):
    check(kind, tmp_path, times=25, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_many_damages(tmp_path, kind):
    check(kind, tmp_path, times=150, seed=1)
