"""A method's name, and what it is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from holdfast.errors import UnknownNameError

MechanismName = Literal["joint", "cumulative", "dgr", "ewc", "wva", "frozen", "none"]
ImportanceName = Literal["fisher", "mas", "si", "signal", "taylor", "kfac", "ones"]


@dataclass(frozen=True)
class Method:
    """One way to learn task after task.

    Attributes:
        name: as it is typed.
        label: as tables and pictures show it, such as "EWC Fisher".
        mechanism: what holds the old tasks; "ewc" and "wva" hold weights, each other name is a module of this folder.
        importance: the estimator that says which weights EWC and WVA hold; else None.
        summary: one line for people.
    """

    name: str
    label: str
    mechanism: MechanismName
    importance: ImportanceName | None
    summary: str

    @property
    def holds_weights(self) -> bool:
        """Whether a keeper holds weights by their importance, which takes a strength or a budget."""
        return self.mechanism in ("ewc", "wva")

    @property
    def keeps_budget(self) -> bool:
        """Whether it can hold the rise of the old loss to a budget: that takes anchors, and each weight's own nats."""
        return self.mechanism == "ewc" and self.importance not in ("si", "kfac", "ones")


_IMPORTANCES: tuple[tuple[ImportanceName, str, str], ...] = (
    ("fisher", "Fisher", "Fisher information"),
    ("mas", "MAS", "memory aware synapses"),
    ("si", "SI", "the path integral of synaptic intelligence"),
    ("signal", "signal", "the total absolute signal through a connection"),
    ("taylor", "Taylor", "the first-order Taylor importance"),
)
_PAST_DATA = (
    Method("joint", "joint", "joint", None, "trains anew on the data of all tasks so far at once (the ceiling)"),
    Method("cumulative", "cumulative", "cumulative", None, "goes on training on the data of all tasks so far"),
)
_EWC = (
    *(
        Method(f"ewc-{name}", f"EWC {label}", "ewc", name, f"pulls weights elastically to their anchors, by {source}")
        for name, label, source in _IMPORTANCES
    ),
    Method("ewc-kfac", "EWC K-FAC", "ewc", "kfac", "pulls layers to their anchors, by Kronecker-factored Fisher"),
)
_WVA = tuple(
    Method(f"wva-{name}", f"WVA {label}", "wva", name, f"makes weights slow, by {source}")
    for name, label, source in _IMPORTANCES
)
_REPLAY = (
    Method("dgr-distilled", "DGR distilled", "dgr", None, "replays a generator's samples, with the old solver's odds"),
    Method("dgr", "DGR", "dgr", None, "replays a generator's samples, with the old solver's answers"),
)
_SIMPLE = (
    Method("l2", "L2", "ewc", "ones", "elastic pull on every weight alike: EWC with all importances one"),
    Method("frozen", "frozen", "frozen", None, "trains the last layer alone after the first task"),
    Method("none", "plain", "none", None, "plain fine-tuning: nothing holds the old tasks (the floor)"),
)

METHODS: dict[str, Method] = {method.name: method for method in (*_PAST_DATA, *_REPLAY, *_EWC, *_WVA, *_SIMPLE)}
"""Every method by name, from the ceiling to the floor: tables and pictures have them in this order."""


def method_named(name: str) -> Method:
    """The method of that name.

    Raises:
        UnknownNameError: there is none; the message offers the nearest.
    """
    if name not in METHODS:
        raise UnknownNameError("method", name, METHODS)
    return METHODS[name]
