"""The kinds of runs: networks that learn to answer, and generators that learn to draw."""

from __future__ import annotations

from typing import Any

from holdfast.lab.config import RunConfig
from holdfast.lab.configured import Configured
from holdfast.lab.generation.config import GenerationConfig
from holdfast.lab.options import names_of, naming
from holdfast.lab.registry import Registry

KINDS: tuple[type[Configured], ...] = (RunConfig, GenerationConfig)

REGISTRIES: tuple[Registry[Any], ...] = tuple(registry for kind in KINDS for registry in kind.registries)
"""Of everything whose options may be settings of a run."""


def kind_of(stream: str | None) -> type[Configured]:
    """The kind of the runs that learn a stream; the first where no kind has registered it."""
    return next((kind for kind in KINDS if stream in named_by(kind, "stream")), RunConfig)


def named_by(kind: type[Configured], setting: str) -> Registry[Any]:
    """What a setting of a kind of runs names an entry of."""
    return naming(kind.record)[setting]


def having(name: str) -> list[str]:
    """What has a setting: the entries whose option it is, or the streams whose runs all have it."""
    owners = [entry.name for registry in REGISTRIES for entry in registry.values() if name in names_of(entry.options)]
    return owners or [each for kind in KINDS if name in names_of(kind.record) for each in named_by(kind, "stream")]
