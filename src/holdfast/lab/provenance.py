"""What a run's figures depend on beside its settings."""

from __future__ import annotations

import os
from typing import Any

from holdfast.lab.configured import Configured
from holdfast.lab.importing import source_of
from holdfast.lab.streams import Task, fingerprint, given_data


def data_of(config: Configured, *, data_dir: str | os.PathLike[str] | None = None) -> tuple[Task, ...]:
    """What the tasks of a run are made of; nothing where its stream makes its own."""
    if not config.source:
        return ()
    return given_data(config.entries["stream"], config.source, data_dir=data_dir, pictures=config.pictures)


def provenance(config: Configured, *, data_dir: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """What a run's figures depend on beside its settings: the data in hand, and code of others.

    Returns:
        "data": their fingerprint; not where they would have to be downloaded. "plugins": module -> digits that stand
        for its source, of what was chosen and is not holdfast's.
    """
    given = config.to_dict().get("data")
    known = given or data_dir or os.environ.get("HOLDFAST_DATA") or config.source != "mnist"
    data = data_of(config, data_dir=data_dir) if known else ()
    found: dict[str, Any] = {"data": fingerprint(*data)} if data else {}
    others = {module for module in config.modules() if module.partition(".")[0] != "holdfast"}
    found["plugins"] = {module: source_of(module) for module in sorted(others)}
    return found
