"""The report as one page of HTML that needs nothing but itself."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from holdfast.lab.frame import is_missing
from holdfast.lab.plots import seeds_told
from holdfast.lab.report.comparisons import LEVEL, p_text
from holdfast.lab.report.pictures import PICTURES
from holdfast.lab.report.samples import samples
from holdfast.lab.report.sections import INTERVALS, LEGEND, Section
from holdfast.lab.tables import COLUMNS, Estimate, best_label
from holdfast.version import __version__

_WITHOUT = {"metadata", "style"}
"""Elements of a picture that the page has no use for: its policy allows no style but its own."""


def html_page(
    sections: Sequence[Section], *, folder: Path | None = None, beside: Sequence[str] = (), left_out: str = ""
) -> str:
    """The whole page.

    Args:
        sections: what it is about.
        folder: where the pictures of the sections stand as SVG, which become part of the page; None: nowhere.
        beside: names of the files beside the page, to be linked.
        left_out: which runs are not shown, in a sentence.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    templates = Path(__file__).parent / "templates"
    environment = Environment(
        loader=FileSystemLoader(templates),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["minus"] = lambda text: str(text).replace("-", "−")
    script, styles = ((templates / name).read_text(encoding="utf-8") for name in ("page.js", "page.css"))
    return environment.get_template("page.html").render(
        sections=sections,
        pictures=[_pictures(section, folder, number) for number, section in enumerate(sections)],
        names=PICTURES,
        samples=[samples(section.shown) for section in sections],
        script=script,
        styles=styles,
        script_hash=content_hash(script),
        styles_hash=content_hash(styles),
        intervals=INTERVALS,
        legend=LEGEND,
        level=LEVEL,
        num_runs=sum(len(section.runs) for section in sections),
        beside=beside,
        left_out=left_out,
        version=__version__,
        best_label=best_label,
        lead=_lead,
        seeds_told=seeds_told,
        tables_in=_tables,
    )


def content_hash(content: str) -> str:
    """What a Content-Security-Policy names an element by that stands in the page, the text between its tags."""
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"


def inline_svg(text: str, *, prefix: str, label: str) -> str:
    """A picture of matplotlib's as an element of a page.

    Args:
        text: the SVG file.
        prefix: of its ids, by which they differ from those of the page's other pictures.
        label: what is read out in its place.
    """
    root = ElementTree.fromstring(text)
    for element in list(root.iter()):
        for child in [child for child in element if _bare_name(child.tag) in _WITHOUT]:
            element.remove(child)
        element.tag = _bare_name(element.tag)
        attributes = {_bare_name(name): value for name, value in element.attrib.items()}
        element.attrib.clear()
        element.attrib.update({name: _prefixed(name, value, prefix) for name, value in attributes.items()})
    for name in ("version", "id"):
        root.attrib.pop(name, None)
    root.attrib.update({"role": "img", "aria-label": label})
    return ElementTree.tostring(root, encoding="unicode")


def _bare_name(name: str) -> str:
    return name.rpartition("}")[2]


def _prefixed(name: str, value: str, prefix: str) -> str:
    if name == "id":
        return f"{prefix}-{value}"
    return re.sub(r"^#|(?<=url\()#", f"#{prefix}-", value) if name != "style" or "url(" in value else value


def _pictures(section: Section, folder: Path | None, number: int) -> dict[str, str]:
    """Kind of picture -> its element."""
    if folder is None:
        return {}
    files = {kind: folder / f"{section.name}-{kind}.svg" for kind in PICTURES}
    return {
        kind: inline_svg(
            path.read_text(encoding="utf-8"),
            prefix=f"s{number}-{kind}",
            label=f"{PICTURES[kind]}; the figures stand in the tables",
        )
        for kind, path in files.items()
        if path.is_file()
    }


def _lead(section: Section) -> str:
    """The outcome in a sentence."""
    table, num_tasks = section.table[section.table["chosen"]], int(section.runs["num_tasks"].max())
    told = {row["method"]: _percent(row) for row in table.to_dict("records")}
    after = f"After {num_tasks} task{'s' * (num_tasks != 1)}"
    in_turn = table[~table["method"].isin(["joint", "cumulative"])]
    if len(in_turn) < 2:
        return f"{after}: " + "; ".join(f"{r['configuration']} {_percent(r)}" for r in table.to_dict("records")) + "."
    winner = in_turn.loc[in_turn["accuracy"].idxmax()]
    parts = [
        f"{after} {winner['configuration']} keeps {_percent(winner)} on average, the most of those that learn in turn"
    ]
    if "none" in told and winner["method"] != "none":
        parts.append(f"plain training keeps {told['none']}")
    if "joint" in told:
        parts.append(f"joint training, which sees all data at once, reaches {told['joint']}")
    return "; ".join(parts) + "."


def _percent(row: Any) -> str:
    """An accuracy as people read it, on one line."""
    return COLUMNS[0].text(row).replace("-", "−").replace(" ", "\u00a0") + "%"


def _tables(section: Section) -> dict[str, tuple[list[str], list[list[str]]]]:
    """Name -> titles and rows of texts, of which the first is the name of the row."""
    rows, found = section.table.to_dict("records"), section.comparisons
    skills = [column for column in COLUMNS if not column.is_cost]
    costs = [column for column in COLUMNS if column.is_cost]
    pairs = found.to_dict("records")
    both = {(pair["first"], pair["second"]): _signed(pair, 1) for pair in pairs}
    both |= {(pair["second"], pair["first"]): _signed(pair, -1) for pair in pairs}
    labels = list(dict.fromkeys(section.runs.loc[section.runs["chosen"], "configuration"]))
    runs = section.runs.assign(own=section.own).to_dict("records")
    return {
        "figures": (
            ["method", *(column.title for column in skills), "seeds"],
            [[row["configuration"], *(column.text(row) for column in skills), str(row["seeds"])] for row in rows],
        ),
        "cost": (
            ["method", *(column.title for column in costs), "held, in copies of the weights", "seeds"],
            [
                [row["configuration"], *(column.text(row) for column in costs), _copies(row), str(row["seeds"])]
                for row in rows
            ],
        ),
        "differences": (
            ["minus", *labels],
            [[one, *("" if one == other else both.get((one, other), "–") for other in labels)] for one in labels],
        ),
        "pairs": (
            ["first − second", "difference", "p", "corrected", "seeds"],
            [
                [
                    f"{row['first']} − {row['second']}",
                    Estimate(row["difference"], row["half_width"]).text(scale=100),
                    p_text(row["p"]),
                    p_text(row["p_corrected"]),
                    str(row["seeds"]),
                ]
                for row in pairs
            ],
        ),
        "runs": (
            ["method", "seed", "accuracy %", "seconds", "own settings", "versions"],
            [
                [
                    run["method"],
                    str(run["seed"]),
                    f"{100 * run['accuracy']:.1f}",
                    f"{run['seconds']:.1f}",
                    run["own"],
                    run["versions"],
                ]
                for run in runs
            ],
        ),
    }


def _signed(row: Mapping[str, Any], sign: int) -> str:
    """A difference in points, starred where it is clear."""
    shown = f"{100 * sign * row['difference']:+.1f}"
    return shown.replace("+0.0", "0.0").replace("-0.0", "0.0") + "*" * (row["p_corrected"] < LEVEL)


def _copies(row: Mapping[str, Any]) -> str:
    """What a method holds as copies of the weights."""
    held, weights = row["held_bytes"], row["num_parameters"]
    return "–" if is_missing(held) or is_missing(weights) or not weights else f"{held / (4 * weights):.1f}"
