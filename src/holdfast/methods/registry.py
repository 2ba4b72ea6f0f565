"""A method's name, and what it is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from holdfast.errors import UnknownNameError

MechanismName = Literal["none", "joint", "ewc", "wva"]
ImportanceName = Literal["fisher", "mas", "si", "signal", "taylor", "kfac", "ones"]


@dataclass(frozen=True)
class Method:
    """One way to learn task after task.

    Attributes:
        name: as it is typed.
        mechanism: "none" trains plainly, "joint" on all tasks so far at once, "ewc" and "wva" hold weights.
        importance: the estimator that says which weights, or None.
        summary: one line for people.
    """

    name: str
    mechanism: MechanismName
    importance: ImportanceName | None
    summary: str

    @property
    def label(self) -> str:
        """Its name as tables and pictures show it, such as "EWC Fisher"."""
        return _LABELS[self.name]

    @property
    def keeps_budget(self) -> bool:
        """Whether it can hold the rise of the old loss to a budget: that takes anchors, and each weight's own nats."""
        return self.mechanism == "ewc" and self.importance not in ("si", "kfac", "ones")


_PLAIN = (
    Method("none", "none", None, "plain fine-tuning: nothing holds the old tasks (the floor)"),
    Method("joint", "joint", None, "trains on the data of all tasks so far at once (the ceiling)"),
    Method("l2", "ewc", "ones", "elastic pull on every weight alike: EWC with all importances one"),
)
_IMPORTANCES: dict[ImportanceName, str] = {
    "fisher": "Fisher information",
    "mas": "memory aware synapses",
    "si": "the path integral of synaptic intelligence",
    "signal": "the total absolute signal through a connection",
    "taylor": "the first-order Taylor importance",
}
_VERBS: dict[MechanismName, str] = {
    "ewc": "pulls weights elastically to their anchors,",
    "wva": "makes weights slow,",
}
_HELD = tuple(
    Method(f"{mechanism}-{importance}", mechanism, importance, f"{verb} by {source}")
    for mechanism, verb in _VERBS.items()
    for importance, source in _IMPORTANCES.items()
)

_FACTORED = (
    Method(
        "ewc-kfac", "ewc", "kfac", "pulls layers elastically to their anchors, by Kronecker-factored Fisher information"
    ),
)

METHODS: dict[str, Method] = {method.name: method for method in (*_PLAIN, *_HELD, *_FACTORED)}
"""Every method by name."""

_SPELLED = {"fisher": "Fisher", "mas": "MAS", "si": "SI", "signal": "signal", "taylor": "Taylor"}
_LABELS = {"none": "plain", "joint": "joint", "l2": "L2", "ewc-kfac": "EWC K-FAC"} | {
    method.name: f"{method.mechanism.upper()} {_SPELLED[method.importance or '']}" for method in _HELD
}


def method_named(name: str) -> Method:
    """The method of that name.

    Raises:
        UnknownNameError: there is none; the message offers the nearest.
    """
    if name not in METHODS:
        raise UnknownNameError("method", name, METHODS)
    return METHODS[name]
