"""A method's name, and what it is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from holdfast.choices import check_choices
from holdfast.errors import OptionError, UnknownNameError

MechanismName = Literal[
    "joint", "cumulative", "dgr", "er", "der", "agem", "lwf", "ewc", "wva", "imm", "sfa", "hat", "frozen", "none"
]
ImportanceName = Literal["fisher", "mas", "si", "signal", "taylor", "kfac", "uniform"]


@dataclass(frozen=True)
class Method:
    """One way to learn task after task.

    Attributes:
        name: as it is typed.
        label: as tables and pictures show it, such as "EWC Fisher".
        mechanism: what holds the old tasks; "ewc" and "wva" hold weights, each other name is a module of this folder.
        importance: the estimator that says which weights EWC and WVA hold; else None.
        summary: one line for people.

    Raises:
        UnknownNameError: no such mechanism or importance.
        OptionError: ewc or wva without an importance, or another mechanism with one.
    """

    name: str
    label: str
    mechanism: MechanismName
    importance: ImportanceName | None
    summary: str

    def __post_init__(self) -> None:
        check_choices(self)
        if self.holds_weights == (self.importance is None):
            expected = f"one of {', '.join(get_args(ImportanceName))}" if self.holds_weights else "None"
            raise OptionError(
                f"method {self.name!r}: importance is {self.importance!r} with mechanism {self.mechanism!r}; expected "
                f"{expected}: ewc and wva hold weights by their importance, the others hold none."
            )

    @property
    def holds_weights(self) -> bool:
        """Whether a keeper holds weights by their importance, which takes a strength or a budget."""
        return self.mechanism in ("ewc", "wva")


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
    Method("er", "ER", "er", None, "learns a few kept examples of earlier tasks in every batch"),
    Method("der", "DER++", "der", None, "learns kept examples together with the answers they once had"),
    Method("agem", "A-GEM", "agem", None, "turns every gradient that would raise the loss on kept examples"),
)
_DISTILLED = (Method("lwf", "LwF", "lwf", None, "is taught its old answers on the inputs of the new task"),)
_WHOLE_NETWORKS = (
    Method("imm", "IMM", "imm", None, "merges the networks of all tasks, by mean or by mode"),
    Method("sfa", "SFA", "sfa", None, "averages the weights with those of the task before, again and again"),
    Method("hat", "HAT", "hat", None, "opens other hidden units for every task, whose number it must be told"),
)
_SIMPLE = (
    Method("l2", "L2", "ewc", "uniform", "elastic pull on every weight alike: EWC with a uniform importance"),
    Method("frozen", "frozen", "frozen", None, "trains the last layer alone after the first task"),
    Method("none", "plain", "none", None, "plain fine-tuning: nothing holds the old tasks (the floor)"),
)

_ORDER = (*_PAST_DATA, *_REPLAY, *_DISTILLED, *_EWC, *_WVA, *_WHOLE_NETWORKS, *_SIMPLE)

METHODS: dict[str, Method] = {method.name: method for method in _ORDER}
"""Every method by name, from the ceiling to the floor: tables and pictures have them in this order."""


def method_named(name: str) -> Method:
    """The method of that name.

    Raises:
        UnknownNameError: there is none; the message offers the nearest.
    """
    if name not in METHODS:
        raise UnknownNameError("method", name, METHODS)
    return METHODS[name]
