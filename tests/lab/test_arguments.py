"""What is handed in by mistake ends in a line with a remedy that fits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from holdfast import lab
from holdfast.errors import FileFormatError, HoldfastError, OptionError
from holdfast.lab.report import report


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: lab.results("file.npz"),
            FileFormatError,
            r"^file.npz is no result of a run\. Give a result\.json, or",
        ),
        (lambda: lab.results(["empty", 3]), OptionError, r"results: 3; expected folders that hold runs, such as runs/"),
        (lambda: lab.results(None), OptionError, "results: None; expected folders that hold runs"),
        (lambda: lab.find_results([]), OptionError, "results: none are given; expected folders that hold runs"),
        (lambda: lab.find_results("empty"), FileFormatError, "no finished run below empty: there is no result.json"),
        (lambda: report("empty"), FileFormatError, "no finished run below empty: there is no result.json"),
        (lambda: lab.task_accuracies("empty"), OptionError, r"no table of runs; expected what holdfast.lab.results\("),
        (
            lambda: lab.run("permuted-digits"),
            OptionError,
            "run: 'permuted-digits'; expected a RunConfig, as holdfast.l",
        ),
        (
            lambda: lab.configure("permuted-digits", lab.Learner),
            OptionError,
            "method is <class .*; expected a name. Re",
        ),
        (lambda: lab.configure("permuted-digits", "none", hidden=8), OptionError, "hidden is 8; expected the units of"),
        (lambda: lab.load_data(np.zeros(3)), OptionError, "data: a ndarray; expected a name, a path or module:functio"),
        (lambda: lab.Stream.of("a", []), OptionError, "stream a: no tasks; expected one or more."),
    ],
)
def test_a_wrong_argument(
    call: Callable[[], Any],
    error: type[HoldfastError],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    np.savez("file.npz", x=np.zeros((3, 2)), y=[0, 1, 0])
    Path("empty").mkdir()
    with pytest.raises(error, match=message):
        call()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file.npz"]


def test_what_the_remedies_name(tmp_path: Path):
    folder = lab.record(stream="s", method="m", accuracy=[[0.5]], output=tmp_path)
    assert len(lab.results(folder / "result.json")) == len(lab.find_results(tmp_path)) == 1
    assert lab.configure("permuted-digits", "none", hidden=[8]).hidden == (8,)
