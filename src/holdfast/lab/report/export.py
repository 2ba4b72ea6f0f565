"""The figures of a report as tables for other programs: CSV and Parquet."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

from holdfast.files import write_bytes
from holdfast.lab.canvas import make_folder
from holdfast.lab.escaping import csv_cell
from holdfast.lab.frame import FIGURES, DataFrame, is_missing, settings_in, task_accuracies
from holdfast.lab.report.sections import Section
from holdfast.lab.tables import Estimate

_NAMED = ["stream", "scenario", "method", "configuration"]
_RUNS = [*_NAMED, "seed", "num_tasks", *FIGURES, "purpose", "versions", "keeper", "folder"]
_CELLS = [*_NAMED, "seed", "after_task", "on_task", "task_accuracy"]


def tables_of(sections: Sequence[Section]) -> dict[str, DataFrame]:
    """Every table by name: fractions, seconds and bytes; tasks count from 1.

    `configurations`: a row a configuration, means and half widths of 95% intervals over its seeds. `runs`: a row a run,
    with its settings as JSON. `curves`: average accuracy on the tasks so far. `matrices`: accuracy of every run on
    every task after every task. `comparisons`: the paired tests. A table that has no rows is left out.
    """
    import pandas as pd

    found: dict[str, list[DataFrame]] = {}
    for section in sections:
        runs = section.runs
        tables = {
            "configurations": section.table.drop(columns="family"),
            "runs": runs[_RUNS].assign(settings=_settings(runs)),
            "curves": _curves(runs),
            "matrices": task_accuracies(runs)[_CELLS].rename(columns={"task_accuracy": "accuracy"}),
            "comparisons": section.comparisons,
        }
        for name, table in tables.items():
            if len(table):
                table.insert(0, "section", section.title)
                found.setdefault(name, []).append(table)
    return {name: pd.concat(parts, ignore_index=True) for name, parts in found.items()}


def write_tables(sections: Sequence[Section], folder: Path) -> list[Path]:
    """Write each table as CSV and Parquet into the folder.

    In a CSV a text that a spreadsheet would take for a formula, such as one that begins with =, +, - or @, is led by an
    apostrophe; Parquet has every text as it is.

    Returns:
        The CSVs and the Parquet files.

    Raises:
        OutputError: the folder cannot be written.
    """
    make_folder(folder)
    paths = []
    for name, table in tables_of(sections).items():
        parquet = io.BytesIO()
        table.to_parquet(parquet, engine="pyarrow", index=False)
        csv = table.map(csv_cell).to_csv(index=False, lineterminator="\n").encode()
        for suffix, content in ((".csv", csv), (".parquet", parquet.getvalue())):
            paths.append(folder / f"{name}{suffix}")
            write_bytes(paths[-1], content)
    return paths


def _settings(runs: DataFrame) -> list[str]:
    return [
        json.dumps({name: value for name, value in row.items() if not is_missing(value)})
        for row in runs[settings_in(runs)].to_dict("records")
    ]


def _curves(runs: DataFrame) -> DataFrame:
    import pandas as pd

    long = runs[[*_NAMED, "average_accuracy"]].explode("average_accuracy")
    long = long.assign(tasks=long.groupby(level=0).cumcount() + 1)
    curves = long.groupby([*_NAMED, "tasks"], sort=False)["average_accuracy"].agg(list)
    rows = [(Estimate.of(values).mean, Estimate.of(values).half_width, len(values)) for values in curves]
    return pd.DataFrame(rows, index=curves.index, columns=["accuracy", "half_width", "seeds"]).reset_index()
