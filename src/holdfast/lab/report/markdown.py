"""The report as Markdown, for places where a page of HTML is not shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from holdfast.lab.escaping import markdown_text
from holdfast.lab.groups import RunGroup, differing, method_label, setting_text
from holdfast.lab.report.comparisons import Comparison
from holdfast.lab.report.content import INTERVALS, LEGEND, Section, p_text
from holdfast.lab.tables import markdown
from holdfast.version import __version__


def markdown_page(sections: Sequence[Section], *, pictures: Iterable[str]) -> str:
    """The whole page.

    Args:
        sections: what it is about.
        pictures: names of the files beside it that may be shown.
    """
    beside = set(pictures)
    num_runs = sum(len(group.results) for section in sections for group in section.groups)
    legend = "\n".join(f"- **{term}**: {meaning}" for term, meaning in LEGEND)
    head = f"# holdfast: {num_runs} run{'s' * (num_runs != 1)}\n\n{INTERVALS}\n\n{legend}\n"
    parts = [_section(section, beside) for section in sections]
    return "\n".join([head, *parts, f"Written by holdfast {__version__}.\n"])


def shared_settings(groups: Sequence[RunGroup]) -> list[tuple[str, Any]]:
    """The settings that all groups share, without those that are unset."""
    own = differing([group.settings for group in groups])
    return [(name, value) for name, value in groups[0].settings.items() if name not in own and value is not None]


def own_settings(groups: Sequence[RunGroup]) -> list[str]:
    """For each group the settings that not all groups share, in a line."""
    own = differing([group.settings for group in groups])
    return [
        ", ".join(setting_text(name, group.settings[name]) for name in own if group.settings.get(name) is not None)
        for group in groups
    ]


_PICTURES = {
    "accuracy": "Average accuracy against the number of tasks learned",
    "matrix": "Accuracy on every task after every task",
    "transfer": "Forgetting and transfer",
    "strength": "Average accuracy after the last task against the strength",
    "cost": "Time and memory",
}


def _section(section: Section, beside: set[str]) -> str:
    named = {f"{section.name}-{kind}.png": told for kind, told in _PICTURES.items()}
    shown = [f"![{told}]({name})\n" for name, told in named.items() if name in beside]
    tests = [_comparisons(section.comparisons)] if section.comparisons else []
    return "\n".join(
        [
            f"## {markdown_text(section.title)}\n",
            markdown(section.rows),
            *shown,
            *tests,
            f"### Settings\n\n{_settings(section.groups)}",
        ]
    )


def _comparisons(found: Sequence[Comparison]) -> str:
    lines = [
        "### Paired comparisons\n",
        "Difference of the average accuracy after the last task, in points, over the seeds that both have: mean ± half "
        "the width of its 95% interval; p of a paired t-test, and after Holm's correction for all of these.\n",
        "| first | second | first − second | p | corrected | seeds |",
        "|:--|:--|--:|--:|--:|--:|",
    ]
    for each in found:
        told = each.difference.text(scale=100)
        told = f"**{told}**" if each.is_clear else told
        p = f"{p_text(each.p)} | {p_text(each.corrected)}"
        first, second = markdown_text(each.first.label), markdown_text(each.second.label)
        lines.append(f"| {first} | {second} | {told} | {p} | {each.num_seeds} |")
    return "\n".join(lines) + "\n"


def _settings(groups: Sequence[RunGroup]) -> str:
    """The settings that all share, and for each configuration those that are its own."""
    shared = [markdown_text(setting_text(name, value)) for name, value in shared_settings(groups)]
    lines = [f"All: {', '.join(shared) or 'nothing in common'}."]
    lines += ["", "| method | settings of its own | seeds |", "|:--|:--|:--|"]
    for group, own in zip(groups, own_settings(groups)):
        seeds = ", ".join(map(str, group.seeds))
        lines.append(f"| {markdown_text(method_label(group.method))} | {markdown_text(own) or 'none'} | {seeds} |")
    kept = [(group.label, group.results[-1].keeper) for group in groups if group.results[-1].keeper]
    if kept:
        lines += ["", "What the keepers said at the end (of the last seed):", ""]
        lines += [f"- {markdown_text(label)}: {markdown_text(line)}" for label, line in kept]
    versions = {
        ", ".join(f"{name} {version}" for name, version in sorted(result.versions.items()))
        for group in groups
        for result in group.results
        if result.versions
    }
    if versions:
        lines += ["", f"Run with {'; '.join(map(markdown_text, sorted(versions)))}."]
    return "\n".join(lines) + "\n"
