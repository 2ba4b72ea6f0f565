"""Configurations that differ in nothing but how hard they hold, and which of them validation data chooses."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from holdfast.lab.groups import RunGroup, differing, method_label, setting_text
from holdfast.lab.metrics import confidence_interval

_TUNED = ("strength", "budget")


@dataclass(frozen=True)
class Family:
    """One method under one set of settings, at every strength or budget that was tried.

    Attributes:
        label: the method's label, and what tells it from the method's other families.
        members: by strength.
        best: the member of the highest mean validation accuracy after the last task, among those with the most seeds,
            so that a lucky seed of a search that was cut short does not win. Of several families of a method each
            takes its own shade.
    """

    label: str
    members: tuple[RunGroup, ...]
    best: RunGroup

    @property
    def by_strength(self) -> list[RunGroup]:
        """The members that have a strength, ascending."""
        return sorted((group for group in self.members if strength_of(group) is not None), key=_rank)

    @property
    def has_no_hold(self) -> bool:
        """Whether there is neither a strength nor a budget, as of the ceiling and the floor."""
        return all(self.best.settings.get(name) is None for name in _TUNED)


def families(groups: Sequence[RunGroup]) -> list[Family]:
    """The families of groups of one stream and scenario, in the order of the groups."""
    by_method: dict[str, dict[str, list[RunGroup]]] = defaultdict(lambda: defaultdict(list))
    for group in groups:
        fixed = {name: value for name, value in group.settings.items() if name not in _TUNED}
        by_method[group.method][json.dumps(fixed, sort_keys=True)].append(group)
    found = []
    for method, own in by_method.items():
        names = [name for name in differing([members[0].settings for members in own.values()]) if name not in _TUNED]
        for variant, members in enumerate(own.values()):
            told = [setting_text(name, members[0].settings.get(name)) for name in names]
            best = replace(_chosen(members), variant=variant, num_variants=len(own))
            found.append(Family(", ".join([method_label(method), *told]), tuple(members), best))
    return found


def strength_of(group: RunGroup) -> float | None:
    """The strength of a group's runs; None where they have none."""
    strength = group.settings.get("strength")
    return None if strength is None else float(strength)


def _chosen(members: Sequence[RunGroup]) -> RunGroup:
    most = max(len(group.results) for group in members)
    return max((group for group in members if len(group.results) == most), key=_validation)


def _validation(group: RunGroup) -> float:
    return confidence_interval([result.validation_accuracy[-1] for result in group.results])[0]


def _rank(group: RunGroup) -> float:
    strength = strength_of(group)
    assert strength is not None
    return strength
