"""Every error holdfast raises, one class per mistake that a caller may want to catch.

Each class stands under `HoldfastError` and under the built-in that matches it, so that
`except ValueError` keeps working. Messages say where, what was found, what was expected and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping


class HoldfastError(Exception):
    """Base of all errors raised on purpose by holdfast."""


class LossShapeError(HoldfastError, ValueError):
    """A loss did not return one value per example."""


class BatchError(HoldfastError, ValueError):
    """A batch, or the model's answer to it, has a form that cannot be read."""


class EmptyDataError(HoldfastError, ValueError):
    """There are no examples to measure or to train on."""


class CoupledExamplesError(HoldfastError, ValueError):
    """The model's output, or the loss, for one example depends on the other examples of the batch."""


class RandomOutputsError(HoldfastError, ValueError):
    """The model's output for an example is another each time, without any doing of the other examples."""


class NotFiniteError(HoldfastError, ValueError):
    """A value that must be finite (and where stated not negative) is not."""


class CollapseError(HoldfastError, RuntimeError):
    """A generator gives one and the same sample, or one of the same kind, whatever it is asked for."""


class ParameterMismatchError(HoldfastError, ValueError):
    """Names or shapes do not match the model's parameters."""


class ModelMismatchError(HoldfastError, ValueError):
    """A model, or its tokenizer, is not the one that an importance was measured on."""


class MemoryShortageError(HoldfastError, MemoryError):
    """There is not enough memory, not even for the smallest block of work."""


class UnsupportedLayerError(HoldfastError, TypeError):
    """The requested quantity has no meaning, or no method, for a layer."""


class OptionError(HoldfastError, ValueError):
    """An option has a value, or stands in a combination, that has no meaning."""


class UnknownNameError(OptionError):
    """A name is not among the known ones; the message offers the nearest."""

    def __init__(self, what: str, name: str, known: Iterable[str]) -> None:
        """Say what was asked for (`what`, such as "method"), and offer the nearest of `known`."""
        choices = sorted(known)
        near = nearest(name, choices)
        hint = f" Did you mean {near!r}?" if near else ""
        super().__init__(f"unknown {what} {name!r}.{hint} Known: {', '.join(choices)}.")


class StateError(HoldfastError, RuntimeError):
    """A call came at a moment when it has no meaning, such as before `attach` or `retain`."""


class FileFormatError(HoldfastError, ValueError):
    """A file of holdfast is damaged, edited, truncated or of an unknown version."""


class DataFileError(HoldfastError, OSError):
    """A data file is missing, damaged, or could not be downloaded."""


class OutputError(HoldfastError, OSError):
    """A file or folder cannot be written."""


class RunMismatchError(HoldfastError, ValueError):
    """A run folder belongs to another configuration."""


class LostProcessError(HoldfastError, RuntimeError):
    """One of several processes that work together is gone, or has not come to where the others wait for it."""


class FailedRunsError(HoldfastError, RuntimeError):
    """Some of many runs failed; the others are finished.

    Attributes:
        failures: name of the run's folder -> why.
    """

    def __init__(self, failures: Mapping[str, str], *, of: int) -> None:
        """Say which of so many runs failed, each reason once."""
        self.failures = dict(failures)
        reasons: dict[str, list[str]] = {}
        for name, why in failures.items():
            reasons.setdefault(why, []).append(name)
        told = [
            ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") + f": {why}"
            for why, names in reasons.items()
        ]
        super().__init__(f"{len(failures)} of {of} runs failed; the others are finished. {' '.join(told)}")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that was likely meant: one that begins so, or is a few slips of the keyboard away; else None.

    A slip is a letter too many, too few, another one, or two that changed places; one is allowed for every three
    letters, and one in shorter names.
    """

    def slips(other: str) -> int:
        return 1 if len(name) > 2 and other.startswith(name) else _slips(name, other)

    found = min(known, key=lambda other: (slips(other), len(other)), default=None)
    return found if found is not None and slips(found) <= max(1, len(name) // 3) and slips(found) < len(name) else None


def _slips(one: str, other: str) -> int:
    """The distance of optimal string alignment."""
    rows = [list(range(len(other) + 1))]
    for i, letter in enumerate(one, start=1):
        row = [i]
        for j, wanted in enumerate(other, start=1):
            row.append(min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (letter != wanted)))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == wanted:
                row[-1] = min(row[-1], rows[-2][j - 2] + 1)
        rows.append(row)
    return rows[-1][-1]
