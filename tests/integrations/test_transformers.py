"""A keeper in `transformers.Trainer` does what it does in a loop of one's own."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from tests.integrations.tiny import (
    MODELS,
    examples_for,
    gpt2,
    importance_of,
    same,
    stacked,
    weights_of,
)
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from holdfast import EWC, WVA, probes_of, uniform
from holdfast.errors import StateError
from holdfast.integrations.transformers import HoldfastCallback, RehearsalCallback
from holdfast.replay import Rehearsal

BATCH, STEPS, LR = 4, 6, 1e-2

MECHANISMS = {
    "ewc": partial(EWC, strength=30.0, log_every=2),
    "ewc-budget": partial(EWC, budget=1e-3, log_every=2),
    "ewc-probed": partial(EWC, budget=1e-3, log_every=2, probe_every=2),
    "wva": partial(WVA, strength=30.0, log_every=2),
}


def held(mechanism, model):
    probes = probes_of(model, [stacked(examples_for(model, 8))]) if mechanism == "ewc-probed" else None
    return MECHANISMS[mechanism](model).retain(importance_of(model), probes=probes)


def trainer_of(model, folder: Path, *, callbacks=(), steps: int = STEPS, **options) -> Trainer:
    defaults = {
        "max_steps": steps,
        "per_device_train_batch_size": BATCH,
        "learning_rate": LR,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "train_sampling_strategy": "sequential",
    }
    args = TrainingArguments(str(folder), **{**defaults, **options})
    return Trainer(model, args, train_dataset=examples_for(model, 64), callbacks=list(callbacks))


def loop(model, *, steps: int = STEPS, accumulate: int = 1, clip: float = 0.0, keeper=None):
    """The same training, written out."""
    model.train()
    data = examples_for(model, 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0)
    if keeper is not None:
        keeper.attach(optimizer)
    for step in range(steps):
        for part in range(accumulate):
            start = (step * accumulate + part) * BATCH
            loss = model(**stacked(data[start : start + BATCH])).loss / accumulate
            loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
    if keeper is not None:
        keeper.close()
    return model


def train_both(kind, mechanism, folder, **options):
    """The weights after the loop and after the Trainer, and the Trainer's keeper."""
    written, model = MODELS[kind](), MODELS[kind]()
    accumulate, clip = options.get("gradient_accumulation_steps", 1), options.get("max_grad_norm", 0.0)
    loop(written, accumulate=accumulate, clip=clip, keeper=held(mechanism, written))
    keeper = held(mechanism, model)
    trainer_of(model, folder, callbacks=[HoldfastCallback(keeper)], **options).train()
    return weights_of(written), weights_of(model), keeper


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("kind", MODELS)
def test_it_is_the_bare_loop(kind, mechanism, tmp_path):
    written, trained, keeper = train_both(kind, mechanism, tmp_path)
    assert keeper.report().num_steps == STEPS
    torch.testing.assert_close(trained, written, rtol=1e-4, atol=2e-5)
    assert not same(trained, weights_of(MODELS[kind]()))


@pytest.mark.parametrize("options", [{"gradient_accumulation_steps": 2}, {"max_grad_norm": 0.1}], ids=str)
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_accumulation_and_clipping_come_before_the_pull(mechanism, options, tmp_path):
    written, trained, keeper = train_both("gpt2", mechanism, tmp_path, **options)
    assert keeper.report().num_steps == STEPS
    torch.testing.assert_close(trained, written, rtol=1e-4, atol=2e-5)


def test_small_pulls_on_bfloat16_weights_arrive(tmp_path):
    """Each pull goes a two-thousandth of the way: a tenth of the resolution."""
    came_back = []
    for dtype in (torch.bfloat16, torch.float32):
        model = gpt2(torch.bfloat16).to(dtype)
        keeper = EWC(model, strength=10.0).retain(importance_of(model))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.5)
        before = keeper.predicted_rise()
        options = {"optim": "sgd", "learning_rate": 1e-4, "steps": 40}
        trainer_of(model, tmp_path, callbacks=[HoldfastCallback(keeper)], **options).train()
        came_back.append(1 - keeper.predicted_rise() / before)
    assert came_back[0] == pytest.approx(came_back[1], rel=0.1)
    assert came_back[0] > 0.03


