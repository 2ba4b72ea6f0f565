"""How a run ended: with a result, or in divergence, which is a result too."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.lab.config import RunConfig
from holdfast.lab.result import RunResult


@dataclass(frozen=True)
class Outcome:
    """The end of a run.

    Attributes:
        config: of the run.
        result: what it found; None where training diverged.
        diverged: what was said then; else empty.
    """

    config: RunConfig
    result: RunResult | None
    diverged: str = ""

    @property
    def validation(self) -> float:
        """Average validation accuracy after the last task; 0 after a divergence."""
        return 0.0 if self.result is None else self.result.validation_accuracy[-1]
