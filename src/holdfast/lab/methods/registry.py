"""The registries of methods, and of what a method that holds weights is made of."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.lab.registry import Entry, Registry


@dataclass(frozen=True, kw_only=True)
class MethodEntry(Entry):
    """A way to learn task after task; `make(model, setting, options)` gives its `Learner`.

    Attributes:
        mechanism: that holds weights by their importance, such as "ewc"; empty of methods that hold none.
        importance: by which it holds them; likewise.
        batches: whether it looks at the batches of its tasks, which must then be (inputs, class targets).
        classes_only: whether it can learn classes alone, and no numbers.
        told: whether it must be told which task it is, at test time too.
    """

    mechanism: str = ""
    importance: str = ""
    batches: bool = True
    classes_only: bool = False
    told: bool = False

    @property
    def holds_weights(self) -> bool:
        """Whether a keeper holds weights by their importance."""
        return bool(self.mechanism)


@dataclass(frozen=True, kw_only=True)
class MechanismEntry(Entry):
    """What holds weights by their importance; `make(model, options)` gives its `Keeper`.

    Attributes:
        factored: whether it takes importances of whole layers, as Kronecker factors are, too.
        verb: what it does, in the summaries of its methods.
    """

    factored: bool = False
    verb: str = "holds weights"


@dataclass(frozen=True, kw_only=True)
class ImportanceEntry(Entry):
    """How important weights are; an `Estimator`, or a function `make(model, task, options)` of a `ClosedTask`.

    Attributes:
        factored: whether it is of whole layers.
        on_examples: whether it is measured on examples as a task is closed, and not on the way.
        source: what it is, in the summaries of its methods.
    """

    factored: bool = False
    on_examples: bool = True
    source: str = ""


COLOURS = {
    "fisher": "#0068a8",
    "mas": "#c94f00",
    "si": "#008361",
    "signal": "#b0438f",
    "taylor": "#a67600",
    "kfac": "#5b3fb0",
    "uniform": "#7a5c3a",
    "plain": "#767676",
    "data": "#222222",
    "buffer": "#b3202c",
    "generator": "#b0203a",
    "odds": "#7a1f6b",
    "teacher": "#00788a",
    "average": "#4a5a78",
    "gates": "#5f6b00",
    "isolation": "#9c5a6e",
    "sums": "#8a3d00",
}
"""Of what methods go by. Those of the importances are the hues of Okabe and Ito, which people who see no red or green
can tell apart too, darkened until text in them reads well on white."""

METHODS: Registry[MethodEntry] = Registry("method", MethodEntry)
"""Every method, from the ceiling to the floor: tables and pictures have them in this order."""

MECHANISMS: Registry[MechanismEntry] = Registry("mechanism", MechanismEntry)

IMPORTANCES: Registry[ImportanceEntry] = Registry("importance", ImportanceEntry)

register_method = METHODS.register


def method_named(name: str) -> MethodEntry:
    """The method of that name, or the class that "module:Class" names.

    Raises:
        UnknownNameError: there is none; the message offers the nearest.
    """
    return METHODS.named(name)