@pytest.mark.parametrize("mechanism", ["ewc", "wva"])
def test_strength_zero_is_the_plain_trainer_to_the_bit(mechanism, tmp_path):
    plain, model = gpt2(), gpt2()
    trainer_of(plain, tmp_path).train()
    keeper = held(mechanism, model)
    keeper.strength = 0.0
    trainer_of(model, tmp_path, callbacks=[HoldfastCallback(keeper)]).train()
    assert same(weights_of(model), weights_of(plain))
    assert not same(weights_of(model), weights_of(gpt2()))


@pytest.mark.parametrize("mechanism", ["ewc", "wva"])
def test_infinite_strength_pins_what_matters(mechanism, tmp_path):
    model = gpt2()
    start = weights_of(model)
    keeper = held(mechanism, model)
    keeper.strength = math.inf
    trainer_of(model, tmp_path, callbacks=[HoldfastCallback(keeper)]).train()
    for name, weight in weights_of(model).items():
        pinned = keeper.held.importance[name] > 0
        torch.testing.assert_close(weight[pinned], start[name][pinned], rtol=0, atol=1e-6)
    assert not same(weights_of(model), start)


@pytest.mark.parametrize(
    ("mechanism", "dtype"), [*((name, torch.float32) for name in MECHANISMS), ("ewc", torch.bfloat16)]
)
def test_a_resumed_run_is_an_uninterrupted_one(mechanism, dtype, tmp_path):
    whole, model = gpt2(dtype), gpt2(dtype)
    uninterrupted = held(mechanism, whole)
    trainer_of(whole, tmp_path / "whole", callbacks=[HoldfastCallback(uninterrupted)]).train()

    class Kill(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 5:
                raise KeyboardInterrupt

    saving = {"save_strategy": "steps", "save_steps": 2}
    killed = trainer_of(model, tmp_path / "a", callbacks=[HoldfastCallback(held(mechanism, model)), Kill()], **saving)
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    fresh = gpt2(dtype)
    keeper = MECHANISMS[mechanism](fresh)  # what it retains comes from the checkpoint
    resumed = trainer_of(fresh, tmp_path / "a", callbacks=[HoldfastCallback(keeper)], **saving)
    resumed.train(resume_from_checkpoint=True)
    assert same(weights_of(fresh), weights_of(whole))
    assert keeper.report() == uninterrupted.report()


def test_two_keepers_in_one_trainer(tmp_path):
    """Over parts of a model, under names of their own; each gets its own back where training resumes."""

    def keepers_of(model):
        return {"": MECHANISMS["ewc"](model.transformer.h[0]), "tables": MECHANISMS["wva"](model.transformer.wte)}

    def trained(model, keepers, checkpoint=None):
        trainer = trainer_of(model, tmp_path, save_strategy="steps", save_steps=2, steps=4)
        for name, keeper in keepers.items():
            HoldfastCallback(keeper, name=name).attach(trainer)
        with pytest.raises(
            StateError, match="this Trainer has one named 'tables' already. Give each a name of its own"
        ):
            HoldfastCallback(keepers["tables"], name="tables").attach(trainer)
        trainer.train(resume_from_checkpoint=checkpoint)
        return trainer.state.log_history

    model, again = gpt2(), gpt2()
    keepers, fresh = keepers_of(model), keepers_of(again)
    for keeper in keepers.values():
        keeper.retain(uniform(keeper.model))
    logs = trained(model, keepers)
    assert {"predicted_rise", "pull_ratio", "tables/pull_ratio"} <= set(logs[0])
    trained(again, fresh, str(tmp_path / "checkpoint-2"))
    assert same(weights_of(again), weights_of(model))
    for name, keeper in fresh.items():
        assert str(keeper.report()) == str(keepers[name].report())


def test_a_checkpoint_elsewhere_must_be_named(tmp_path):
    model = gpt2()
    saving = {"save_strategy": "steps", "save_steps": 2, "steps": 4}
    trainer_of(model, tmp_path / "a", callbacks=[HoldfastCallback(held("ewc", model))], **saving).train()
    moved = (tmp_path / "a" / "checkpoint-2").rename(tmp_path / "moved")
    other = gpt2()
    saving["learning_rate"] = 2 * LR  # a run of the same name and another history
    trainer_of(other, tmp_path / "a", callbacks=[HoldfastCallback(held("ewc", other))], **saving).train()
    keeper = MECHANISMS["ewc"](other)
    with pytest.raises(StateError, match="none of .*checkpoint-2 is the checkpoint it resumes from"):
        trainer_of(other, tmp_path / "a", callbacks=[HoldfastCallback(keeper)], **saving).train(str(moved))
    callback = HoldfastCallback(keeper, resume_from_checkpoint=moved)
    trainer_of(other, tmp_path / "a", callbacks=[callback], **saving).train(str(moved))
    assert keeper.report().num_steps == 4


def test_a_checkpoint_without_a_keeper_is_told(tmp_path):
    model = gpt2()
    saving = {"save_strategy": "steps", "save_steps": 2, "steps": 4}
    trainer_of(model, tmp_path, **saving).train()
    callback = HoldfastCallback(held("ewc", model))
    with pytest.warns(UserWarning, match=r"checkpoint-2 was written without a keeper; .* \(1 tasks\)"):
        trainer_of(model, tmp_path, callbacks=[callback], **saving).train(str(tmp_path / "checkpoint-2"))
    assert callback.keeper.report().num_steps == 2


def test_the_logs_tell_rise_and_pull(tmp_path):
    model = gpt2()
    keeper = held("ewc", model)
    seen = []

    class Reporter(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.append(dict(logs or {}))

    trainer = trainer_of(model, tmp_path, callbacks=[Reporter()])
    HoldfastCallback(keeper).attach(trainer)
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(entries) == STEPS
    assert all(entry["predicted_rise"] > 0 and 0 < entry["pull_ratio"] < 1 for entry in entries)
    assert entries[-1]["predicted_rise"] == keeper.predicted_rise()
    reported = [logs["predicted_rise"] for logs in seen if "loss" in logs]
    assert reported == [entry["predicted_rise"] for entry in entries]


def test_wva_has_no_anchors_to_predict_a_rise_from(tmp_path):
    model = gpt2()
    trainer = trainer_of(model, tmp_path, callbacks=[HoldfastCallback(held("wva", model))])
    trainer.train()
    assert "predicted_rise" not in trainer.state.log_history[0]
    assert trainer.state.log_history[0]["pull_ratio"] > 0


def test_steps_that_a_gradient_scaler_skips_pull_nothing(tmp_path):
    model = gpt2()
    keeper = held("ewc", model)
    weights, calls = [], []

    class Overflow(TrainerCallback):
        """Gives every second step an infinite gradient."""

        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            if state.global_step % 2:
                next(model.parameters()).grad[0] = math.inf

        def on_step_end(self, args, state, control, **kwargs):
            weights.append(weights_of(model))
            calls.append(keeper.report().num_steps)

    trainer = trainer_of(model, tmp_path, callbacks=[HoldfastCallback(keeper), Overflow()], steps=4)
    # what Accelerate builds for fp16 on a GPU
    trainer.accelerator.scaler = trainer.accelerator.native_amp = torch.amp.GradScaler("cpu", init_scale=8.0)
    trainer.train()
    assert calls == [1, 1, 2, 2]
    assert same(weights[1], weights[0])
    assert not same(weights[2], weights[1])
    assert same(weights[3], weights[2])


def test_it_leaves_the_optimizer_as_it_was(tmp_path):
    model = gpt2()
    trainer = trainer_of(model, tmp_path, callbacks=[HoldfastCallback(held("ewc", model))])
    trainer.train()
    optimizer = trainer.optimizer.optimizer
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_the_lesson_is_closed_before_the_last_evaluation_and_save(tmp_path):
    model, seen = gpt2(), []
    keeper = held("ewc-probed", model)

    class Look(TrainerCallback):
        def on_evaluate(self, args, state, control, **kwargs):
            seen.append(keeper.skills[0].probes.rise(model))

    trainer = trainer_of(model, tmp_path, callbacks=[Look()], steps=12, save_strategy="steps", save_steps=3)
    trainer.eval_dataset = examples_for(model, 4)
    trainer.args.eval_strategy, trainer.args.eval_steps = IntervalStrategy.STEPS, 3
    HoldfastCallback(keeper).attach(trainer)
    trainer.train()
    assert len(seen) == 4
    assert 0 < seen[-1] <= 1e-3
    assert seen[-1] == keeper.skills[0].rise
    entry = [entry for entry in trainer.state.log_history if "loss" in entry][-1]
    assert {"rise_0", "increment_0", "strength"} <= set(entry)
    saved = type(model).from_pretrained(tmp_path / "checkpoint-12")
    assert all(torch.equal(value, weights_of(model)[name]) for name, value in weights_of(saved).items())


def test_training_that_is_stopped_early_closes_its_lesson(tmp_path):
    model = gpt2()
    keeper = held("ewc-probed", model)

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 9

    trainer_of(model, tmp_path, callbacks=[HoldfastCallback(keeper), Stop()], steps=20).train()
    assert 0 < keeper.skills[0].probes.rise(model) <= 1e-3


def rehearsal_of(model) -> Rehearsal:
    old = [stacked(examples_for(model, 4, seed=seed)) for seed in (7, 8, 9)]
    return Rehearsal(model, probes_of(gpt2_moved(), old), share=0.5)


def gpt2_moved():
    """Another model, whose answers are to be taught."""
    model = gpt2()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5))
    return model


