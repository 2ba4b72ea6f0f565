"""The report as Markdown, for places where a page of HTML is not shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from holdfast.lab.escaping import markdown_text
from holdfast.lab.frame import DataFrame
from holdfast.lab.groups import method_label
from holdfast.lab.report.comparisons import LEVEL, p_text
from holdfast.lab.report.pictures import PICTURES
from holdfast.lab.report.sections import INTERVALS, LEGEND, Section
from holdfast.lab.tables import Estimate, markdown
from holdfast.version import __version__


def markdown_page(sections: Sequence[Section], *, pictures: Iterable[str], left_out: str = "") -> str:
    """The whole page.

    Args:
        sections: what it is about.
        pictures: names of the files beside it that may be shown.
        left_out: which runs are not shown, in a sentence.
    """
    num_runs = sum(len(section.runs) for section in sections)
    legend = "\n".join(f"- **{term}**: {meaning}" for term, meaning in LEGEND.items())
    told = [f"# holdfast: {num_runs} run{'s' * (num_runs != 1)}", left_out, INTERVALS, legend]
    parts = [_section(section, set(pictures)) for section in sections]
    return "\n\n".join(filter(None, [*told, *parts, f"Written by holdfast {__version__}."])) + "\n"


def _section(section: Section, beside: set[str]) -> str:
    named = {f"{section.name}-{kind}.png": told for kind, told in PICTURES.items()}
    given_up = [
        f"{markdown_text(label)} has no result: the sweep gave all its settings up, the last one {markdown_text(why)}."
        for label, why in section.given_up.items()
    ]
    return "\n\n".join(
        [
            f"## {markdown_text(section.title)}",
            markdown(section.table).strip(),
            *given_up,
            *(f"![{told}]({name})" for name, told in named.items() if name in beside),
            *([] if section.comparisons.empty else [_comparisons(section.comparisons)]),
            f"### Settings\n\n{_settings(section)}",
        ]
    )


def _comparisons(found: DataFrame) -> str:
    lines = [
        "### Paired comparisons\n",
        "Difference of the average accuracy after the last task, in points, over the seeds that both have: mean ± half "
        "the width of its 95% interval; p of a paired t-test, and after Holm's correction for all of these.\n",
        "| first | second | first − second | p | corrected | seeds |",
        "|:--|:--|--:|--:|--:|--:|",
    ]
    for each in found.itertuples():
        told = Estimate(each.difference, each.half_width).text(scale=100)
        told = f"**{told}**" if each.p_corrected < LEVEL else told
        p = f"{p_text(each.p)} | {p_text(each.p_corrected)}"
        lines.append(f"| {markdown_text(each.first)} | {markdown_text(each.second)} | {told} | {p} | {each.seeds} |")
    return "\n".join(lines)


def _settings(section: Section) -> str:
    """The settings that all share, and for each configuration those that are its own."""
    runs = section.runs.assign(own=section.own)
    lines = [f"All: {', '.join(map(markdown_text, section.shared)) or 'nothing in common'}."]
    lines += ["", "| method | settings of its own | seeds |", "|:--|:--|:--|"]
    for _, group in runs.groupby(["method", "variant"], sort=False):
        first = group.iloc[0]
        seeds = ", ".join(map(str, group["seed"]))
        lines.append(f"| {markdown_text(method_label(first['method']))} | {markdown_text(first['own'])} | {seeds} |")
    if section.keepers:
        lines += ["", "What the keepers said at the end (of the last seed):", ""]
        lines += [f"- {markdown_text(label)}: {markdown_text(line)}" for label, line in section.keepers.items()]
    versions = sorted(set(runs["versions"]) - {""})
    if versions:
        lines += ["", f"Run with {'; '.join(map(markdown_text, versions))}."]
    return "\n".join(lines)
