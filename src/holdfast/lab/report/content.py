"""What a report is made from, whatever it is written as: page, Markdown, pictures or tables."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from holdfast.lab.escaping import file_name
from holdfast.lab.groups import RunGroup, group_results, sections
from holdfast.lab.plots import title_of
from holdfast.lab.report.comparisons import Comparison, comparisons
from holdfast.lab.report.families import Family, families
from holdfast.lab.results import RunResult
from holdfast.lab.tables import ResultRow, result_row

LEGEND = (
    ("accuracy", "mean test accuracy over all tasks after the last one."),
    ("validation", "the same on validation data, on which settings may be chosen."),
    ("forgetting", "mean over earlier tasks of the best accuracy ever minus the last."),
    ("backward transfer", "mean over earlier tasks of the last accuracy minus that just after learning the task."),
    (
        "forward transfer",
        "mean over later tasks of the accuracy just before learning the task minus that of the untrained network.",
    ),
    ("learning accuracy", "mean accuracy on each task just after learning it."),
    ("training, importance", "seconds in training steps, and in measuring importances."),
    (
        "held",
        "what a method keeps beside the model and its optimizer once the last task is learned: anchors, importances, "
        "examples; for joint and cumulative training the data of the earlier tasks.",
    ),
)
"""What the columns of the tables mean."""

INTERVALS = "Accuracies in %: mean ± half the width of the 95% confidence interval over seeds, or a single seed's."


@dataclass(frozen=True)
class Section:
    """What can be compared: the runs of one stream and scenario.

    Attributes:
        stream: name of the stream.
        scenario: "task", "domain" or "class".
        groups: every configuration.
        rows: the figures of each.
        families: the configurations by method and settings other than the strength.
        comparisons: paired tests between the best of every family.
    """

    stream: str
    scenario: str
    groups: tuple[RunGroup, ...]
    rows: tuple[ResultRow, ...]
    families: tuple[Family, ...]
    comparisons: tuple[Comparison, ...]

    @property
    def name(self) -> str:
        """What its files are called by, whatever the stream is called."""
        return file_name(f"{self.stream}-{self.scenario}")

    @property
    def title(self) -> str:
        """What people call it."""
        return title_of(self.groups[0])

    @property
    def shown(self) -> list[RunGroup]:
        """What pictures show: of each family the configuration that validation data chooses."""
        return [family.best for family in self.families]

    @property
    def searched(self) -> list[Family]:
        """The families with several strengths."""
        return [family for family in self.families if len(family.by_strength) > 1]


def sections_of(results: Iterable[RunResult]) -> list[Section]:
    """The sections of a report of these runs."""
    found = []
    for (stream, scenario), groups in sections(group_results(results)).items():
        own = families(groups)
        found.append(
            Section(
                stream=stream,
                scenario=scenario,
                groups=tuple(groups),
                rows=tuple(map(result_row, groups)),
                families=tuple(own),
                comparisons=tuple(comparisons([family.best for family in own])),
            )
        )
    return found


def p_text(p: float) -> str:
    """A p-value as people read it."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"
