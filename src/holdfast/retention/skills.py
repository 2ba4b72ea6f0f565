"""What a budget holds: the rise of every skill within the lesson, measured on its probes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from torch import Tensor, nn

from holdfast.errors import FileFormatError, OptionError
from holdfast.probes import Probes
from holdfast.probes.files import probes_from_state, probes_to_state
from holdfast.replicas import Replicas
from holdfast.retention.controller import LOWEST, Controller, steps_since
from holdfast.retention.mechanism import as_budget, check_option

_STALE = 1e-3
"""Nats per target between the answers of new probes and those of the model, above which they are of another model."""


@dataclass
class Skill:
    """An old task that is measured.

    Attributes:
        probes: of it.
        budget: what its rise may grow by in each lesson, in nats per target; None for none.
        own_budget: the one that it was retained with; None where the keeper's holds.
        begun: its rise when the lesson began, against its answers when it was closed.
        rise: its rise when it was last measured.
    """

    probes: Probes
    budget: float | None = None
    own_budget: float | None = None
    begun: float = 0.0
    rise: float = 0.0

    @property
    def increment(self) -> float:
        """What the rise has grown by in this lesson, in nats per target."""
        return self.rise - self.begun

    @property
    def ratio(self) -> float:
        """The increment over the budget; 0 without a budget."""
        return 0.0 if self.budget is None else self.increment / self.budget


class Skills:
    """The skills with probes, and the strength that keeps their budgets.

    Each lesson may raise what is lost of a skill by its budget: rise now - rise when the lesson began <= budget. One
    strength follows the skill that is worst off.

    Args:
        model: which is measured.
        where: the mechanism, for messages.
        every: steps from one measurement to the next, or "auto" (`holdfast.retention.controller.steps_since`).
        replicas: the processes whose mean a rise is.

    Attributes:
        all: in the order in which they were retained.
        controller: of the strength.
        num_steps: of this lesson.
        is_closed: whether the lesson was ended.
    """

    def __init__(self, model: nn.Module, *, where: str, every: int | Literal["auto"], replicas: Replicas) -> None:
        self.all: list[Skill] = []
        self.controller = Controller()
        self.num_steps, self.is_closed = 0, False
        self._model, self._where, self._replicas = model, where, replicas
        self._every: int | Literal["auto"] = every

    @property
    def are_bounded(self) -> bool:
        """Whether a skill has a budget."""
        return any(skill.budget is not None for skill in self.all)

    def bound(self, budget: float | None) -> None:
        """Hold every skill to its own budget, and those without to this one, the keeper's; to none under a strength."""
        for skill in self.all:
            skill.budget = budget if budget is None or skill.own_budget is None else skill.own_budget

    @property
    def worst(self) -> float:
        """The largest increment over its budget, when last measured."""
        return max((skill.ratio for skill in self.all), default=0.0)

    def rises(self) -> list[float]:
        """Measure every skill."""
        found = self._replicas.agreed([skill.probes.rise(self._model) for skill in self.all])
        for skill, rise in zip(self.all, found, strict=True):
            skill.rise = rise
        return found

    def join(self) -> None:
        """Go on alike, in processes each of which has measured for itself so far; all of them must call this."""
        for skill in self.all:
            skill.begun, skill.rise = self._replicas.agreed([skill.begun, skill.rise])
        (self.controller.strength,) = self._replicas.agreed([self.controller.strength])

    def increments(self) -> list[float]:
        """Measure every skill; what each has lost in this lesson."""
        self.rises()
        return [skill.increment for skill in self.all]

    def measure(self) -> float:
        """Measure every skill; the worst ratio."""
        self.rises()
        return self.worst

    def after_step(self, *, period: int) -> float | None:
        """Count a step; the strength to go on with, if it is one of those at which skills are measured.

        Args:
            period: steps from one pull to the next.
        """
        self.num_steps += 1
        self.is_closed = False
        since = steps_since(self.num_steps, self._every, period=period)
        if not self.are_bounded or not since:
            return None
        if self._replicas.may_be_more and self.num_steps == since:
            warnings.warn(
                f"{self._where}: the model was given bare, and torch.distributed is initialized: rises are measured on "
                "this process's probes alone. If the others train replicas of it, these drift apart: build the keeper "
                "on the wrapped model, or set keeper.group, such as torch.distributed.group.WORLD.",
                stacklevel=2,
            )
        was_futile = self.controller.is_futile
        strength = self.controller.follow(self.measure(), since, self.num_steps)
        if self.controller.is_futile and not was_futile:
            warnings.warn(
                f"{self._where}: a strength of {strength:g} does not keep the budget: {self.told()}. More of it "
                "would not either, for learning goes where the importance sees nothing. close() will go back. To "
                "learn the new task and keep the budget, train at a lower learning rate, rehearse old data, or "
                "allow more.",
                stacklevel=2,
            )
        return strength

    def with_skill(
        self,
        probes: Probes | None,
        budget: float | None,
        *,
        of_keeper: float | None,
        steering: tuple[float, float],
        closed_here: bool,
    ) -> Skills:
        """The skills with one more, all of them at the beginning of a lesson at today's weights; this is left as it is.

        Args:
            probes: of the new skill; None for none, and nothing is added.
            budget: of it alone; None for the keeper's.
            of_keeper: the keeper's; None under a strength.
            steering: the strength that the first lesson begins with, and the highest. A later one begins half way, in
                its logarithm, from the last strength to that of the first, and never below the last.
            closed_here: whether the new skill was closed at today's weights. If it was not, no lesson begins: the new
                skill's rise counts from its closing, and those of the others from where they did.

        Raises:
            OptionError: probes that are none, or a budget under a strength or without probes.
            NotFiniteError, StateError: as `Probes.rise`.
        """
        where = f"{self._where}.retain"
        budget = None if budget is None else as_budget(budget, where=where)
        known = probes is None or isinstance(probes, Probes)
        check_option(known, "probes", type(probes).__name__, "what hf.probes_of gives", where=where)
        if budget is not None and (probes is None or of_keeper is None):
            lacking = "the task has no probes" if probes is None else "the keeper has a strength"
            raise OptionError(
                f"{where}: budget={budget!r}, and {lacking}. A task's budget needs both probes and a keeper under a "
                f"budget: {self._where}(model, budget=...)."
            )
        fresh = self._empty()
        fresh.all = [replace(skill) for skill in self.all]
        fresh.rises()
        if closed_here and self.are_bounded and not self.is_closed and fresh.worst > 1:
            warnings.warn(
                f"{where}: the lesson was over its budget: {fresh.told()}. Call close() before a task is measured and "
                "retained, which takes back what is over.",
                stacklevel=4,
            )
        if self.are_bounded and probes is None:
            warnings.warn(f"{where}: this task has no probes, so that nobody measures what it loses.", stacklevel=4)
        if closed_here:
            for skill in fresh.all:
                skill.begun = skill.rise
        if probes is not None:
            (rise,) = self._replicas.agreed([probes.rise(self._model)])
            if closed_here and abs(rise) > _STALE:
                warnings.warn(
                    f"{where}: the answers of the probes are not those of the model as it is: {rise:.3g} nats lie "
                    "between them. Take probes where the task is closed, after close(); or, of a task that was closed "
                    "at other weights, give these as anchors=.",
                    stacklevel=4,
                )
            fresh.all.append(Skill(probes, own_budget=budget, begun=rise if closed_here else 0.0, rise=rise))
        fresh.bound(of_keeper)
        first, highest = steering
        last = self.controller.strength if self.are_bounded else first
        fresh.controller = Controller(min(math.sqrt(last * max(first, last)), highest), highest)
        fresh.num_steps, fresh.is_closed = (0, True) if closed_here else (self.num_steps, self.is_closed)
        return fresh

    def _empty(self) -> Skills:
        return Skills(self._model, where=self._where, every=self._every, replicas=self._replicas)

    def told(self) -> str:
        """The increments beside their budgets, in words."""
        return ", ".join(
            f"skill {number} {skill.increment:.3g} of {skill.budget:g} nats"
            for number, skill in enumerate(self.all)
            if skill.budget is not None
        )

    def remarks(self) -> Iterator[str]:
        """Whether the budget binds, and is kept, for a report."""
        if not self.are_bounded:
            return
        if self.controller.is_futile:
            yield "more strength does not keep the budget"
        elif self.worst > 1:
            yield "over the budget" + ("" if self.is_closed else ", close() goes back")
        elif self.num_steps and self.controller.strength <= LOWEST:
            yield "the budget does not bind"

    # --- for a checkpoint

    def to_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Probes as tensors, and JSON notes."""
        tensors: dict[str, Tensor] = {}
        noted = []
        for number, skill in enumerate(self.all):
            found, notes = probes_to_state(skill.probes)
            tensors |= {f"{number}/{key}": tensor for key, tensor in found.items()}
            numbers = {"own_budget": skill.own_budget, "begun": skill.begun, "rise": skill.rise}
            noted.append({**numbers, "probes": notes})
        lesson = {"num_steps": self.num_steps, "is_closed": self.is_closed, "controller": asdict(self.controller)}
        return tensors, {"skills": noted, "lesson": lesson}

    def from_state(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any], *, where: str) -> Skills:
        """A new record of what `to_state` gave, to be bound by a budget; this one is left as it is.

        Raises:
            FileFormatError: something is missing or damaged.
        """
        taken = self._empty()
        try:
            for number, skill in enumerate(notes.get("skills", ())):
                own = {
                    key.partition("/")[2]: tensor
                    for key, tensor in tensors.items()
                    if key.partition("/")[0] == str(number)
                }
                probes = probes_from_state(own, skill["probes"], where=where)
                own = None if skill["own_budget"] is None else as_budget(skill["own_budget"], where=where)
                taken.all.append(Skill(probes, None, own, _finite(skill["begun"]), _finite(skill["rise"])))
            if lesson := notes.get("lesson"):
                taken.num_steps, taken.is_closed = int(lesson["num_steps"]), bool(lesson["is_closed"])
                taken.controller = Controller(**lesson["controller"])
        except FileFormatError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"{where}: the skills are damaged ({error!r}). Take an older checkpoint.") from error
        return taken


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(value)
    return number
