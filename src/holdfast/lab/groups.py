"""Runs that may be averaged: those that differ in nothing but their seed."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from holdfast.lab.escaping import one_line
from holdfast.lab.generation import GENERATION_METHODS
from holdfast.lab.methods import METHODS
from holdfast.lab.results import RunResult

MOST_OF_LABEL = 300
"""Letters of a configuration's label."""

_EITHER = ("strength", "budget")

_IDENTITY = ("stream", "method", "seed", "scenario")

_ORDER = list(METHODS)
_ORDER[_ORDER.index("dgr") : _ORDER.index("dgr")] = [name for name in GENERATION_METHODS if name not in METHODS]


@dataclass(frozen=True)
class RunGroup:
    """Runs of one configuration under different seeds.

    Attributes:
        stream: name of the stream.
        scenario: "task", "domain" or "class".
        method: name of the method.
        label: the method's label and, where runs of the same method differ in settings, the settings that differ.
        variant: its number among the configurations of the same method, from 0.
        num_variants: how many those are.
        settings: all settings but stream, scenario, method and seed.
        results: one a seed, by seed.
    """

    stream: str
    scenario: str
    method: str
    label: str
    variant: int
    num_variants: int
    settings: dict[str, Any]
    results: tuple[RunResult, ...]

    @property
    def num_tasks(self) -> int:
        """How many tasks each run learned."""
        return len(self.results[0].average_accuracy)

    @property
    def seeds(self) -> list[int]:
        """The seeds, ascending."""
        return [result.seed for result in self.results]


def group_results(results: Iterable[RunResult]) -> list[RunGroup]:
    """Group runs by configuration without seed.

    Sorted by stream and scenario, and there from the ceiling to the floor, as `METHODS` has them; one method's
    configurations by the settings in which they differ. The order does not depend on who wins,
    so that tables of different streams can be laid side by side. A run that is found twice (the same configuration and
    seed, as from a copied folder) counts once.
    """
    by_configuration: dict[str, dict[int, RunResult]] = defaultdict(dict)
    for result in results:
        settings = {name: _comparable(value) for name, value in settings_of(result).items()}
        key = json.dumps([result.stream, result.scenario, result.method, settings], sort_keys=True)
        by_configuration[key].setdefault(result.seed, result)
    by_method: dict[tuple[str, str, str], list[list[RunResult]]] = defaultdict(list)
    for found in by_configuration.values():
        runs = [found[seed] for seed in sorted(found)]
        by_method[runs[0].stream, runs[0].scenario, runs[0].method].append(runs)
    ordered = sorted(by_method, key=lambda key: (key[0], key[1], method_order(key[2])))
    return [group for key in ordered for group in _variants(by_method[key])]


def sections(groups: Sequence[RunGroup]) -> dict[tuple[str, str], list[RunGroup]]:
    """The groups of each (stream, scenario), which alone can be compared."""
    found: dict[tuple[str, str], list[RunGroup]] = defaultdict(list)
    for group in groups:
        found[group.stream, group.scenario].append(group)
    return dict(found)


def settings_of(result: RunResult) -> dict[str, Any]:
    """All settings but stream, scenario, method and seed, and the number of tasks even where the stream decided it."""
    rest = {name: value for name, value in result.config.items() if name not in _IDENTITY}
    return rest | {"num_tasks": len(result.average_accuracy)}


def differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of the settings that are not the same everywhere, in their usual order."""
    names: list[str] = []
    for each in settings:
        place = 0  # what others do not have stands before what comes next in both
        for name in each:
            if name not in names:
                names.insert(place, name)
            place = names.index(name) + 1
    return [name for name in names if any(each.get(name) != settings[0].get(name) for each in settings)]


def setting_text(name: str, value: Any) -> str:
    """A setting as people read it, such as "strength 15" or "hidden 300-150"."""
    if isinstance(value, bool) or value is None:
        shown = {True: "yes", False: "no", None: "unset"}[value]
    elif isinstance(value, int | float):
        shown = f"{value:g}" if isinstance(value, float) else str(value)
    elif isinstance(value, list | tuple):
        shown = "-".join(map(str, value))
    else:
        shown = str(value)
    return f"{one_line(name.replace('_', ' '))} {one_line(shown)}"


def settings_told(settings: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Settings as people read them; of strength and budget, one of which every hold has, that which it has."""
    either = [name for name in _EITHER if settings.get(name) is not None]
    return [
        setting_text(name, settings.get(name)) for name in names if not either or name not in _EITHER or name in either
    ]


def method_label(method: str) -> str:
    """The method's label, or the name itself of one that this version does not know."""
    known = METHODS.get(method) or GENERATION_METHODS.get(method)
    return one_line(method) if known is None else known.label


def method_order(method: str) -> tuple[int, str]:
    """Where a method stands: as in `METHODS`, those of generation alone before "dgr", then unknown ones by name."""
    return (_ORDER.index(method) if method in _ORDER else len(_ORDER), method)


def _variants(configurations: Sequence[Sequence[RunResult]]) -> list[RunGroup]:
    settings = [settings_of(runs[0]) for runs in configurations]
    names = differing(settings)
    order = sorted(range(len(settings)), key=lambda i: [_sortable(settings[i].get(name)) for name in names])
    groups = []
    for variant, i in enumerate(order):
        first = configurations[i][0]
        told = settings_told(settings[i], names)
        groups.append(
            RunGroup(
                stream=first.stream,
                scenario=first.scenario,
                method=first.method,
                label=one_line(", ".join([method_label(first.method), *told]), most=MOST_OF_LABEL),
                variant=variant,
                num_variants=len(order),
                settings=settings[i],
                results=tuple(configurations[i]),
            )
        )
    return groups


def _comparable(value: Any) -> Any:
    """15 and 15.0 are the same strength."""
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _sortable(value: Any) -> tuple[int, float, str]:
    if isinstance(value, int | float):
        return (1, float(value), "")
    return (0, 0.0, "") if value is None else (2, 0.0, str(value))
