"""Data, networks and methods of others go through run, sweep and report as ours do, without a patch."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from holdfast.cli import main
from holdfast.lab import record
from holdfast.lab.result import find_results

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "examples" / "plugin" / "src"
MOST_LINES = {"importance": 15, "mechanism": 40, "method": 30, "stream": 15, "net": 10, "data": 10}
"""Of code, without docstrings and blanks, imports and options included."""

MINE = """
import torch
from torch import nn
from holdfast import lab


class Block(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.first, self.second = nn.Conv2d(inputs, outputs, 3, 2, 1), nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.way = nn.Conv2d(inputs, outputs, 1, 2)

    def forward(self, x):
        return torch.relu(self.second(torch.relu(self.first(x))) + self.way(x))


def resnet(input_shape, outputs):
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(Block(input_shape[0], 4), Block(4, 8), pooled, nn.Linear(8, outputs))


class Decayed(lab.Learner):
    def loss(self, inputs, targets, columns):
        decay = 1e-3 * sum(weight.square().sum() for weight in self.model.parameters())
        return lab.task_loss(self.model, inputs, targets, columns), decay
"""


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.syspath_prepend(PACKAGE)
    return "holdfast_example"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a module of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine_of_tests.py").write_text(MINE)
    return tmp_path


def images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Bytes [N, 32, 32, 3] of four classes that differ in colour."""
    random, labels = np.random.default_rng(seed), np.arange(count) % 4
    colours = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200], [180, 180, 40]])
    noise = random.integers(-30, 30, (count, 32, 32, 3))
    return (colours[labels][:, None, None] + noise).clip(0, 255).astype(np.uint8), labels


class TestPlugin:
    @pytest.mark.parametrize("name", MOST_LINES)
    def test_each_is_one_short_file_and_stands_in_the_docs(self, name):
        text = (PACKAGE / "holdfast_example" / f"{name}.py").read_text()
        assert f"```python\n{text.rstrip()}\n```\n" in (ROOT / "docs" / "plugins.md").read_text()
        documented = [
            node.body[0].value
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and isinstance(node.body[0], ast.Expr)
            and isinstance(node.body[0].value, ast.Constant)
        ]
        docstrings = {line for each in documented for line in range(each.lineno, (each.end_lineno or 0) + 1)}
        code = [n for n, line in enumerate(text.splitlines(), 1) if line.strip() and n not in docstrings]
        assert len(code) <= MOST_LINES[name]

    @pytest.mark.parametrize(
        "words",
        [
            "noisy-digits --method slow --slowing 0.5 --net linear",
            "permuted --data moons --method wva-magnitude --strength 1 --net linear",
            "permuted-digits --method interval-fisher --most 1e-5 --hidden 8",
        ],
    )
    def test_it_runs(self, words, plugin, tmp_path):
        argv = ["run", *words.split(), "--epochs", "1", "--num-tasks", "2", "--output", str(tmp_path), "--quiet"]
        assert main([*argv, "--plugin", plugin]) == 0
        (result,) = find_results([tmp_path])
        name = "slowing" if "slow" in words else "most" if "most" in words else "strength"
        assert name in result.config
        config = json.loads(next(tmp_path.glob("*/config.json")).read_text())
        assert config["plugins"]
        assert all(re.fullmatch(r"holdfast_example\.\w+", module) for module in config["plugins"])

    def test_its_flags_are_shown_where_it_is_chosen(self, plugin, capsys):
        assert main(["run", "noisy-digits", "--method", "slow", "--plugin", plugin, "--help"]) == 0
        said = capsys.readouterr().out
        assert "--slowing FLOAT" in said
        assert "--strength" not in said
        assert main(["run", "noisy-digits", "--method", "slow", "--plugin", plugin, "--slowing", "2"]) == 2
        assert "slowing is 2.0; expected a number from 0 to 1." in capsys.readouterr().err

    def test_it_is_swept_in_two_processes_and_reported_beside_ours(self, plugin, tmp_path):
        methods = ["--methods", "slow", "wva-magnitude", "none", "--strengths", "1", "10", "--seeds", "0", "1"]
        size = ["--epochs", "1", "--num-tasks", "2", "--hidden", "8", "--output", str(tmp_path), "--quiet"]
        argv = ["sweep", "permuted-digits", *methods, *size, "--jobs", "2", "--plugin", plugin]
        assert main(argv) == 0
        found = json.loads((tmp_path / "sweep-permuted-digits.json").read_text())
        assert [best["method"] for best in found["best"]] == ["wva-magnitude", "slow", "none"]
        assert len(found["all"]) == 4
        assert main(["report", str(tmp_path), "--output", str(tmp_path / "page"), "--quiet"]) == 0


def test_images_an_own_network_and_an_own_method(here: Path, capsys):
    x, y = images(120, 0)
    np.savez("colours.npz", x_train=x, y_train=y, x_test=x[:40], y_test=y[:40])
    for number, (image, label) in enumerate(zip(x, y)):
        path = here / "pictures" / ("train" if number % 3 else "test") / f"class{label}"
        path.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path / f"{number}.png")
    size = ["--net", "mine_of_tests:resnet", "--epochs", "15", "--batch-size", "8", "--lr", "0.02", "--quiet"]
    for data in ("colours.npz", "pictures"):
        assert main(["run", "split", "--data", data, "--method", "mine_of_tests:Decayed", *size]) == 0
    results = find_results(["runs"])
    assert [len(result.accuracy_matrix) for result in results] == [2, 2]
    assert min(result.learning_accuracy for result in results) > 0.9
    assert len({result.config["fingerprint"] for result in results}) == 2
    methods = ["--methods", "mine_of_tests:Decayed", "none", "--lrs", "0.01", "0.001", "--seeds", "0"]
    short = ["--net", "mine_of_tests:resnet", "--epochs", "1", "--quiet", "--jobs", "2"]
    assert main(["sweep", "split", "--data", "colours.npz", *methods, *short]) == 0
    assert len(json.loads(Path("runs/sweep-split.json").read_text())["all"]) == 4
    assert main(["report", "runs", "--output", "page", "--quiet"]) == 0


def test_a_loop_of_ones_own_is_reported(tmp_path: Path):
    for seed in range(2):
        found = record(
            stream="robots",
            method="ours",
            accuracy=[[0.9, 0.1], [0.8, 0.9]],
            seed=seed,
            output=tmp_path,
            settings={"lr": 1},
        )
        assert (found / "result.json").exists()
    assert main(["report", str(tmp_path), "--output", str(tmp_path / "page"), "--quiet"]) == 0
