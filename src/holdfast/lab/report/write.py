"""From folders of runs to a folder that tells what they found."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from holdfast.errors import OptionError, UnknownNameError
from holdfast.files import check_output, new_folder, write_text
from holdfast.lab.canvas import check_matplotlib
from holdfast.lab.frame import ARRAYS, DataFrame, results
from holdfast.lab.groups import value_text
from holdfast.lab.packages import check_installed
from holdfast.lab.report.export import write_tables
from holdfast.lab.report.markdown import markdown_page
from holdfast.lab.report.page import html_page
from holdfast.lab.report.pictures import write_pictures
from holdfast.lab.report.sections import Section, sections_of
from holdfast.lab.result import Folders, paths_of

PAGE, MARKDOWN = "report.html", "report.md"


@dataclass(frozen=True)
class WrittenReport:
    """What a report is made of.

    Attributes:
        path: of the page, which needs none of the other files.
        markdown: of the same in Markdown, with the PNGs beside it.
        pictures: the PNGs and SVGs beside it.
        tables: the CSVs and Parquet files, in the folder `tables`.
        sections: what it tells, a section for all that can be compared.
        left_out: which runs it does not tell of, in a sentence; empty where it tells of all.
    """

    path: Path
    markdown: Path
    pictures: tuple[Path, ...]
    tables: tuple[Path, ...]
    sections: list[Section]
    left_out: str = ""

    @property
    def num_runs(self) -> int:
        """How many runs it tells of."""
        return sum(len(section.runs) for section in self.sections)


def report(
    folders: Folders,
    output: str | os.PathLike[str] | None = None,
    *,
    where: Sequence[str] = (),
    quick: bool = False,
    trials: bool = False,
) -> WrittenReport:
    """Read the finished runs at or below `folders`, and write the report of them into the folder `output`.

    Runs are averaged over seeds only where every setting is the same, and stand in one section only where they differ
    in nothing but seed, method and how the method learns. Where runs of one method differ in settings, each
    configuration has its own row, labelled with the settings that differ; pictures show of each method the strength
    that is best on validation data.

    The folder holds the report alone, and what others put into it: an earlier report in it is replaced whole.

    Args:
        folders: searched for `result.json`; a file is taken as a result itself.
        output: folder of the report; None: `report` in the first of the folders, or beside the first file.
        where: conditions such as "method=ewc-*", a column of `holdfast.lab.results` and a pattern that the text of its
            value has to match; of several conditions on one column one is enough.
        quick: whether runs of a recipe's small version are shown.
        trials: whether the runs of a sweep are shown whose settings it did not choose.

    Raises:
        FileFormatError: a folder is missing, holds no finished run, or a damaged one.
        OptionError: no folder is given, a package that reports need is not installed, a condition has no sense, or no
            run is left.
        OutputError: `output` may not be written, see `holdfast.files.check_output`, or the runs are in it.
    """
    check_packages()
    given = paths_of(folders)
    target = default_output(given) if output is None else Path(output)
    check_output(target, reading=given, names=(PAGE, MARKDOWN))
    runs = filtered(results(given), where)
    shown = runs[runs["purpose"].isin(["", *["quick"] * quick, *["trial"] * trials])]
    left_out = _left_out(runs[~runs.index.isin(shown.index)])
    if shown.empty:
        raise OptionError(f"no run is left to report. {left_out or 'No run matches what --where asks for.'}")
    return write_report(shown, target, left_out=left_out)


def write_report(runs: DataFrame, output: str | os.PathLike[str], *, left_out: str = "") -> WrittenReport:
    """The report of these runs, as `holdfast.lab.results` has them; see `report`."""
    check_packages()
    target, sections = Path(output), sections_of(runs)
    with new_folder(target) as fresh:
        pictures = [path.relative_to(fresh) for section in sections for path in write_pictures(section, fresh)]
        tables = [path.relative_to(fresh) for path in write_tables(sections, fresh / "tables")]
        names = [path.as_posix() for path in (*pictures, *tables)]
        write_text(fresh / MARKDOWN, markdown_page(sections, pictures=names, left_out=left_out))
        write_text(fresh / PAGE, html_page(sections, folder=fresh, beside=names, left_out=left_out))
    return WrittenReport(
        path=target / PAGE,
        markdown=target / MARKDOWN,
        pictures=tuple(target / path for path in pictures),
        tables=tuple(target / path for path in tables),
        sections=sections,
        left_out=left_out,
    )


def default_output(folders: Sequence[str | os.PathLike[str]]) -> Path:
    """Where the report of these folders is written unless another place is given: beside the runs of the first."""
    first = Path(folders[0])
    return (first.parent if first.is_file() else first) / "report"


def filtered(runs: DataFrame, where: Sequence[str]) -> DataFrame:
    """The runs that satisfy conditions such as "method=ewc-*"; see `report`.

    Raises:
        OptionError: a condition has no "=".
        UnknownNameError: no run has such a column; the message offers the nearest.
    """
    patterns: dict[str, list[str]] = {}
    for condition in where:
        name, equals, pattern = condition.partition("=")
        if not equals:
            raise OptionError(f"--where {condition!r}; expected NAME=PATTERN, such as method=ewc-*.")
        if name not in runs or name in ARRAYS:
            raise UnknownNameError("column", name, [each for each in runs.columns if each not in ARRAYS])
        patterns.setdefault(name, []).append(pattern)
    for name, wanted in patterns.items():
        texts = runs[name].map(value_text)
        runs = runs[[any(fnmatchcase(text, pattern) for pattern in wanted) for text in texts]]
    return runs


def _left_out(runs: DataFrame) -> str:
    """Which runs are not shown, and how they are."""
    told = {"quick": "of a recipe's --quick version (shown with --quick)", "trial": "of a sweep (shown with --trials)"}
    counts = [(purpose, int((runs["purpose"] == purpose).sum())) for purpose in told]
    parts = [f"{count} run{'s' * (count != 1)} {told[purpose]}" for purpose, count in counts if count]
    return f"Left out: {' and '.join(parts)}." if parts else ""


def check_packages() -> None:
    """Make sure that a report can be written, before anything is read.

    Raises:
        OptionError: a package is not installed.
    """
    check_matplotlib()
    check_installed("jinja2", "pyarrow", what="reports are written", extra="report")
