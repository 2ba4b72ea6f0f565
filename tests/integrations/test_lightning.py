"""A keeper in `lightning.Trainer` does what it does in a loop of one's own."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import nn

pytest.importorskip("lightning")

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from tests.integrations.tiny import MODELS, examples_for, gpt2, importance_of, same, stacked, weights_of
from torch.utils.data import DataLoader, TensorDataset

from holdfast import EWC, WVA, probes_of, uniform
from holdfast.errors import ParameterMismatchError
from holdfast.integrations.lightning import HoldfastCallback, RehearsalCallback
from holdfast.replay import Rehearsal

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated"),
    pytest.mark.filterwarnings("ignore:.*Checkpoint directory .* exists"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]

BATCH, STEPS, LR = 4, 6, 1e-2

MECHANISMS = {
    "ewc": partial(EWC, strength=30.0, log_every=2),
    "ewc-budget": partial(EWC, budget=1e-3, log_every=2),
    "ewc-probed": partial(EWC, budget=1e-3, log_every=2, probe_every=2),
    "wva": partial(WVA, strength=30.0, log_every=2),
}


class Task(LightningModule):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch, batch_idx):
        return self.model(**batch).loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.model.parameters(), lr=LR, weight_decay=0.0)


def held(mechanism, model, **options):
    probes = probes_of(model, [stacked(examples_for(model, 8))]) if mechanism == "ewc-probed" else None
    return MECHANISMS[mechanism](model, **options).retain(importance_of(model), probes=probes)


def fit(model, folder, *, keeper=None, callbacks=(), resume=None, num_batches=16, **options):
    data = DataLoader(examples_for(model, num_batches * BATCH), BATCH, collate_fn=stacked)
    own = [] if keeper is None else [HoldfastCallback(keeper)]
    defaults = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "log_every_n_steps": 1}
    defaults["max_steps"] = STEPS
    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        enable_model_summary=False,
        callbacks=[*own, *callbacks],
        **{**defaults, **options},
    )
    trainer.fit(Task(model).train(), data, ckpt_path=resume, weights_only=resume is not None)
    return trainer


def loop(model, *, keeper=None, accumulate=1, clip=0.0):
    model.train()
    data = examples_for(model, 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0)
    if keeper is not None:
        keeper.attach(optimizer)
    for step in range(STEPS):
        for part in range(accumulate):
            start = (step * accumulate + part) * BATCH
            (model(**stacked(data[start : start + BATCH])).loss / accumulate).backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
    if keeper is not None:
        keeper.close()
    return model


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}, {"gradient_clip_val": 0.1}], ids=str)
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_it_is_the_bare_loop(mechanism, options, tmp_path):
    written, model = gpt2(), gpt2()
    accumulate, clip = options.get("accumulate_grad_batches", 1), options.get("gradient_clip_val", 0.0)
    loop(written, keeper=held(mechanism, written), accumulate=accumulate, clip=clip)
    keeper = held(mechanism, model)
    fit(model, tmp_path, keeper=keeper, **options)
    assert keeper.report().num_steps == STEPS
    torch.testing.assert_close(weights_of(model), weights_of(written), rtol=1e-4, atol=2e-5)
    assert not same(weights_of(model), weights_of(gpt2()))


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_other_models_are_held(kind, tmp_path):
    written, model = MODELS[kind](), MODELS[kind]()
    loop(written, keeper=held("ewc", written))
    fit(model, tmp_path, keeper=held("ewc", model))
    torch.testing.assert_close(weights_of(model), weights_of(written), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("mechanism", ["ewc", "wva"])
def test_strength_zero_is_the_plain_trainer_and_infinity_pins(mechanism, tmp_path):
    plain, free, pinned = gpt2(), gpt2(), gpt2()
    start = weights_of(plain)
    fit(plain, tmp_path)
    fit(free, tmp_path, keeper=held(mechanism, free, strength=0.0))
    keeper = held(mechanism, pinned, strength=math.inf)
    fit(pinned, tmp_path, keeper=keeper)
    assert same(weights_of(free), weights_of(plain))
    assert not same(weights_of(free), start)
    for name, weight in weights_of(pinned).items():
        matters = keeper.held.importance[name] > 0
        torch.testing.assert_close(weight[matters], start[name][matters], rtol=0, atol=1e-6)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_resumed_fit_is_an_uninterrupted_one(mechanism, tmp_path):
    """One batch an epoch: where within an epoch Lightning resumes is not our matter."""
    whole, model = gpt2(), gpt2()
    uninterrupted = held(mechanism, whole)
    fit(whole, tmp_path, keeper=uninterrupted, num_batches=1)

    class Die(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 4:
                raise ConnectionError

    keeper = held(mechanism, model)
    saving = ModelCheckpoint(tmp_path, filename="first", save_on_train_epoch_end=True)
    with pytest.raises(ConnectionError):
        fit(model, tmp_path, keeper=keeper, callbacks=[saving, Die()], num_batches=1, enable_checkpointing=True)
    keeper.attach(torch.optim.SGD(model.parameters()))  # nothing was left attached
    fresh = gpt2()
    resumed = MECHANISMS[mechanism](fresh)  # what it retains comes from the checkpoint
    fit(fresh, tmp_path, keeper=resumed, num_batches=1, resume=tmp_path / "first.ckpt")
    assert same(weights_of(fresh), weights_of(whole))
    assert resumed.report() == uninterrupted.report()


def test_the_logs_tell_rise_and_pull(tmp_path):
    model = gpt2()
    keeper = held("ewc", model)
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    trainer = fit(model, tmp_path, keeper=keeper, logger=logger)
    assert trainer.logged_metrics["predicted_rise"] == pytest.approx(keeper.predicted_rise())
    assert 0 < trainer.logged_metrics["pull_ratio"] < 1
    header, *rows = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text().splitlines()
    assert {"predicted_rise", "pull_ratio"} <= set(header.split(","))
    assert len(rows) == STEPS


def test_bfloat16_weights_keep_what_rounding_takes(tmp_path):
    model = gpt2(torch.bfloat16)
    keeper = held("ewc", model)
    fit(model, tmp_path, keeper=keeper, precision="bf16-true")
    assert any(residual.any() for residual in keeper.state()[0].values() if residual.dtype == torch.int16)


class Players(LightningModule):
    """Several networks, each with an optimizer of its own, trained by hand."""

    def __init__(self, *sizes):
        super().__init__()
        torch.manual_seed(5)
        self.automatic_optimization = False
        self.players = nn.ModuleList(nn.Linear(2, size) for size in sizes)

    def training_step(self, batch, batch_idx):
        for player, optimizer in zip(self.players, self.optimizers(), strict=True):
            optimizer.zero_grad()
            self.manual_backward(player(batch[0]).square().mean())
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.Adam(player.parameters(), lr=0.1) for player in self.players]


def moves(module, folder, keeper):
    before = [player.weight.detach().clone() for player in module.players]
    data = DataLoader(TensorDataset(torch.ones(8, 2)), 2)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[HoldfastCallback(keeper)],
    )
    trainer.fit(module, data)
    return [bool((player.weight - w).abs().max() > 1e-6) for player, w in zip(module.players, before, strict=True)]


@pytest.mark.parametrize("mechanism", [partial(EWC, every=1), partial(EWC, every=2), WVA])
@pytest.mark.parametrize("sizes", [(3, 1), (2, 4, 1)])
def test_a_keeper_on_one_of_several_players(mechanism, sizes, tmp_path):
    module = Players(*sizes)
    keeper = mechanism(module.players[0], strength=math.inf).retain(uniform(module.players[0]))
    assert moves(module, tmp_path, keeper) == [False] + [True] * (len(sizes) - 1)
    assert keeper.report().num_steps == 4
    assert not keeper.optimizers
    module = Players(*sizes)
    keeper = mechanism(module, strength=math.inf).retain(uniform(module))
    assert moves(module, tmp_path, keeper) == [False] * len(sizes)


def test_a_keeper_on_each_of_two_players(tmp_path):
    """Their states and figures have names of their own, and a resumed fit gives each keeper its own back."""

    def fitted(keepers, module, epochs, **resume):
        names = ("", "second")
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            default_root_dir=tmp_path,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=1,
            callbacks=[HoldfastCallback(keeper, name=name) for keeper, name in zip(keepers, names)],
        )
        trainer.fit(module, DataLoader(TensorDataset(torch.ones(8, 2)), 2), **resume)
        return trainer

    module = Players(3, 4)
    keepers = [EWC(module.players[0], 2.0).retain(uniform(module.players[0])), WVA(module.players[1], 3.0)]
    keepers[1].retain(uniform(module.players[1]))
    trainer = fitted(keepers, module, 2)
    assert {"predicted_rise", "pull_ratio", "second/pull_ratio"} == set(trainer.logged_metrics)
    trainer.save_checkpoint(tmp_path / "both.ckpt")
    other = Players(3, 4)
    fresh = [EWC(other.players[0], 2.0), WVA(other.players[1], 3.0)]
    fitted(fresh, other, 3, ckpt_path=tmp_path / "both.ckpt")
    assert [keeper.report().num_steps for keeper in fresh] == [12, 12]
    fitted(keepers, module, 3, ckpt_path=tmp_path / "both.ckpt")
    assert same(weights_of(module), weights_of(other))


def test_a_keeper_on_what_no_optimizer_trains(tmp_path):
    module = Players(3, 1)
    other = nn.Linear(2, 2)
    with pytest.raises(ParameterMismatchError, match="this Adam trains none of the 2 trainable parameters of Linear"):
        moves(module, tmp_path, EWC(other, strength=1.0).retain(uniform(other)))


def test_the_lesson_is_closed_before_the_last_validation_and_save(tmp_path):
    model, seen = gpt2(), []
    keeper = EWC(model, budget=0.02, probe_every=2)
    keeper.retain(importance_of(model), probes=probes_of(model, [stacked(examples_for(model, 8))]))

    class Look(Callback):
        def on_validation_start(self, trainer, pl_module):
            if not trainer.sanity_checking:
                seen.append(keeper.skills[0].probes.rise(model))

    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    data = DataLoader(examples_for(model, 64), BATCH, collate_fn=stacked)
    module = Task(model).train()
    module.validation_step = lambda batch, batch_idx: None
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        default_root_dir=tmp_path,
        enable_model_summary=False,
        enable_progress_bar=False,
        log_every_n_steps=1,
        logger=logger,
        callbacks=[HoldfastCallback(keeper), Look(), ModelCheckpoint(tmp_path, filename="last")],
    )
    trainer.fit(module, data, data)
    assert seen
    assert 0 < seen[-1] <= 0.02
    assert seen[-1] == keeper.skills[0].rise
    header = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text().splitlines()[0]
    assert {"rise_0", "increment_0", "strength"} <= set(header.split(","))
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(saved[f"model.{name}"], value) for name, value in weights_of(model).items())


def rehearsal_of(model) -> Rehearsal:
    return Rehearsal(model, [stacked(examples_for(model, 4, seed=seed)) for seed in (7, 8, 9)], share=0.5)


def test_a_rehearsal_is_that_of_the_bare_loop_and_is_resumed(tmp_path):
    looped, whole, killed, fresh = gpt2().train(), gpt2(), gpt2(), gpt2()
    optimizer = torch.optim.AdamW(looped.parameters(), lr=LR, weight_decay=0.0)
    rehearsal_of(looped).attach(optimizer)
    batch = stacked(examples_for(looped, BATCH))
    for _ in range(STEPS):
        looped(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    fit(whole, tmp_path, callbacks=[RehearsalCallback(rehearsal_of(whole))], num_batches=1)
    torch.testing.assert_close(weights_of(whole), weights_of(looped), rtol=1e-4, atol=2e-5)
    saving = ModelCheckpoint(tmp_path, filename="first", save_on_train_epoch_end=True)
    half = {"num_batches": 1, "enable_checkpointing": True, "max_epochs": 3, "max_steps": -1}
    fit(killed, tmp_path, callbacks=[RehearsalCallback(rehearsal_of(killed)), saving], **half)
    fit(
        fresh,
        tmp_path,
        callbacks=[RehearsalCallback(rehearsal_of(fresh))],
        num_batches=1,
        resume=tmp_path / "first.ckpt",
    )
    assert same(weights_of(fresh), weights_of(whole))


def test_the_past_runs_in_the_precision_of_the_trainer(tmp_path):
    model = gpt2()
    rehearsal = rehearsal_of(model)
    fit(model, tmp_path, callbacks=[RehearsalCallback(rehearsal)], num_batches=1, precision="bf16-mixed")
    assert rehearsal.autocast == torch.bfloat16
