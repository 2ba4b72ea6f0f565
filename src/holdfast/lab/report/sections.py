"""What a report is made from, whatever it is written as: page, Markdown, pictures or tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.lab.escaping import file_name, one_line
from holdfast.lab.frame import DataFrame, is_missing, settings_in
from holdfast.lab.groups import comparable, differing, labelled, method_label, setting_text
from holdfast.lab.report.comparisons import comparisons
from holdfast.lab.tables import configurations
from holdfast.lab.trials import trials_in

LEGEND = {
    "accuracy": "mean test accuracy over all tasks after the last one.",
    "validation": "the same on validation data, on which settings may be chosen.",
    "forgetting": "mean over earlier tasks of the best accuracy ever minus the last.",
    "backward transfer": "mean over earlier tasks of the last accuracy minus that just after learning the task.",
    "forward transfer": "mean over later tasks of the accuracy just before learning the task minus that of the "
    "untrained network.",
    "learning accuracy": "mean accuracy on each task just after learning it.",
    "training, importance": "seconds in training steps, and in measuring importances.",
    "held": "what a method keeps beside the model and its optimizer once the last task is learned: anchors, "
    "importances, examples; for joint and cumulative training the data of the earlier tasks.",
    "seeds": "how many runs the figures of a row are means of.",
}
"""What the columns of the tables mean."""

INTERVALS = "Accuracies in %: mean ± half the width of the 95% confidence interval over seeds, or a single seed's."

_MOST_IN_PICTURES = 36


@dataclass(frozen=True)
class Section:
    """Runs that can be compared, for they differ in nothing but seed, method and how the method learns.

    Attributes:
        title: stream and scenario, and what tells the section from others of the same.
        runs: as `holdfast.lab.groups.labelled` has them.
        table: their configurations, as `holdfast.lab.tables.configurations` has them.
        comparisons: paired tests between the configurations that pictures show.
        given_up: label of a method -> why the sweep gave its last setting up, of those that it gave up altogether.
    """

    title: str
    runs: DataFrame
    table: DataFrame
    comparisons: DataFrame
    given_up: Mapping[str, str]

    @property
    def name(self) -> str:
        """What its files are called by, whatever the stream is called."""
        return file_name(self.title.replace("-incremental", "").replace(", ", "-").replace(" ", "-"))

    @property
    def shown(self) -> DataFrame:
        """What pictures show: of each method and its settings the strength or budget that validation data chooses."""
        runs = self.runs[self.runs["chosen"]]
        labels = [one_line(label, most=_MOST_IN_PICTURES) for label in runs["configuration"]]
        return runs.assign(configuration=labels, variant=runs["shade"], num_variants=runs["num_shades"])

    @property
    def shared(self) -> list[str]:
        """The settings that all runs share, as people read them, without those that are unset."""
        names, settings = self._settings()
        own = differing(settings)
        return [setting_text(n, settings[0][n]) for n in names if n not in own and not is_missing(settings[0][n])]

    @property
    def own(self) -> list[str]:
        """For each run the settings that not all runs share, in a line."""
        _, settings = self._settings()
        names = differing(settings)
        return [
            ", ".join(setting_text(n, each[n]) for n in names if not is_missing(each[n])) or "none" for each in settings
        ]

    @property
    def keepers(self) -> dict[str, str]:
        """What the keeper of each configuration said at the end of its last seed."""
        last = self.runs[self.runs["keeper"] != ""].drop_duplicates(["method", "variant"], keep="last")
        return dict(zip(last["configuration"], last["keeper"], strict=True))

    def _settings(self) -> tuple[list[str], list[dict[Any, Any]]]:
        names = ["num_tasks", *settings_in(self.runs)]
        return names, self.runs[names].to_dict("records")


def sections_of(runs: DataFrame) -> list[Section]:
    """The sections of a report of runs that `holdfast.lab.results` has."""
    found = []
    for title, part in comparable(runs):
        own = labelled(part)
        table, tested = configurations(own), comparisons(own[own["chosen"]])
        found.append(Section(title, own, table, tested, _given_up(own)))
    return found


def _given_up(runs: DataFrame) -> dict[str, str]:
    """From the findings of sweeps that stand beside the runs."""
    folders = {Path(folder).parent for folder in runs["folder"] if folder is not None}
    records = runs.to_dict("records")
    return {
        method_label(method): one_line(why, most=200)
        for folder in sorted(folders)
        for trials in trials_in(folder)
        if any(map(trials.about, records))
        for method, why in trials.given_up.items()
    }
