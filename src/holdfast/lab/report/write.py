"""From folders of runs to a folder that tells what they found."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from holdfast.errors import OptionError
from holdfast.files import check_output, new_folder, write_text
from holdfast.lab.canvas import check_matplotlib
from holdfast.lab.metrics import check_scipy
from holdfast.lab.report.content import sections_of
from holdfast.lab.report.markdown import markdown_page
from holdfast.lab.report.page import html_page
from holdfast.lab.report.pictures import write_pictures
from holdfast.lab.report.records import write_tables
from holdfast.lab.results import RunResult, find_runs
from holdfast.lab.tables import ResultRow

PAGE, MARKDOWN = "report.html", "report.md"


@dataclass(frozen=True)
class WrittenReport:
    """What a report is made of.

    Attributes:
        path: of the page, which needs none of the other files.
        markdown: of the same in Markdown, with the PNGs beside it.
        pictures: the PNGs and SVGs beside it.
        tables: the CSVs and Parquet files, in the folder `tables`.
        rows: the figures, one row a configuration.
        num_runs: how many runs they are of.
    """

    path: Path
    markdown: Path
    pictures: tuple[Path, ...]
    tables: tuple[Path, ...]
    rows: list[ResultRow]
    num_runs: int


def report(folders: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str]) -> WrittenReport:
    """Read every finished run at or below `folders`, and write the report of them into the folder `output`.

    Runs are averaged over seeds only where every setting is the same. Where runs of one method differ in settings, each
    configuration has its own row, labelled with the settings that differ; pictures show of each method the strength
    that is best on validation data.

    The folder holds the report alone, and what others put into it: an earlier report in it is replaced whole.

    Raises:
        FileFormatError: a folder is missing, holds no finished run, or a damaged one.
        OptionError: a package that reports need is not installed.
        OutputError: `output` may not be written, see `holdfast.files.check_output`, or the runs are in it.
    """
    check_packages()
    check_output(output, reading=folders, names=(PAGE, MARKDOWN))
    runs = find_runs(folders)
    return write_report([result for _, result in runs], output, places={id(result): path for path, result in runs})


def write_report(
    results: Iterable[RunResult], output: str | os.PathLike[str], *, places: Mapping[int, Path] | None = None
) -> WrittenReport:
    """The report of these runs; see `report`.

    Args:
        results: of the runs.
        output: folder of the report.
        places: `id` of a result -> its file, beside which a run may have drawn samples.
    """
    check_packages()
    target, sections = Path(output), sections_of(results)
    with new_folder(target) as fresh:
        pictures = [path.relative_to(fresh) for section in sections for path in write_pictures(section, fresh)]
        tables = [path.relative_to(fresh) for path in write_tables(sections, fresh / "tables")]
        names = [path.as_posix() for path in (*pictures, *tables)]
        write_text(fresh / MARKDOWN, markdown_page(sections, pictures=names))
        write_text(fresh / PAGE, html_page(sections, places=places or {}, pictures=names))
    rows = [row for section in sections for row in section.rows]
    return WrittenReport(
        path=target / PAGE,
        markdown=target / MARKDOWN,
        pictures=tuple(target / path for path in pictures),
        tables=tuple(target / path for path in tables),
        rows=rows,
        num_runs=sum(row.num_seeds for row in rows),
    )


def check_packages() -> None:
    """Make sure that a report can be written, before anything is read.

    Raises:
        OptionError: a package is not installed.
    """
    check_matplotlib()
    check_scipy()
    missing = [name for name in ("jinja2", "pyarrow") if _is_missing(name)]
    if missing:
        raise OptionError(
            f"reports are written with jinja2 and pyarrow; not installed: {', '.join(missing)}. "
            'Install what is missing with: pip install "torch-holdfast[report]"'
        )


def _is_missing(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is None
    except ValueError:  # sys.modules holds None in its place
        return True
