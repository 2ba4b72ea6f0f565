"""Generation runs of seconds: two or three classes of digits, a narrow GAN."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.lab.tiny import Killed

from holdfast.files import read_state, write_state
from holdfast.lab.generation import judge
from holdfast.lab.generation.config import GenerationConfig, configure_generation
from holdfast.lab.generation.run import run_generation


def small(method: str = "mergan-jtr", **settings: Any) -> GenerationConfig:
    """Two classes of six iterations."""
    narrow = {
        "num_tasks": 2,
        "iterations": 6,
        "batch_size": 8,
        "width": 4,
        "latent": 4,
        "images": 20,
        "critic_steps": 2,
    }
    return configure_generation("digits-generation", method, **{**narrow, **settings})


def quick_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge that has hardly learned, for runs whose figures nobody reads."""
    monkeypatch.setitem(judge.EPOCHS, "digits", 1)


def killed_at(number: int, config: GenerationConfig, output: Path) -> bool:
    """Run until the event of that number, from 1, and be killed in it; whether it came."""
    seen = 0

    def on_event(_: Mapping[str, Any]) -> None:
        nonlocal seen
        seen += 1
        if seen == number:
            raise Killed

    try:
        run_generation(config, output=output, on_event=on_event)
    except Killed:
        return True
    return False


def tensors_of(config: GenerationConfig, output: Path) -> dict[str, torch.Tensor]:
    """Of the last checkpoint, and the samples."""
    folder = output / config.name
    return read_state(folder / "checkpoint" / "state.safetensors")[0] | read_state(folder / "samples.safetensors")[0]


def poison(config: GenerationConfig, output: Path, name: str, value: float) -> None:
    """Fill the weights of that name in the checkpoint."""
    path = output / config.name / "checkpoint" / "state.safetensors"
    tensors, notes = read_state(path)
    chosen = [key for key in tensors if key.startswith("drawing/gan/") and name in key]
    assert chosen
    for key in chosen:
        tensors[key].fill_(value)
    write_state(path, tensors, notes)
