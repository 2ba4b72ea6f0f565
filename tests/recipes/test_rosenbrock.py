from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from recipes.rosenbrock import Rosenbrock, curvature, rosenbrock, task_1, task_2

from holdfast.errors import NotFiniteError, OptionError, OutputError


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Rosenbrock:
    return rosenbrock(output=tmp_path_factory.mktemp("runs"), steps=800, lr=0.03)


def test_the_minima():
    assert task_1(torch.tensor([1.0, 1.0])) == 0
    assert task_2(torch.tensor([0.5, 2.0])) == 0
    points = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
    assert (task_1(points) >= 0).all()
    assert (task_2(points) >= 0).all()


def test_importance_is_the_diagonal_of_the_hessian():
    # f1 = (1 - x)^2 + b (y - x^2)^2 at (1, 1): f_xx = 2 + 8 b, f_yy = 2 b
    assert curvature((1.0, 1.0)) == pytest.approx((82.0, 20.0))
    # far up the y axis the function is hollow downwards in x: f_xx = 2 - 4 b y < 0
    assert curvature((0.0, 3.0)) == (0.0, pytest.approx(20.0))


def test_task_1_is_learned_and_then_forgotten_without_ewc(found: Rosenbrock):
    assert found.anchor == pytest.approx((1, 1), abs=0.01)
    plain = found.paths[0]
    assert plain.strength is None
    assert plain.loss_2 < 1e-3
    assert plain.loss_1 > 20


def test_the_stronger_the_pull_the_more_is_kept(found: Rosenbrock):
    plain, weak, strong = found.paths
    assert (weak.strength, strong.strength) == (0.01, 1.0)
    assert plain.loss_1 > 2 * weak.loss_1 > 20 * strong.loss_1
    assert plain.loss_2 < weak.loss_2 < strong.loss_2 < task_2(torch.tensor(found.anchor))
    assert strong.loss_1 < 0.1


def test_ewc_ends_where_the_penalised_gradient_vanishes(found: Rosenbrock):
    for path in found.paths[1:]:
        point = torch.tensor(path.points[-1], dtype=torch.float64, requires_grad=True)
        task_2(point).backward()
        assert point.grad is not None
        assert path.strength is not None
        pull = [path.strength * o * (p - a) for o, p, a in zip(found.importance, path.points[-1], found.anchor)]
        assert point.grad.tolist() == pytest.approx([-value for value in pull], abs=0.02)


def test_predicted_rise_is_the_quadratic_at_the_end(found: Rosenbrock):
    assert found.paths[0].predicted_rise is None
    strong = found.paths[2]
    squares = (o * (p - a) ** 2 for o, p, a in zip(found.importance, strong.points[-1], found.anchor))
    assert strong.predicted_rise == pytest.approx(0.5 * sum(squares), rel=1e-3)


def test_files(found: Rosenbrock):
    assert found.picture.read_bytes().startswith(b"\x89PNG")
    content = json.loads(found.data.read_text())
    assert content["paths"][1]["strength"] == 0.01
    assert len(content["paths"][0]["points"]) == 801
    assert content["settings"]["steps"] == 800
    # a report of the folder above must not take it for a run
    assert found.data.name != "result.json"


def test_any_number_of_strengths(tmp_path: Path):
    found = rosenbrock(output=tmp_path, strengths=[0.0, 0.1, 1, 10, 100, math.inf], steps=20, lr=0.02)
    assert len(found.paths) == 7
    assert found.paths[1].points == found.paths[0].points
    assert found.paths[-1].points[-1] == pytest.approx(found.anchor)


def test_bad_options(tmp_path: Path):
    with pytest.raises(OptionError, match=r"steps is 0; expected a whole number >= 1"):
        rosenbrock(output=tmp_path, steps=0)
    with pytest.raises(OptionError, match=r"lr is nan; expected a finite number above 0"):
        rosenbrock(output=tmp_path, lr=math.nan)
    with pytest.raises(OptionError, match=r"strength is -1"):
        rosenbrock(output=tmp_path, strengths=[-1], steps=2)
    with pytest.raises(NotFiniteError, match=r"after 5 steps. Lower lr, which is 1e\+200"):
        rosenbrock(output=tmp_path, steps=5, lr=1e200)
    assert not list(tmp_path.rglob("*.*"))


def test_a_place_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*rosenbrock: .*file: that is no folder. Choose a folder"):
        rosenbrock(output=tmp_path / "file")


def test_no_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(OptionError, match=r"pip install \"torch-holdfast\[plots\]\""):
        rosenbrock(output=tmp_path)
