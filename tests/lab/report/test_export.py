from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from pyarrow import parquet
from tests.lab.made_up import result

from holdfast.errors import OutputError
from holdfast.lab.frame import runs_table
from holdfast.lab.report.export import write_tables
from holdfast.lab.report.sections import sections_of

RUNS = [
    *(result(seed=seed, kept=kept, held_bytes=800, num_parameters=100) for seed, kept in enumerate((0.7, 0.8, 0.9))),
    *(result("none", seed=seed, kept=0.1 + 0.1 * seed) for seed in range(2)),
]


@pytest.fixture
def tables(tmp_path: Path) -> dict[str, list[dict]]:
    paths = write_tables(sections_of(runs_table(RUNS)), tmp_path)
    return {path.stem: parquet.read_table(path).to_pylist() for path in paths if path.suffix == ".parquet"}


def test_what_a_table_says(tables: dict[str, list[dict]]):
    ewc, plain = tables["configurations"]
    assert (ewc["configuration"], ewc["seeds"]) == ("EWC Fisher", 3)
    assert ewc["accuracy"] == pytest.approx((0.8 * 2 + 1) / 3)
    assert (ewc["held_bytes"], ewc["num_parameters"]) == (800.0, 100)
    assert (plain["held_bytes"], plain["num_parameters"]) == (None, None)
    assert len(tables["runs"]) == 5
    assert json.loads(tables["runs"][0]["settings"])["lr"] == 0.1
    assert len(tables["curves"]) == 2 * 3
    assert tables["curves"][2]["tasks"] == 3
    assert tables["curves"][2]["accuracy"] == pytest.approx(ewc["accuracy"])
    assert tables["curves"][2]["half_width"] == pytest.approx(ewc["accuracy_half_width"])
    assert {each["section"] for table in tables.values() for each in table} == {"permuted-digits, domain-incremental"}
    assert len(tables["matrices"]) == 5 * 9
    cell = next(each for each in tables["matrices"] if (each["seed"], each["after_task"], each["on_task"]) == (1, 3, 1))
    assert cell["accuracy"] == 0.8
    (pair,) = tables["comparisons"]
    assert pair["seeds"] == 2
    assert pair["difference"] == pytest.approx(0.4)


def test_csv_and_parquet_say_the_same(tmp_path: Path, tables: dict[str, list[dict]]):
    for name, records in tables.items():
        with (tmp_path / f"{name}.csv").open(newline="", encoding="utf-8") as file:
            read = list(csv.DictReader(file))
        assert [{key: "" if value is None else str(value) for key, value in each.items()} for each in records] == read


def test_a_table_without_rows_is_not_written(tmp_path: Path):
    names = {path.stem for path in write_tables(sections_of(runs_table([result()])), tmp_path)}
    assert names == {"configurations", "runs", "curves", "matrices"}


def test_a_folder_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "tables").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*tables"):
        write_tables(sections_of(runs_table([result()])), tmp_path / "tables")
