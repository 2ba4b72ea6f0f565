"""Runs that may be averaged: those that differ in nothing but their seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from holdfast.lab.config import RunSettings
from holdfast.lab.escaping import one_line
from holdfast.lab.frame import DataFrame, is_missing, runs_table, settings_in
from holdfast.lab.generation import GENERATION_METHODS, GENERATION_STREAMS
from holdfast.lab.generation.config import GenerationSettings
from holdfast.lab.methods import GENERATORS, METHODS
from holdfast.lab.options import names_of
from holdfast.lab.registry import Registry
from holdfast.lab.result import RunResult
from holdfast.lab.streams import STREAMS
from holdfast.lab.training import NETS

MOST_OF_LABEL = 300
"""Letters of a configuration's label."""

_EITHER = ("strength", "budget")

# how a method learns: what it may have chosen for itself, and still be compared with others
_TRAINING = (
    *("optimizer", "lr", "weight_decay", "schedule", "fresh_optimizer", "clip"),
    *("importance_data", "importance_examples"),
)


def group_results(found: Iterable[RunResult]) -> DataFrame:
    """Results as a table of runs that have the labels of their configurations; see `labelled`.

    Raises:
        OptionError: pandas is not installed.
    """
    return labelled(runs_table(found))


def labelled(runs: DataFrame) -> DataFrame:
    """Runs with the configuration that each belongs to: all its settings, whatever the seed.

    Args:
        runs: as `holdfast.lab.results` has them, such that can be compared; see `comparable`.

    Returns:
        The runs from the ceiling to the floor, as `METHODS` has their methods; one method's by the settings in which
        they differ, and then by seed. The order does not depend on who wins, so that tables of different streams can
        be laid side by side. A run that is found twice (the same configuration and seed, as from a copied folder)
        counts once. Columns are added: `configuration`, the method's label and, where runs of the same method differ
        in settings, the settings that differ; `variant`, its number among the method's configurations, of
        `num_variants`; `family`, the label without strength and budget; `shade`, the number of the family among the
        method's, of `num_shades`; `chosen`, whether the configuration has the highest mean validation accuracy of
        its family, among those with the most seeds, so that a lucky seed of a search that was cut short does not win.
    """
    names = settings_in(runs)
    runs = runs.reset_index(drop=True)
    runs = runs.assign(configuration="", variant=0, num_variants=0, family="", shade=0, num_shades=0)
    for method, own in runs.groupby("method"):
        for told, number, count, within in (
            ("configuration", "variant", "num_variants", names),
            ("family", "shade", "num_shades", [name for name in names if name not in _EITHER]),
        ):
            numbers, labels = _told_apart(own, within, first=method_label(str(method)))
            runs.loc[own.index, number] = numbers
            runs.loc[own.index, count] = max(numbers) + 1
            runs.loc[own.index, told] = labels
    runs = runs.drop_duplicates(["method", "variant", "seed"])
    order = [(method_order(method), *rest) for method, *rest in _cells(runs, "method", "variant", "seed")]
    runs = runs.iloc[sorted(range(len(order)), key=order.__getitem__)].reset_index(drop=True)
    by_choice = runs.groupby(["method", "shade", "variant"], sort=False)["validation"].agg(["size", "mean"])
    best = by_choice.sort_values(["size", "mean"], ascending=False, kind="stable").groupby(["method", "shade"]).head(1)
    return runs.assign(chosen=[key in best.index for key in _cells(runs, "method", "shade", "variant")])


def comparable(runs: DataFrame) -> list[tuple[str, DataFrame]]:
    """Runs parted by all that differs but the seed, the method, and how the method learns.

    Returns:
        Of each part a title and its runs, by stream, scenario and the settings in which they differ.
    """
    names = [name for name in settings_in(runs) if not _is_methods_own(runs, name)]
    if {"data", "fingerprint"} <= set(names):  # wherever the data stand, they are these
        names.remove("fingerprint")
        runs = runs.assign(data=[_data_told(*pair) for pair in _cells(runs, "data", "fingerprint")])
    found = []
    for (stream, scenario), own in runs.groupby(["stream", "scenario"]):
        title = f"{one_line(stream)}, {one_line(scenario)}-incremental"
        numbers, titles = _told_apart(own, ["num_tasks", *names], first=title)
        parts = dict(sorted(dict(zip(numbers, titles, strict=True)).items()))
        found += [(told, own[[each == number for each in numbers]]) for number, told in parts.items()]
    return found


