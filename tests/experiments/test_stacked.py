from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.experiments.tiny import Killed, events, killed_at, tiny

from holdfast.errors import FailedRunsError, OptionError
from holdfast.experiments.run import run
from holdfast.experiments.stacked import train_stacked, why_not_stacked
from holdfast.files import read_state

KINDS = {
    "sgd": ("ewc-fisher", {}),
    "momentum and the mean": ("ewc-fisher", {"optimizer": "momentum", "lr": 0.05, "accumulate": "mean"}),
    "adam, cosine, every second step": (
        "ewc-fisher",
        {"optimizer": "adam", "lr": 0.003, "schedule": "cosine", "pull_every": 2},
    ),
    "a pull in the gradient": ("ewc-fisher", {"pull": "gradient", "weight_decay": 1e-3, "lr": 1e-3}),
    "anchors of every task": ("ewc-signal", {"accumulate": "per_task", "iterations": 13}),
    "wva": ("wva-fisher", {"optimizer": "adamw", "lr": 0.003}),
    "wva of gradients": ("wva-taylor", {"attenuate": "gradients", "attenuation": "exponential"}),
    "plain": ("none", {}),
    "one head a task": ("ewc-fisher", {"stream": "split-digits", "num_tasks": 3}),
    "classes seen": ("ewc-fisher", {"stream": "split-digits", "scenario": "class"}),
    "convolution": ("ewc-fisher", {"net": "convolution", "epochs": 1}),
}


def configs(kind: str):
    method, settings = KINDS[kind]
    strengths = (0.0, 3.0, 1e4) if method != "none" else (None,)
    settings = {"num_tasks": 3, **settings}
    return [tiny(method, seed=seed, strength=strength, **settings) for strength in strengths for seed in (4, 7)]


def weights(config, output: Path) -> dict[str, torch.Tensor]:
    tensors, _ = read_state(output / config.name / "checkpoint" / "state.safetensors")
    return tensors


def assert_equal_within_rounding(found, config, *, stacked: Path, separate: Path) -> None:
    expected = run(config, output=separate)
    ours, theirs = weights(config, stacked), weights(config, separate)
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=2e-3, atol=2e-4, msg=lambda told: f"{name}: {told}")
    assert found.config == expected.config
    for ours_, theirs_ in zip(found.accuracy_matrix, expected.accuracy_matrix, strict=True):
        assert ours_ == pytest.approx(theirs_, abs=3 / 60)  # 3 of the 60 test examples of a split task
    assert found.validation_accuracy == pytest.approx(expected.validation_accuracy, abs=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_to_separate_runs_within_rounding(tmp_path, kind):
    order = configs(kind)
    found = train_stacked(order, output=tmp_path / "stacked")
    assert len({json.dumps(result.accuracy_matrix) for result in found}) > 1
    for result, config in zip(found, order, strict=True):
        assert_equal_within_rounding(result, config, stacked=tmp_path / "stacked", separate=tmp_path / "separate")


PLAIN = [tiny("ewc-fisher", seed=seed, strength=strength, num_tasks=3) for strength in (1.0, 30.0) for seed in (0, 1)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("whole")
    train_stacked(PLAIN, output=output)
    return output


@pytest.mark.parametrize("number", [1, 9, 13, 14, 15, 22, 38])
def test_killed_it_goes_on(whole, tmp_path, number):
    seen = []

    def kill(event) -> None:
        seen.append(event)
        if len(seen) == number:
            raise Killed

    with pytest.raises(Killed):
        train_stacked(PLAIN, output=tmp_path, on_event=kill)
    train_stacked(PLAIN, output=tmp_path)
    for config in PLAIN:
        ours, expected = weights(config, tmp_path), weights(config, whole)
        for name in expected:
            torch.testing.assert_close(ours[name], expected[name], rtol=1e-4, atol=1e-6)
        kinds = [event["event"] for event in events(config, tmp_path) if event["event"] != "start"]
        assert kinds == ["epoch", "epoch", "task"] * 3 + ["done"]
        assert not (tmp_path / config.name / ".holdfast-lock").exists()


def test_runs_that_were_begun_separately_join_where_they_are(whole, tmp_path):
    assert killed_at(3, PLAIN[0], tmp_path)  # in mid-task
    assert killed_at(6, PLAIN[1], tmp_path)  # in the second task
    run(PLAIN[2], output=tmp_path)
    found = train_stacked(PLAIN, output=tmp_path)
    for result, config in zip(found, PLAIN, strict=True):
        assert_equal_within_rounding(result, config, stacked=tmp_path, separate=whole)


def test_what_diverges_is_named_and_the_others_are_done(tmp_path):
    settings = {"pull": "gradient", "num_tasks": 3}
    calm, wild = (tiny("ewc-fisher", strength=strength, **settings) for strength in (1.0, 1e9))
    with pytest.raises(
        FailedRunsError,
        match=r"1 of 2 runs failed; .*: train_stacked: the training loss is nan"
        r' in epoch . of task 2: training has diverged. Lower the learning rate, which is 0.1, or use pull="implicit"',
    ):
        train_stacked([calm, wild], output=tmp_path)
    (found,) = train_stacked([calm], output=tmp_path)
    assert_equal_within_rounding(found, calm, stacked=tmp_path, separate=tmp_path / "separate")


@pytest.mark.parametrize(
    ("method", "settings", "reason"),
    [
        ("ewc-si", {"strength": 1.0}, "method ewc-si does more than pull weight by weight"),
        ("ewc-kfac", {"strength": 1.0}, "method ewc-kfac does more than pull weight by weight"),
        ("joint", {}, "method joint does more than pull weight by weight"),
        ("ewc-fisher", {"budget": 0.1}, "a budget is solved for each run by itself"),
        ("none", {"clip": 1.0}, "clip takes the norm over all weights"),
        ("none", {"fresh_optimizer": False}, "an optimizer that lives on from task to task has no checkpoint"),
        ("none", {"net": "attention"}, "scaled_dot_product_attention has no batching rule on every device"),
        ("ewc-fisher", {"pull": "penalty", "strength": 1.0}, 'pull "penalty" stands in the loss'),
        ("ewc-fisher", {"strength": float("inf")}, "an infinite strength times an importance of zero is no number"),
    ],
)
def test_what_cannot_be_stacked_is_said_before_anything_is_written(tmp_path, method, settings, reason):
    config = tiny(method, **settings)
    assert reason in why_not_stacked([config])
    with pytest.raises(OptionError, match=r"these runs cannot be one program: .*\. Do them with run_all\."):
        train_stacked([config], output=tmp_path)
    assert not list(tmp_path.iterdir())


def test_only_seed_and_strength_may_differ():
    one, other = tiny("ewc-fisher", strength=1.0, seed=0), tiny("ewc-fisher", strength=2.0, seed=1)
    assert why_not_stacked([one, other]) == ""
    changed = tiny("ewc-fisher", strength=2.0, lr=0.2, epochs=3)
    assert why_not_stacked([one, changed]) == "they differ in epochs, lr; only seed and strength may differ"
