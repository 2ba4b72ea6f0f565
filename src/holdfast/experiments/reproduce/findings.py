"""What the runs of a recipe say, row by row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from holdfast.experiments.reproduce.recipe import Found, Recipe


@dataclass(frozen=True)
class Findings:
    """A recipe, and all that is known of its runs.

    Attributes:
        recipe: what was asked.
        found: outcomes by configuration.
        measured: measurements by seed.
    """

    recipe: Recipe
    found: Found
    measured: Mapping[int, Any]
