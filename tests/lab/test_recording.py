from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.files.folders import listing
from tests.lab.tiny import tiny

from holdfast import lab
from holdfast.errors import OptionError, OutputError, UnknownNameError
from holdfast.lab.groups import group_results
from holdfast.lab.result import RunResult

MATRIX = [[0.9, 0.1, 0.2], [0.8, 0.95, 0.3], [0.6, 0.7, 1.0]]


def test_what_an_own_loop_found_is_found_again(tmp_path: Path):
    folder = lab.record(
        stream="my-stream",
        method="my-method",
        accuracy=MATRIX,
        seed=3,
        validation=[[0.9], [0.8, 0.9], [0.5, 0.6, 0.9]],
        baseline=[0.1, 0.1, 0.2],
        scenario="task",
        settings={"lr": 0.1, "hidden": [8, 4]},
        seconds=12.5,
        num_parameters=1000,
        held_bytes=4000,
        output=tmp_path,
    )
    assert folder.name.startswith("my-stream-my-method-3-")
    (found,) = lab.find_results([tmp_path])
    assert found == RunResult.load(folder / "result.json")
    assert (found.stream, found.method, found.seed, found.scenario) == ("my-stream", "my-method", 3, "task")
    assert found.accuracy_matrix == MATRIX
    assert found.average_accuracy == pytest.approx([0.9, 0.875, 2.3 / 3])
    assert found.forgetting == pytest.approx((0.3 + 0.25) / 2)
    assert found.validation_accuracy[-1] == pytest.approx(2 / 3)
    assert (found.seconds, found.num_parameters, found.held_bytes) == (12.5, 1000, 4000)
    told = json.loads((folder / "config.json").read_text())
    assert told["config"] == found.config
    assert found.config == {
        "stream": "my-stream",
        "method": "my-method",
        "seed": 3,
        "scenario": "task",
        "lr": 0.1,
        "hidden": [8, 4],
    }


def test_arrays_and_tensors_are_tables(tmp_path: Path):
    one = lab.record(stream="s", method="m", accuracy=np.asarray(MATRIX), output=tmp_path)
    two = lab.record(stream="s", method="m", accuracy=[torch.tensor(row) for row in MATRIX], output=tmp_path)
    assert one == two
    assert lab.find_results(tmp_path)[0].accuracy_matrix == [pytest.approx(row) for row in MATRIX]


def test_what_is_left_out(tmp_path: Path):
    lab.record(stream="s", method="m", accuracy=MATRIX, output=tmp_path)
    (found,) = lab.find_results([tmp_path])
    assert found.baseline_accuracy == [0.0] * 3
    assert found.validation_accuracy == found.average_accuracy
    assert (found.scenario, found.seed, found.num_parameters) == ("domain", 0, None)


def test_seeds_are_one_group_and_other_settings_are_another(tmp_path: Path):
    for seed in (0, 1):
        for lr in (0.1, 0.2):
            lab.record(stream="s", method="m", accuracy=MATRIX, seed=seed, settings={"lr": lr}, output=tmp_path)
    runs = group_results(lab.find_results([tmp_path]))
    assert runs.groupby("configuration").size().tolist() == [2, 2]


def test_it_stands_beside_runs_of_holdfast(tmp_path: Path):
    lab.run(tiny("none"), output=tmp_path)
    lab.record(stream="permuted-digits", method="mine", accuracy=[[0.9, 0.1], [0.8, 0.9]], output=tmp_path)
    assert {found.method for found in lab.find_results([tmp_path])} == {"none", "mine"}


def test_the_same_again_takes_the_place_of_the_old(tmp_path: Path):
    first = lab.record(stream="s", method="m", accuracy=[[0.5]], output=tmp_path)
    assert lab.record(stream="s", method="m", accuracy=[[0.75]], output=tmp_path) == first
    (found,) = lab.find_results([tmp_path])
    assert found.final_accuracy == 0.75


def test_names_that_no_file_system_takes(tmp_path: Path):
    folder = lab.record(stream="a/b", method="pkg.module:Class", accuracy=[[0.5]], output=tmp_path)
    assert folder.parent == tmp_path
    assert folder.name.startswith("a_b-pkg.module_Class-0-")
    assert lab.find_results([tmp_path])[0].method == "pkg.module:Class"


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"accuracy": [[90.0]]}, r"record: accuracy\[0\]\[0\] is 90.0, expected a number from 0 to 1"),
        ({"accuracy": [[float("nan")]]}, r"record: accuracy\[0\]\[0\] is nan, expected a number from 0 to 1"),
        ({"accuracy": 0.9}, "record: accuracy is 0.9, expected a list."),
        ({"seed": -1}, "record: seed is -1, expected a whole number from 0 to 2.14748e"),
        ({"seconds": "long"}, "record: seconds is 'long', expected a number from 0 to"),
        ({"num_parameters": 1.5}, "record: num_parameters is 1.5, expected a whole number"),
        ({"settings": 3}, "record: settings is 3, expected an object."),
        ({"settings": {"lr": float("inf")}}, "record: settings are no JSON values by name"),
        ({"settings": {"seed": 3}}, "record: settings hold 'seed', which is an argument. Leave it out of them."),
        ({"accuracy": []}, r"record: accuracy has rows of \[\]; expected a square, a row and a column a task."),
        ({"accuracy": [[0.1], [0.2, 0.3]]}, r"record: accuracy has rows of \[1, 2\]; expected a square"),
        ({"validation": [[0.1]]}, "record: "),
        ({"baseline": [0.1]}, "forward_transfer: found a baseline of 1 tasks, expected 3, one a task."),
        ({"stream": " "}, "record: stream is ' ', expected a name."),
        ({"method": "../.."}, r"record: method is '../..', expected a name."),
        ({"scenario": "klass"}, "unknown scenario 'klass'. Did you mean 'class'"),
    ],
)
def test_figures_that_do_not_fit_together(tmp_path: Path, told: dict, message: str):
    with pytest.raises(OptionError, match=message):
        lab.record(**{"stream": "s", "method": "m", "accuracy": MATRIX, "output": tmp_path, **told})
    assert not list(tmp_path.iterdir())
    assert issubclass(UnknownNameError, OptionError)


def test_a_folder_of_somebody_elses_is_left_alone(tmp_path: Path):
    folder = lab.record(stream="s", method="m", accuracy=MATRIX, output=tmp_path)
    for path in folder.iterdir():
        path.unlink()
    (folder / "notes.txt").write_text("precious")
    before = listing(tmp_path)
    with pytest.raises(OutputError, match="holds what holdfast did not write"):
        lab.record(stream="s", method="m", accuracy=MATRIX, output=tmp_path)
    assert listing(tmp_path) == before
