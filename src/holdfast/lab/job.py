"""What a worker does in one go."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.lab.config import RunConfig


@dataclass(frozen=True)
class Job:
    """What a worker does in one go: a run, or several that are trained as one batched program."""

    configs: tuple[RunConfig, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the folders of its runs."""
        return tuple(config.name for config in self.configs)

    @property
    def stacked(self) -> bool:
        """Whether it is one batched program."""
        return len(self.configs) > 1
