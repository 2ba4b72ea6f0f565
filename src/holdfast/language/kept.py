"""What became of the old skill and the new one, and whether the forecast held."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from holdfast.language.finetuning import HoldMethod
from holdfast.language.skills import MeasuredSkill
from holdfast.retention.report import BY_MODEL

_FAR = 3.0
"""A rise so many times the forecast is far above it."""
_NOISE = 2.0
"""Standard errors within which a rise is none."""


@dataclass(frozen=True)
class SkillChange:
    """What became of two skills.

    Attributes:
        old: name of the way -> skill on the old data; empty without old data. "before" is one of the ways.
        new: name of the way -> skill on held-out new data.
        predicted_rise: of the old loss, where a keeper knows it; in `rise_unit`.
        report: what the keeper says of itself.
        folder: of the fine-tuned model.
        plain_folder: of the model that was fine-tuned plainly; None where there is none.
        rise_unit: as a keeper's report has it (`holdfast.retention.Report`).
        method: what held the model; "rehearsal" where this alone did.
        strength: of it; None under a budget.
        budget: in nats a target, the rise that was allowed; None under a strength.
        old_head: the name of the head by which the old skill was measured; empty where there is none.
        new_head: likewise of the new skill.
        kept_heads: the names of all other heads in the folder.
        rehearsed: the past that was learned again, in words; empty where none was.
        share: of the batches that were of this past; None where none was.
        choices: what was chosen by itself, and why; a line each.
    """

    old: Mapping[str, MeasuredSkill]
    new: Mapping[str, MeasuredSkill]
    predicted_rise: float | None
    report: str
    folder: Path
    plain_folder: Path | None = None
    rise_unit: str = "nats"
    method: HoldMethod | Literal["rehearsal"] = "ewc"
    strength: float | None = None
    budget: float | None = None
    old_head: str = ""
    new_head: str = ""
    kept_heads: tuple[str, ...] = ()
    rehearsed: str = ""
    share: float | None = None
    choices: tuple[str, ...] = ()

    @property
    def measured_rise(self) -> float | None:
        """Of the old loss in nats a target: a token that a causal model predicts, else an example."""
        return self.old["held"].loss - self.old["before"].loss if "held" in self.old else None

    @property
    def rise_error(self) -> float | None:
        """The standard error of `measured_rise`: that of the sum of the examples' own rises, over the targets."""
        if "held" not in self.old:
            return None
        held = self.old["held"]
        rises = held.losses - self.old["before"].losses
        return float(rises.std()) * math.sqrt(len(rises)) / held.num_targets if len(rises) > 1 else math.inf

    @property
    def forecast(self) -> float | None:
        """The predicted rise where it is in nats, and can be held against the measured one."""
        return self.predicted_rise if self.rise_unit in ("nats", BY_MODEL) else None

    @property
    def is_far_above(self) -> bool:
        """Whether the old loss rose by more than twice the noise, and by more than three times the forecast.

        Under a budget by more than three times the budget, where that is more: so much the user has allowed.
        """
        rise, error = self.measured_rise, self.rise_error
        if rise is None or error is None or self.forecast is None:
            return False
        return rise > _FAR * max(self.forecast, self.budget or 0.0) and rise > _NOISE * error


def to_dict(kept: SkillChange) -> dict[str, Any]:
    """As JSON values."""

    def skills(found: Mapping[str, MeasuredSkill]) -> dict[str, Any]:
        return {way: skill.figures for way, skill in found.items()}

    return {
        "old": skills(kept.old),
        "new": skills(kept.new),
        "predicted_rise": kept.predicted_rise,
        "rise_unit": kept.rise_unit,
        "measured_rise": kept.measured_rise,
        "measured_rise_error": kept.rise_error if kept.rise_error != math.inf else None,
        "old_head": kept.old_head,
        "new_head": kept.new_head,
        "kept_heads": list(kept.kept_heads),
        "keeper": kept.report,
        "rehearsed": kept.rehearsed,
        "share": kept.share,
        "choices": list(kept.choices),
    }


def forecast_verdict(kept: SkillChange) -> str:
    """One line: what the old loss did, beside what was foreseen, and what to do where the forecast did not hold."""
    foreseen = _foreseen(kept)
    rise, error = kept.measured_rise, kept.rise_error
    if rise is None or error is None:
        return f"The old skill was not measured; {foreseen}. Give --old-data to see what was kept."
    told = f"the old loss {_moved(rise)}{f' (standard error {error:.2g})' if error < math.inf else ''}"
    if not kept.is_far_above:
        return f"{told}; {foreseen}"
    times = f", {rise / kept.forecast:.0f} times as much" if kept.forecast else ""
    return f"THE FORECAST DID NOT HOLD{times}: {told}; {foreseen}. {_remedy(kept)}"


def _moved(rise: float) -> str:
    return f"{'rose' if rise >= 0 else 'fell'} by {abs(rise):.4g} nats a target"


def _foreseen(kept: SkillChange) -> str:
    if kept.predicted_rise is None:
        return f"{kept.method} foresees nothing"
    if kept.forecast is None:
        return (
            f"a rise of {kept.predicted_rise:.4g} {kept.rise_unit} was foreseen, which cannot be compared with nats "
            "(measure the importance with --calibrate)"
        )
    allowed = "" if kept.budget is None else f", and one of {kept.budget:g} allowed"
    if kept.rise_unit == BY_MODEL:
        return f"a rise of {kept.forecast:.4g} was foreseen {BY_MODEL}{allowed}"
    return f"a rise of {kept.forecast:.4g} nats was foreseen{allowed}"


def _remedy(kept: SkillChange) -> str:
    other = "or hold whole layers (holdfast importance --kind kfac)"
    if kept.strength is None:
        return (
            "Fine-tune again with a smaller --budget, with an importance that was calibrated at it on old data "
            f"(holdfast importance --calibrate --calibrate-budget), {other}."
        )
    return (
        f"Fine-tune again with a larger --strength (now {kept.strength:g}), {other}, or give a --budget over an "
        "importance that was calibrated on old data (holdfast importance --calibrate)."
    )
