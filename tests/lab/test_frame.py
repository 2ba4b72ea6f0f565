from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.lab.made_up import result

import holdfast.lab
from holdfast.errors import FileFormatError, OptionError
from holdfast.lab import results, task_accuracies
from holdfast.lab.folder import note_purpose
from holdfast.lab.frame import ARRAYS, FIGURES, is_missing, runs_table, settings_in
from holdfast.lab.result import RunResult
from holdfast.lab.sweep import Space
from holdfast.lab.sweep.findings import Finding, write_findings
from holdfast.lab.sweep.space import SweepChoice


def save(folder: Path, *found: RunResult, **written: Any) -> Path:
    for number, each in enumerate(found):
        (folder / f"run-{number}").mkdir(parents=True)
        each.save(folder / f"run-{number}" / "result.json")
        (folder / f"run-{number}" / "config.json").write_text(json.dumps({"config": each.config, **written}))
    return folder


def test_a_row_a_run(tmp_path: Path):
    save(tmp_path, result("none", seed=1), result(strength=2.0, seed=3, held_bytes=80), result(seed=0))
    table = results(tmp_path)
    assert list(zip(table["method"], table["seed"])) == [("ewc-fisher", 0), ("ewc-fisher", 3), ("none", 1)]
    assert settings_in(table) == ["lr", "strength"]
    assert list(table["strength"].isna()) == [True, False, True]
    assert list(table.columns[:5]) == ["stream", "scenario", "method", "seed", "num_tasks"]
    assert table.loc[0, "accuracy"] == pytest.approx((2 * 0.9 + 1) / 3)
    assert table.loc[0, "validation"] == pytest.approx(table.loc[0, "accuracy"] - 0.05)
    assert table.loc[1, "held_bytes"] == 80
    assert table["held_bytes"].dtype == "Int64"
    assert table.loc[0, "folder"] == str(tmp_path / "run-2")
    assert table.loc[0, "versions"] == "holdfast 0.1.0, python 3.11.7, torch 2.13.0"
    assert {*FIGURES, *ARRAYS} <= set(table.columns)
    assert np.stack(table["accuracy_matrix"]).shape == (3, 3, 3)
    assert table.groupby("method")["accuracy"].mean().to_dict() == pytest.approx(
        {"ewc-fisher": 2.8 / 3, "none": 2.8 / 3}
    )


def test_several_folders_and_a_file(tmp_path: Path):
    first, second = save(tmp_path / "a", result(seed=0)), save(tmp_path / "b", result(seed=1), result(seed=2))
    assert len(results([first, second])) == 3
    assert len(results([str(first), second / "run-1" / "result.json"])) == 2
    assert list(results(second / "run-1" / "result.json")["seed"]) == [2]


def test_settings_are_flat_and_never_hide_a_figure():
    table = runs_table([result(hidden=[300, 150], slow={"gamma": 0.5, "deep": {"er": 1}}, forgetting_rate=1)])
    assert table.loc[0, ["hidden", "slow.gamma", "slow.deep.er"]].to_list() == [(300, 150), 0.5, 1]
    config = {"stream": "permuted-digits", "method": "ewc-fisher", "seed": 0, "accuracy": "high", "plots": [{"a": 1}]}
    table = runs_table([RunResult(**{**vars(result()), "config": config})])
    assert table.loc[0, "setting_accuracy"] == "high"
    assert table.loc[0, "accuracy"] > 0.9
    assert table.loc[0, "plots"] == ('{"a": 1}',)


def test_numbers_stay_numbers_though_some_are_missing():
    table = runs_table(
        [result(epochs=4, buffer="balanced", mas_batched=True), result("none"), result("l2", epochs=10**30)]
    )
    assert table["epochs"].dtype == float
    table = runs_table([result(epochs=4, mas_batched=True, mask=None), result("none", strength=2)])
    assert table["epochs"].dtype == "Int64"
    assert [is_missing(value) for value in table["epochs"]] == [False, True]
    assert list(table["mas_batched"]) == [True, None]
    assert table["mask"].isna().all()


