"""Everything that decides the figures of a generation run, in one frozen record."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from holdfast.lab.configured import Configured, GivenSettings, settings_hash
from holdfast.lab.generation.methods import GENERATION_METHODS
from holdfast.lab.generation.registry import GENERATION_STREAMS, DrawingSettings
from holdfast.lab.options import OneOf
from holdfast.lab.registry import Registry


@dataclass(frozen=True, kw_only=True)
class GenerationSettings(DrawingSettings, GivenSettings):
    """What every generation run is to be told, whatever its stream and method; see the bases, too."""

    stream: Annotated[str, OneOf(GENERATION_STREAMS)]
    method: Annotated[str, OneOf(GENERATION_METHODS)]


@dataclass(frozen=True, kw_only=True)
class GenerationConfig(Configured, GenerationSettings):
    """One generation run: a stream, a method, a seed, and every setting. Make one with `configure_generation`."""

    record: ClassVar[type] = GenerationSettings
    registries: ClassVar[tuple[Registry[Any], ...]] = (GENERATION_METHODS, GENERATION_STREAMS)

    __hash__ = Configured.__hash__

    @classmethod
    def protocol(cls, stream: str, method: str) -> Mapping[str, Any]:
        """See `Configured`."""
        return GENERATION_STREAMS.named(stream).protocol

    @property
    def hash(self) -> str:
        """Eight hexadecimal digits that stand for every setting that is not its default.

        Of the protocol's settings those that the method has not count, too: so folders were named when all methods had
        all settings.
        """
        return settings_hash({**self.protocol(self.stream, self.method), **self.to_dict()}, self.defaults())


def configure_generation(
    stream: str, method: str, *, data_dir: str | os.PathLike[str] | None = None, **settings: Any
) -> GenerationConfig:
    """A generation run's configuration: the protocol of the stream, and yours above it.

    Args:
        stream: name of the stream.
        method: name of the method.
        data_dir: where data by name are; see `holdfast.lab.load_data`.
        settings: those of `GenerationSettings`, and options of the stream and the method; None leaves the protocol's
            value.

    Raises:
        UnknownNameError: an unknown stream, method or setting; the message offers the nearest.
        OptionError: a value out of its range, or a setting that belongs to something else.
    """
    return GenerationConfig.configured(stream, method, data_dir=data_dir, **settings)