def _data_told(data: Any, fingerprint: Any) -> Any:
    """Data that were given, by name and the first digits of their fingerprint."""
    return data if is_missing(fingerprint) else f"{PurePath(str(data)).stem} ({str(fingerprint)[:6]})"


def differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of the settings that are not the same everywhere, in their usual order."""
    names: list[str] = []
    for each in settings:
        place = 0  # what others do not have stands before what comes next in both
        for name in each:
            if name not in names:
                names.insert(place, name)
            place = names.index(name) + 1
    return [name for name in names if len({_sortable(each.get(name)) for each in settings}) > 1]


def setting_text(name: str, value: Any) -> str:
    """A setting as people read it, such as "strength 15" or "hidden 300-150"."""
    return f"{one_line(name.replace('_', ' '))} {value_text(value)}"


def value_text(value: Any) -> str:
    """The value of a setting as people read it."""
    if is_missing(value):
        return "unset"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return one_line("-".join(map(str, value)) if isinstance(value, list | tuple) else str(value))


def settings_told(settings: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Settings as people read them; of strength and budget, one of which every hold has, that which it has."""
    either = [name for name in _EITHER if not is_missing(settings.get(name))]
    return [
        setting_text(name, settings.get(name)) for name in names if not either or name not in _EITHER or name in either
    ]


def method_label(method: str) -> str:
    """The method's label, or the name itself of one that this version does not know."""
    known = METHODS.get(method) or GENERATION_METHODS.get(method)
    return one_line(method if known is None else known.label)


def method_order(method: str) -> tuple[int, str]:
    """Where a method stands: as in `METHODS`, those of generation alone before "dgr", then unknown ones by name."""
    order = list(METHODS)
    order[order.index("dgr") : order.index("dgr")] = [name for name in GENERATION_METHODS if name not in METHODS]
    return (order.index(method) if method in order else len(order), method)


def _is_methods_own(runs: DataFrame, name: str) -> bool:
    """Whether a setting is a method's own: of its options or its training, or one unknown that no other method has."""
    if name in {*_options_of(METHODS, GENERATORS, GENERATION_METHODS), *_TRAINING}:
        return True
    common = {*names_of(RunSettings), *names_of(GenerationSettings)}
    known = {"fingerprint", *common, *_options_of(NETS, STREAMS, GENERATION_STREAMS)}
    return name not in known and runs.loc[runs[name].notna(), "method"].nunique() < 2


def _options_of(*registries: Registry[Any]) -> set[str]:
    return {name for registry in registries for entry in registry.values() for name in names_of(entry.options)}


def _told_apart(runs: DataFrame, names: Sequence[str], *, first: str) -> tuple[list[int], list[str]]:
    """For each run the number of its settings among all that occur, and a label with the settings that differ."""
    settings = runs[list(names)].to_dict("records")
    differ = differing(settings)
    keys = [tuple(_sortable(each[name]) for name in differ) for each in settings]
    places = {key: place for place, key in enumerate(sorted(set(keys)))}
    labels = [one_line(", ".join([first, *settings_told(each, differ)]), most=MOST_OF_LABEL) for each in settings]
    return [places[key] for key in keys], labels


def _cells(runs: DataFrame, *names: str) -> list[tuple[Any, ...]]:
    return list(runs[list(names)].itertuples(index=False, name=None))


def _sortable(value: Any) -> tuple[int, float, str]:
    """What is missing comes first, then numbers, then texts; 15 and 15.0 are the same."""
    if is_missing(value):
        return (0, 0.0, "")
    return (1, float(value), "") if isinstance(value, int | float) else (2, 0.0, str(value))