def test_runs_that_learned_to_draw():
    drawn = {"frechet_distance": [3.0, 2.0, 1.0], "reverse_accuracy": 0.5, "judge_accuracy": 0.9}
    table = runs_table([result(generation=drawn), result("none")])
    assert table.loc[0, ["frechet_distance", "reverse_accuracy", "judge_accuracy"]].to_list() == [1.0, 0.5, 0.9]
    assert "frechet_distance" not in runs_table([result()])


def test_accuracies_in_long_form():
    table = task_accuracies(runs_table([result(seed=1, kept=0.8), result("none", num_tasks=2, kept=0.3)]))
    assert len(table) == 9 + 4
    cell = table[(table["method"] == "ewc-fisher") & (table["after_task"] == 3) & (table["on_task"] == 1)]
    assert cell["task_accuracy"].to_list() == [0.8]
    assert cell["seed"].to_list() == [1]
    assert not set(ARRAYS) & set(table.columns)
    assert len(task_accuracies(runs_table([]))) == 0


def test_what_a_run_was_done_for(tmp_path: Path):
    save(tmp_path, result(seed=0), result(seed=1))
    note_purpose(tmp_path / "run-1", "quick")
    assert list(results(tmp_path)["purpose"]) == ["", "quick"]
    assert json.loads((tmp_path / "run-1" / "config.json").read_text())["config"]["lr"] == 0.1


def test_trials_of_a_sweep_that_were_not_chosen(tmp_path: Path):
    lr = {"optimizer": "sgd", "lr": 0.1}
    runs = [result(seed=seed, strength=strength, **lr) for strength in (1.0, 10.0) for seed in (0, 1, 2)]
    save(tmp_path / "runs", *runs, result("none", seed=0, strength=None, **lr), result("l2", strength=1.0, **lr))
    space = Space(stream="permuted-digits", methods=("ewc-fisher", "none"), seeds=(0, 1), settings={"num_tasks": 3})
    found = [
        Finding("ewc-fisher", SweepChoice("sgd", 0.1, 1.0), validation=(0.9, 0.9), test=(0.9, 0.9)),
        Finding("ewc-fisher", SweepChoice("sgd", 0.1, 10.0), validation=(0.8, 0.8), test=(0.9, 0.9)),
        Finding("none", SweepChoice("sgd", 0.1), state="pruned", why="after task 1"),
    ]
    write_findings(found, space=space, output=tmp_path / "runs")
    table = results(tmp_path)
    trials = table[table["purpose"] == "trial"]
    assert list(zip(trials["method"], trials["strength"].fillna(0), trials["seed"])) == [
        ("ewc-fisher", 10.0, 0),
        ("ewc-fisher", 10.0, 1),
        ("none", 0.0, 0),
    ]
    (tmp_path / "runs" / "sweep-permuted-digits.json").write_text('{"mine": 1}')
    assert (results(tmp_path)["purpose"] == "").all()


def test_damaged_files_are_told(tmp_path: Path):
    save(tmp_path, result())
    keys = ("stream", "seeds", "settings", "best", "all")
    (tmp_path / "sweep-x.json").write_text(json.dumps(dict.fromkeys(keys, 1)))
    with pytest.raises(FileFormatError, match=r"sweep-x.json holds no findings of a sweep: stream .*Delete it"):
        results(tmp_path)
    (tmp_path / "sweep-x.json").unlink()
    (tmp_path / "run-0" / "config.json").write_text("{")
    with pytest.raises(FileFormatError, match=r"config\.json"):
        results(tmp_path)
    (tmp_path / "run-0" / "config.json").unlink()
    assert len(results(tmp_path)) == 1


def test_no_pandas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(OptionError, match=r'not installed. Install it with: pip install "torch-holdfast\[report\]"'):
        results(tmp_path)


def test_it_is_public():
    assert {"results", "task_accuracies"} <= set(holdfast.lab.__all__)
