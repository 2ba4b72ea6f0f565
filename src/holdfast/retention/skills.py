"""What a budget holds: the rise of every skill within the lesson, measured on its probes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.errors import FileFormatError
from holdfast.probes import Probes
from holdfast.probes.files import probes_from_state, probes_to_state
from holdfast.retention.controller import Controller


@dataclass
class Skill:
    """An old task that is measured.

    Attributes:
        probes: of it.
        budget: what its rise may grow by in each lesson, in nats per target; None for none.
        begun: its rise when the lesson began, against its answers when it was closed.
        rise: its rise when it was last measured.
    """

    probes: Probes
    budget: float | None = None
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
        every: steps from one measurement to the next.

    Attributes:
        all: in the order in which they were retained.
        controller: of the strength.
        num_steps: of this lesson.
        is_closed: whether the lesson was ended.
    """

    def __init__(self, model: nn.Module, *, where: str, every: int) -> None:
        self.all: list[Skill] = []
        self.controller = Controller()
        self.num_steps, self.is_closed = 0, False
        self._model, self._where, self._every = model, where, every

    @property
    def are_bounded(self) -> bool:
        """Whether a skill has a budget."""
        return any(skill.budget is not None for skill in self.all)

    @property
    def worst(self) -> float:
        """The largest increment over its budget, when last measured."""
        return max((skill.ratio for skill in self.all), default=0.0)

    def measure(self) -> float:
        """Measure every skill; the worst ratio. Replicas of a model that trains in several processes agree on it."""
        rises = [skill.probes.rise(self._model) for skill in self.all]
        if torch.distributed.is_available() and torch.distributed.is_initialized() and rises:
            device = next(self._model.parameters()).device
            shared = torch.tensor(rises, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
            torch.distributed.all_reduce(shared)
            rises = (shared / torch.distributed.get_world_size()).tolist()
        for skill, rise in zip(self.all, rises, strict=True):
            skill.rise = rise
        return self.worst

    def after_step(self) -> float | None:
        """Count a step; the strength to go on with, if it is one of those at which skills are measured."""
        self.num_steps += 1
        self.is_closed = False
        if not self.are_bounded or self.num_steps % self._every:
            return None
        was_futile = self.controller.is_futile
        strength = self.controller.follow(self.measure())
        if self.controller.is_futile and not was_futile:
            warnings.warn(
                f"{self._where}: a strength of {strength:g} does not keep the budget: {self.told()}. More of it "
                "would not either, for learning goes where the importance sees nothing. close() will go back. To "
                "learn the new task and keep the budget, train at a lower learning rate, rehearse old data, or "
                "allow more.",
                stacklevel=2,
            )
        return strength

    def begin(self) -> None:
        """A lesson begins at today's weights."""
        self.measure()
        for skill in self.all:
            skill.begun = skill.rise
        self.num_steps, self.is_closed = 0, True
        self.controller.begin()

    def add(self, probes: Probes, budget: float | None) -> None:
        """One more skill, closed at today's weights; `begin` measures it with the others."""
        self.all.append(Skill(probes, budget))

    def told(self) -> str:
        """The increments beside their budgets, in words."""
        return ", ".join(
            f"skill {number} {skill.increment:.3g} of {skill.budget:g} nats"
            for number, skill in enumerate(self.all)
            if skill.budget is not None
        )

    # --- for a checkpoint

    def to_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Probes as tensors, and JSON notes."""
        tensors: dict[str, Tensor] = {}
        noted = []
        for number, skill in enumerate(self.all):
            found, notes = probes_to_state(skill.probes)
            tensors |= {f"{number}/{key}": tensor for key, tensor in found.items()}
            numbers = {"budget": skill.budget, "begun": skill.begun, "rise": skill.rise}
            noted.append({**numbers, "probes": notes})
        lesson = {"num_steps": self.num_steps, "is_closed": self.is_closed, "controller": asdict(self.controller)}
        return tensors, {"skills": noted, "lesson": lesson}

    def from_state(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any], *, where: str) -> Skills:
        """A new record of what `to_state` gave; this one is left as it is.

        Raises:
            FileFormatError: something is missing or damaged.
        """
        taken = Skills(self._model, where=self._where, every=self._every)
        try:
            for number, skill in enumerate(notes.get("skills", ())):
                own = {
                    key.partition("/")[2]: tensor
                    for key, tensor in tensors.items()
                    if key.partition("/")[0] == str(number)
                }
                probes = probes_from_state(own, skill["probes"], where=where)
                taken.all.append(Skill(probes, skill["budget"], float(skill["begun"]), float(skill["rise"])))
            if lesson := notes.get("lesson"):
                taken.num_steps, taken.is_closed = int(lesson["num_steps"]), bool(lesson["is_closed"])
                taken.controller = Controller(**lesson["controller"])
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"{where}: the skills are damaged ({error!r}). Take an older checkpoint.") from error
        return taken
