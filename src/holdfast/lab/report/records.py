"""The figures of a report as tables for other programs: CSV and Parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from holdfast.files import write_bytes
from holdfast.lab.canvas import make_folder
from holdfast.lab.escaping import csv_cell
from holdfast.lab.groups import RunGroup
from holdfast.lab.plots import by_task
from holdfast.lab.report.content import Section
from holdfast.lab.results import RunResult
from holdfast.lab.tables import Estimate, ResultRow

RunRecord = dict[str, Any]

_FIGURES = (
    "accuracy",
    "validation",
    "forgetting",
    "backward_transfer",
    "forward_transfer",
    "learning_accuracy",
    "seconds_training",
    "seconds_importance",
    "held_bytes",
)


def tables_of(sections: Sequence[Section]) -> dict[str, list[RunRecord]]:
    """Every table by name: fractions, seconds and bytes; tasks count from 1; a field without a value is None.

    `configurations`: a row a configuration, means and half widths of 95% intervals over its seeds. `runs`: a row a run,
    with its settings as JSON. `curves`: average accuracy on the tasks so far. `matrices`: accuracy of every run on
    every task after every task. `comparisons`: the paired tests.
    """
    pairs = [(section, group) for section in sections for group in section.groups]
    return {
        "configurations": [_configuration(row) for section in sections for row in section.rows],
        "runs": [_run(group, result) for _, group in pairs for result in group.results],
        "curves": [record for _, group in pairs for record in _curve(group)],
        "matrices": [record for _, group in pairs for result in group.results for record in _matrix(group, result)],
        "comparisons": [record for section in sections for record in _comparisons(section)],
    }


def write_tables(sections: Sequence[Section], folder: Path) -> list[Path]:
    """Write each table that has rows as CSV and Parquet into the folder.

    In a CSV a text that a spreadsheet would take for a formula, such as one that begins with =, +, - or @, is led by an
    apostrophe; Parquet has every text as it is.

    Returns:
        The CSVs and the Parquet files.

    Raises:
        OutputError: the folder cannot be written.
    """
    make_folder(folder)
    paths = []
    for name, records in tables_of(sections).items():
        if records:
            for suffix, content in ((".csv", _csv(records)), (".parquet", _parquet(records))):
                paths.append(folder / f"{name}{suffix}")
                write_bytes(paths[-1], content)
    return paths


def _named(group: RunGroup) -> RunRecord:
    return {"stream": group.stream, "scenario": group.scenario, "method": group.method, "configuration": group.label}


def _configuration(row: ResultRow) -> RunRecord:
    named = {"stream": row.stream, "scenario": row.scenario, "method": row.method, "configuration": row.label}
    figures: RunRecord = {}
    for field in _FIGURES:
        estimate: Estimate | None = getattr(row, field)
        figures[field] = None if estimate is None else float(estimate.mean)
        figures[f"{field}_half_width"] = None if estimate is None else estimate.half_width
    return {**named, "seeds": row.num_seeds, **figures, "num_parameters": row.num_parameters}


def _run(group: RunGroup, result: RunResult) -> RunRecord:
    return {
        **_named(group),
        "seed": result.seed,
        "accuracy": result.final_accuracy,
        "validation": result.validation_accuracy[-1],
        "forgetting": result.forgetting,
        "backward_transfer": result.backward_transfer,
        "forward_transfer": result.forward_transfer,
        "learning_accuracy": result.learning_accuracy,
        "seconds": result.seconds,
        "seconds_training": result.seconds_training,
        "seconds_importance": result.seconds_importance,
        "held_bytes": result.held_bytes,
        "num_parameters": result.num_parameters,
        "settings": json.dumps(result.config),
        "versions": json.dumps(result.versions),
        "keeper": result.keeper,
    }


def _curve(group: RunGroup) -> Iterator[RunRecord]:
    for tasks, values in enumerate(by_task(group), 1):
        estimate = Estimate.of(values)
        yield {
            **_named(group),
            "tasks": tasks,
            "accuracy": estimate.mean,
            "half_width": estimate.half_width,
            "seeds": len(values),
        }


def _matrix(group: RunGroup, result: RunResult) -> Iterator[RunRecord]:
    for t, row in enumerate(result.accuracy_matrix, 1):
        for j, value in enumerate(row, 1):
            yield {**_named(group), "seed": result.seed, "after_task": t, "on_task": j, "accuracy": value}


def _comparisons(section: Section) -> Iterator[RunRecord]:
    for each in section.comparisons:
        yield {
            "stream": section.stream,
            "scenario": section.scenario,
            "first": each.first.label,
            "second": each.second.label,
            "difference": each.difference.mean,
            "half_width": each.difference.half_width,
            "p": each.p,
            "p_corrected": each.corrected,
            "seeds": each.num_seeds,
        }


def _csv(records: Sequence[RunRecord]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: csv_cell(value) for name, value in record.items()} for record in records)
    return text.getvalue().encode()


def _parquet(records: Sequence[RunRecord]) -> bytes:
    import pyarrow
    from pyarrow import parquet

    content = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(list(records)), content)
    return content.getvalue()
