from __future__ import annotations

import json
from pathlib import Path

import pytest
from recipes.outcome import Outcome
from recipes.store import (
    committed,
    finished,
    note_divergence,
    read_measured,
    read_outcomes,
    write_outcomes,
)
from tests.recipes.made_up import outcome

from holdfast.errors import FileFormatError, OutputError
from holdfast.lab import configure

ONE = configure("permuted-digits", "ewc-fisher", seed=1, num_tasks=3, hidden=(8, 4))
TWO = configure("split-digits", "none", seed=2, scenario="class", num_tasks=3)


def test_what_is_written_is_read_back(tmp_path: Path):
    outcomes = [outcome(ONE, 0.87654), outcome(TWO, 0.5), Outcome(configure("permuted-digits", "l2"), None, "nan")]
    path = tmp_path / "it" / "results.json"
    write_outcomes(path, {"recipe": "it"}, outcomes, [{"seed": 3, "x": 1}])
    back = read_outcomes(path)
    assert [entry.config for entry in back] == [entry.config for entry in outcomes]
    assert back[2] == outcomes[2]
    for kept, given in zip(back[:2], outcomes[:2]):
        assert kept.result is not None
        assert given.result is not None
        assert kept.result.scenario == given.result.scenario
        assert kept.result.config == given.result.config
        assert kept.result.final_accuracy == pytest.approx(given.result.final_accuracy, abs=1e-4)
        assert kept.result.forgetting == pytest.approx(given.result.forgetting, abs=1e-4)
        assert kept.result.validation_accuracy == pytest.approx(given.result.validation_accuracy, abs=1e-4)
    assert back[0].result is not None
    assert back[0].result.accuracy_matrix[1][0] == 0.8765
    assert read_measured(path) == {3: {"seed": 3, "x": 1}}
    assert committed(tmp_path).keys() == {entry.config for entry in outcomes}


def test_a_run_is_one_line_of_what_was_chosen(tmp_path: Path):
    path = tmp_path / "results.json"
    write_outcomes(path, {}, [outcome(ONE), outcome(TWO)], [])
    lines = [line for line in path.read_text().splitlines() if '"config"' in line]
    assert len(lines) == 2
    assert json.loads(lines[1].rstrip(","))["config"].keys() >= {"stream", "method", "scenario", "num_tasks"}
    assert "clip" not in lines[1]  # its default


def test_run_files_as_runs_write_them_count_too(tmp_path: Path):
    result = outcome(ONE).result
    assert result is not None
    (tmp_path / "it" / "runs").mkdir(parents=True)
    result.save(tmp_path / "it" / "runs" / "any.json")
    assert committed(tmp_path) == {ONE: Outcome(ONE, result)}


def test_folders_hold_results_and_notes_of_divergence(tmp_path: Path):
    result = outcome(ONE).result
    assert result is not None
    for config in (ONE, TWO):
        (tmp_path / config.name).mkdir()
    result.save(tmp_path / ONE.name / "result.json")
    note_divergence(TWO, tmp_path, "the loss is nan")
    missing = configure("permuted-digits", "none")
    assert finished([ONE, TWO, missing], tmp_path) == {
        ONE: Outcome(ONE, result),
        TWO: Outcome(TWO, None, "the loss is nan"),
    }


def test_a_damaged_file_is_named(tmp_path: Path):
    path = tmp_path / "results.json"
    path.write_text('{"runs": [{"seed": 1}]}')
    with pytest.raises(FileFormatError, match=r"is no file of results: it lacks measured. Delete it and reproduce"):
        read_outcomes(path)
    path.write_text('{"runs": [{"seed": 1}], "measured": [{}]}')
    with pytest.raises(FileFormatError, match=r"results.json, run 1 is no result: it lacks config, average_accuracy, "):
        read_outcomes(path)
    with pytest.raises(FileFormatError, match="Delete it and reproduce again"):
        read_measured(path)
    path.unlink()
    assert read_measured(path) == {}


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot write .*results.json.* Choose a folder that can be written"):
        write_outcomes(tmp_path / "file" / "results.json", {}, [], [])
