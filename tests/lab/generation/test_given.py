"""Pictures of your own, drawn class after class, with a judge that is trained on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from holdfast.errors import OptionError
from holdfast.lab.generation import configure_generation, run_generation

TINY = {"iterations": 2, "width": 4, "latent": 4, "images": 8, "batch_size": 4, "critic_steps": 1}


@pytest.mark.parametrize("method", ["mergan-ra", "dgr"])
def test_each_class_is_a_task_and_the_judge_is_of_these_pictures(tmp_path: Path, method):
    generator = np.random.default_rng(0)
    inputs = generator.integers(0, 256, (96, 12, 12, 3), dtype=np.uint8)
    np.savez(tmp_path / "shapes.npz", x=inputs, y=np.arange(96) % 3)
    config = configure_generation("generation", method, data=tmp_path / "shapes.npz", side=8, num_tasks=2, **TINY)
    found = run_generation(config, output=tmp_path / "runs")
    assert len(found.accuracy_matrix) == 2
    assert config.build_stream().input_shape == (3, 8, 8)
    (judge,) = (tmp_path / "runs" / "judges").glob("*.safetensors")
    assert judge.name == f"shapes-{config.fingerprint}-1.safetensors"
    (tmp_path / "shapes.npz").rename(tmp_path / "moved.npz")
    moved = configure_generation("generation", method, data=tmp_path / "moved.npz", side=8, num_tasks=2, **TINY)
    assert moved.name == config.name
    assert run_generation(moved, output=tmp_path / "runs").accuracy_matrix == found.accuracy_matrix


def test_it_wants_data(tmp_path: Path):
    np.savez(tmp_path / "few.npz", x=np.zeros((24, 8, 8), dtype=np.uint8), y=np.arange(24) % 4)
    few = configure_generation("generation", "none", data=tmp_path / "few.npz", **TINY)
    with pytest.raises(OptionError, match=r"4 test images, of classes \[.*\] fewer than two; .* Give more data"):
        run_generation(few, output=tmp_path / "runs")
    with pytest.raises(OptionError, match="stream generation: of which data"):
        configure_generation("generation", "none").build_stream()
