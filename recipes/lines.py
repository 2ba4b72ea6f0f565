"""What a published experiment is made of: the lines that answer its question, and the figures of others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from holdfast.choices import check_choices
from holdfast.lab.config import RunConfig, configure
from recipes.outcome import Outcome

Outcomes = Mapping[RunConfig, Outcome]
"""What is known of runs, by their configuration."""


@dataclass(frozen=True)
class Size:
    """Whether an experiment is done in full, on MNIST, or small, on the embedded digits.

    Attributes:
        name: "full" or "quick".
        images: "mnist" or "digits".
        settings: of every run, above the recipe's own.
        seeds: of what is reported; None: the recipe's own.
    """

    name: str
    images: Literal["mnist", "digits"]
    settings: Mapping[str, Any]
    seeds: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_choices(self)

    def config(self, kind: str, method: str, **settings: Any) -> RunConfig:
        """A run on a stream of this kind ("permuted" or "split"), with the protocol of that stream."""
        return configure(f"{kind}-{self.images}", method, **{**settings, **self.settings})

    def num_seeds(self, count: int) -> tuple[int, ...]:
        """The seeds of what is reported: so many in full, unless others were asked for."""
        return tuple(range(count)) if self.seeds is None else self.seeds


FULL = Size("full", "mnist", {})
QUICK = Size("quick", "digits", {"num_tasks": 3, "epochs": 8}, seeds=(0, 1, 2))


@dataclass(frozen=True)
class CitedFigure:
    """Somebody else's figure of the same thing.

    Attributes:
        figure: an accuracy, as a fraction.
        spread: half the width of the interval that stands beside it, 0 where none does.
        source: who says so.
        kind: "printed", or "program" for that of another program, which nobody has published.
        seeds: of how many runs it is; None where that is not said.
    """

    figure: float
    spread: float = 0.0
    source: str = ""
    kind: Literal["printed", "program"] = "printed"
    seeds: int | None = None

    def __post_init__(self) -> None:
        check_choices(self)

    @property
    def title(self) -> str:
        """What such figures are called, such as "printed, 30 seeds"."""
        return self._titled("")

    @property
    def column(self) -> str:
        """Title of a column of them."""
        return self._titled(" %")

    def _titled(self, unit: str) -> str:
        name = "printed" if self.kind == "printed" else "reference program"
        return f"{name}{unit}" + (f", {self.seeds} seed{'s' * (self.seeds != 1)}" if self.seeds else "")

    @property
    def text(self) -> str:
        """In per cent, such as "99.1 ± 0.2"."""
        return f"{100 * self.figure:.1f}" + (f" ± {100 * self.spread:.1f}" if self.spread else "")


@dataclass(frozen=True, kw_only=True)
class RecipeLine:
    """What stands in one row of the answer: one configuration over several seeds, chosen among candidates.

    With several candidates each is run first under the seeds of the trial, and that of the highest mean validation
    accuracy is reported. Test data choose nothing.

    Attributes:
        label: of the row.
        candidates: configurations; their own seeds are ignored.
        seeds: under which the chosen one is reported.
        trial_seeds: under which the candidates are compared.
        trial_settings: of the trials, above the candidate's own, such as fewer tasks.
        reference: the figure to compare with.
        section: the rows of one section stand together.
    """

    label: str
    candidates: tuple[RunConfig, ...]
    seeds: tuple[int, ...]
    trial_seeds: tuple[int, ...] = (9,)
    trial_settings: Mapping[str, Any] = field(default_factory=dict)
    reference: CitedFigure | None = None
    section: str = ""

    def trial(self, candidate: RunConfig) -> list[RunConfig]:
        """The runs by which a candidate is judged."""
        return [candidate.changed(**self.trial_settings, seed=seed) for seed in self.trial_seeds]

    def trials(self) -> list[RunConfig]:
        """All that must be run before there is a choice; nothing where there is one candidate."""
        if len(self.candidates) == 1:
            return []
        return [config for candidate in self.candidates for config in self.trial(candidate)]

    def chosen(self, found: Outcomes) -> RunConfig | None:
        """The candidate of the highest mean validation accuracy, the first of equals; None before it is known."""
        if len(self.candidates) == 1:
            return self.candidates[0]
        if any(config not in found for config in self.trials()):
            return None
        return max(self.candidates, key=lambda candidate: sum(found[c].validation for c in self.trial(candidate)))

    def reported(self, found: Outcomes) -> list[RunConfig]:
        """The runs of the chosen candidate."""
        chosen = self.chosen(found)
        return [] if chosen is None else [chosen.changed(seed=seed) for seed in self.seeds]

    def at_edge(self, found: Outcomes) -> bool:
        """Whether the choice fell on the weakest or the strongest candidate, so that a better one may lie outside."""
        strengths = sorted({c.strength for c in self.candidates if c.strength is not None})
        chosen = self.chosen(found)
        return len(strengths) > 1 and chosen is not None and chosen.strength in (strengths[0], strengths[-1])


def once(configs: Iterable[RunConfig]) -> list[RunConfig]:
    """Each configuration once, in order."""
    return list(dict.fromkeys(configs))


def around(config: RunConfig, factors: Sequence[float]) -> tuple[RunConfig, ...]:
    """The configuration at its strength times each factor, to three digits."""
    assert config.strength is not None
    return tuple(config.changed(strength=float(f"{config.strength * factor:.3g}")) for factor in factors)