def test_a_rehearsal_in_the_trainer_is_one_in_a_loop(tmp_path):
    looped, trained = gpt2(), gpt2()
    optimizer = torch.optim.AdamW(looped.parameters(), lr=LR, weight_decay=0.0)
    rehearsal = rehearsal_of(looped).attach(optimizer)
    data = examples_for(looped, 64)
    looped.train()
    for step in range(STEPS):
        looped(**stacked(data[step * BATCH : (step + 1) * BATCH])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    trainer = trainer_of(trained, tmp_path, callbacks=[RehearsalCallback(rehearsal_of(trained))])
    trainer.train()
    torch.testing.assert_close(weights_of(trained), weights_of(looped), rtol=1e-4, atol=2e-5)
    logged = [entry["rehearsal_loss"] for entry in trainer.state.log_history if "rehearsal_loss" in entry]
    assert logged[-1] == pytest.approx(rehearsal.last_loss, rel=1e-3)
    assert logged[-1] < logged[1]


def test_a_resumed_training_rehearses_what_it_would_have(tmp_path):
    whole, killed, fresh = gpt2(), gpt2(), gpt2()
    trainer_of(whole, tmp_path / "whole", callbacks=[RehearsalCallback(rehearsal_of(whole))]).train()
    saving = {"save_strategy": "steps", "save_steps": 3}
    trainer_of(killed, tmp_path / "a", callbacks=[RehearsalCallback(rehearsal_of(killed))], steps=3, **saving).train()
    resumed = trainer_of(fresh, tmp_path / "a", callbacks=[RehearsalCallback(rehearsal_of(fresh))], **saving)
    resumed.train(resume_from_checkpoint=True)
    assert same(weights_of(fresh), weights_of(whole))
