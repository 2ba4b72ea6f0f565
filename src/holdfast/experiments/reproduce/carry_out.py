"""Recipes carried out: what is missing is run, and the answer written down."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from holdfast.errors import FailedRunsError
from holdfast.experiments.config import RunConfig
from holdfast.experiments.parallel import run_all
from holdfast.experiments.reproduce.outcome import Outcome
from holdfast.experiments.reproduce.recipe import Found, Recipe, once
from holdfast.experiments.reproduce.store import committed, finished, note_divergence
from holdfast.experiments.run import Watch

_SIGN_OF_DIVERGENCE = "training has diverged"


def known(recipes: Sequence[Recipe], *, output: Path, results: Path) -> dict[RunConfig, Outcome]:
    """All outcomes that are committed below `results`, and those of the recipes' runs in `output`, which go first."""
    found = committed(results)
    while True:
        wanted = once(config for recipe in recipes for config in recipe.wanted(found))
        more = finished([config for config in wanted if config not in found], output)
        if not more:
            return found | finished(wanted, output)
        found |= more


def train(
    recipes: Sequence[Recipe],
    found: Found,
    *,
    output: Path,
    jobs: int = 1,
    device: str = "cpu",
    data_dir: str | os.PathLike[str] | None = None,
    watch: Watch | None = None,
) -> dict[RunConfig, Outcome]:
    """Do every run that is missing, round after round, until all choices are made and reported.

    Returns:
        `found`, and what was added.

    Raises:
        FailedRunsError: a run failed otherwise than by divergence.
    """
    known = dict(found)
    while missing := once(config for recipe in recipes for config in recipe.to_do(known)):
        try:
            run_all(missing, output=output, jobs=jobs, device=device, data_dir=data_dir, watch=watch)
        except FailedRunsError as error:
            by_name = {config.name: config for config in missing}
            for name, message in error.failures.items():
                if _SIGN_OF_DIVERGENCE not in message:
                    raise
                note_divergence(by_name[name], output, message)
        known |= finished(missing, output)
    return known
