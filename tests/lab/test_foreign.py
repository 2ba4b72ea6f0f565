"""An error in code of somebody else's ends in a line that says where, and in its own traceback alone."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.test_main import EWC

from holdfast.cli import main
from holdfast.errors import OptionError
from holdfast.lab.foreign import foreign_trace, in_a_line, is_foreign
from holdfast.lab.importing import imported

MINE = """
import torch
from torch import nn
from holdfast import lab


def data():
    return read("no_such.csv")


def read(path):
    return open(path)


def net(input_shape, outputs):
    return nn.Linear(input_shape[3], outputs)


class Narrow(nn.Linear):
    def forward(self, x):
        return super().forward(x)


def narrow(input_shape, outputs):
    return Narrow(3, outputs)


def bare(input_shape, outputs):
    return nn.Linear(3, outputs)


class Method(lab.Learner):
    def loss(self, inputs, targets, columns):
        return {}["no such key"]
"""
READS = "read (mine_of_tests.py, line 12) raised FileNotFoundError: [Errno 2] No such file or directory: 'no_such.csv'"
SMALL = ["--epochs", "1", "--num-tasks", "2", "--output", "runs", "--quiet"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine_of_tests.py").write_text(MINE)
    yield
    sys.modules.pop("mine_of_tests", None)


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    """The exit status, what is said in the last line, and what before."""
    status = main(list(argv))
    *before, last = capsys.readouterr().err.strip().split("\n")
    return status, last, "\n".join(before)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (
            ["run", "permuted", "--data", "mine_of_tests:data", "--method", "none"],
            READS,
        ),
        (
            [*EWC, "--net", "mine_of_tests:net"],
            "net (mine_of_tests.py, line 16) raised IndexError: tuple index out of range",
        ),
        (
            [*EWC, "--net", "mine_of_tests:narrow"],
            "Narrow.forward (mine_of_tests.py, line 21) raised RuntimeError: mat1 and mat2 shapes cannot be multiplied "
            "(16x8 and 3x10)",
        ),
        (
            ["run", "permuted-digits", "--method", "mine_of_tests:Method"],
            "Method.loss (mine_of_tests.py, line 34) raised KeyError: 'no such key'",
        ),
        (
            ["sweep", "permuted", "--data", "mine_of_tests:data", "--methods", "none"],
            READS,
        ),
    ],
)
def test_the_function_the_file_and_the_line_are_named(argv: list[str], said: str, capsys, tmp_path: Path):
    status, last, before = refused(capsys, *argv, *SMALL)
    assert (status, last) == (1, f"holdfast: {said}")
    assert before.startswith("Traceback (most recent call last), without the lines of holdfast:")
    assert all("mine_of_tests.py" in line for line in before.split("\n") if line.startswith("  File"))
    for path in (tmp_path / "runs").rglob("*.json"):
        json.loads(path.read_text())


def test_a_network_without_code_of_its_own_is_told_with_the_shape_of_its_inputs(capsys, tmp_path: Path):
    status, last, _ = refused(capsys, *EWC, "--net", "mine_of_tests:bare", *SMALL)
    assert status == 2
    assert last.startswith(
        "holdfast: net mine_of_tests:bare: with inputs of shape [2, 1, 8, 8], torch.float32, RuntimeError: mat1 and"
    )
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_so_are_the_runs_of_a_sweep(jobs: str, capsys):
    argv = ["sweep", "permuted-digits", "--methods", "mine_of_tests:Method", "none", "--seeds", "0", "--jobs", jobs]
    status, last, before = refused(capsys, *argv, *SMALL)
    assert status == 1
    assert last.startswith(
        "holdfast: 1 of 2 runs failed; the others are finished. permuted-digits-mine_of_tests_Method"
    )
    assert last.endswith(": Method.loss (mine_of_tests.py, line 34) raised KeyError: 'no such key'")
    assert "holdfast/lab" not in before
    assert json.loads(Path("runs/sweep-permuted-digits.json").read_text())["best"][0]["method"] == "none"


def test_errors_of_ours_and_of_none_are_as_they_were():
    with pytest.raises(ValueError, match="Expecting") as caught:
        json.loads("{")
    assert is_foreign(caught.value)  # of this test
    ours = OptionError("lr is\n 3")
    assert not is_foreign(ours)
    assert in_a_line(ours) == "lr is 3"
    bare = ValueError()
    assert (is_foreign(bare), in_a_line(bare)) == (False, "ValueError")
    assert foreign_trace(bare) == "ValueError\n"


def test_a_plug_in_is_somebody_elses_wherever_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "site-packages"
    folder.mkdir()
    for name in ("installed_of_tests", "other_of_tests"):
        (folder / f"{name}.py").write_text("def fail():\n    raise ValueError('no')\n")
    monkeypatch.syspath_prepend(folder)
    fail = imported("installed_of_tests:fail", what="method")
    with pytest.raises(ValueError, match="no") as caught:
        fail()
    assert in_a_line(below(caught.value)) == "fail (site-packages/installed_of_tests.py, line 2) raised ValueError: no"
    with pytest.raises(ValueError, match="no") as other:
        importlib.import_module("other_of_tests").fail()
    assert not is_foreign(below(other.value))


def below(error: Exception) -> Exception:
    """The error without the frame of the test itself."""
    assert error.__traceback__ is not None
    return error.with_traceback(error.__traceback__.tb_next)
