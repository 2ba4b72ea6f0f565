"""What every curvature of a group of parameters can do, however it is held: retention asks for nothing else.

A weight by itself has one number, and is held beside the others in long lists (`holdfast.memory.stored`). A group of
parameters that matter together, a *layer*, is an object: measured on one task it is a `MeasuredLayer`, of all tasks
together a `Curvature`. Both are kept in mappings whose keys are the names of each layer's first parameter; a mixed
importance has a `diagonal` and such `layers`.
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor

from holdfast.curvature.rules import Accumulate
from holdfast.errors import OptionError
from holdfast.records import Importance, ImportanceInfo

Line = tuple[Tensor, Tensor, float]
"""Coordinates of a displacement along directions, the curvature along each, and one metric for all of them."""


class Shaped(Protocol):
    """Parameters that matter together, or what is known of them: their shapes."""

    @abstractmethod
    def shapes(self, name: str) -> dict[str, tuple[int, ...]]:
        """Name -> shape of its parameters, in order; `name` is the first one's."""
        ...


class Group(Shaped, Protocol):
    """Parameters that matter together."""

    has_directions: ClassVar[bool]
    """Whether K has directions of its own, across its parameters: a budget projects along them, and an optimizer has
    to move all of the parameters or none."""

    @abstractmethod
    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Any:
        """The same on another device or in another dtype."""
        ...

    @abstractmethod
    def scaled(self, factor: float) -> Any:
        """Of factor * K."""
        ...

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Part -> tensor: all of it that is one."""
        ...


class MeasuredLayer(Group, Protocol):
    """The importance of a layer, measured on one task."""

    @abstractmethod
    def joined(self, held: Any, rule: Accumulate, *, num_tasks: int, share: float) -> tuple[Curvature, Tensor]:
        """What is held after this task.

        Args:
            held: the `Curvature` of the tasks before; None for none.
            rule: how importances join.
            num_tasks: that were retained before.
            share: what this importance is multiplied by.

        Returns:
            The curvature, and the part of its `spectrum` that is this task's.

        Raises:
            OptionError: it has no such rule.
        """
        ...


class Curvature(Group, Protocol):
    """What is held of a layer: a quadratic K, half of which is the rise of the old tasks' loss.

    `values` and `anchors` are tensors of its parameters, in order, in the dtype to compute in. To be saved, loaded and
    copied its class is registered (`register_curvature`), and has `PARTS`, `form` and `described`.
    """

    PARTS: ClassVar[tuple[str, ...]]
    """The names of its `tensors()`."""

    @classmethod
    @abstractmethod
    def described(
        cls, form: Any, parts: Mapping[str, Tensor], *, name: str, where: str
    ) -> tuple[Self, dict[str, tuple[int, ...]]]:
        """The layer that a file describes.

        Args:
            form: its `form`, not checked.
            parts: its tensors, by part.
            name: of its first parameter, for a message.
            where: likewise.

        Returns:
            The layer, and the shapes that its tensors should have, by part.

        Raises:
            FileFormatError: the form is damaged.
        """
        ...

    @property
    @abstractmethod
    def spectrum(self) -> Tensor:
        """S >= 0, the curvature along each direction that K is held in; its sum is the trace of K."""
        ...

    @abstractmethod
    def diagonal(self) -> Tensor:
        """The curvature of each weight by itself, >= 0."""
        ...

    @abstractmethod
    def rise(self, values: Sequence[Tensor], anchors: Sequence[Tensor]) -> Tensor:
        """1/2 d^T K d >= 0 for the displacement d; zero-dimensional, differentiable."""
        ...

    @abstractmethod
    def gradient(self, values: Sequence[Tensor], anchors: Sequence[Tensor]) -> list[Tensor]:
        """K d, by parameter."""
        ...

    @abstractmethod
    def pull(
        self,
        values: Sequence[Tensor],
        anchors: Sequence[Tensor],
        strength: float,
        *,
        metrics: Sequence[float | Tensor],
        before: Tensor | None,
    ) -> tuple[list[Tensor], Tensor, Tensor | None]:
        """The implicit step toward the anchors in a metric: it never raises the rise, at any strength.

        Args:
            values: the weights after the optimizer's step.
            anchors: where K has no force.
            strength: lambda > 0, up to infinity, which pins.
            metrics: M of each parameter, a number (infinite where its learning rate is zero) or a tensor.
            before: what the last pull gave for the next one; None for none.

        Returns:
            What is to be added to each of the values, the share of its way that each direction of the spectrum went (of
            its shape, or empty where there is none), and what the next pull starts from.
        """
        ...

    @abstractmethod
    def line(self, values: Sequence[Tensor], anchors: Sequence[Tensor], metrics: Sequence[float | Tensor]) -> Line:
        """What a budget projects along: after a pull of strength mu a coordinate c is c / (1 + mu S / M).

        Raises:
            OptionError: it has no directions.
        """
        ...

    @abstractmethod
    def collapsed(
        self, own: Tensor, theta: Sequence[Tensor], mean: Sequence[Tensor]
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """The one anchor that stands for those of all tasks, under `accumulate="per_task"`.

        Args:
            own: the newest task's part of the spectrum.
            theta: its anchor.
            mean: that of the tasks before.

        Returns:
            The anchor by parameter, what separate anchors cost for good, and the rise at theta.
        """
        ...

    @property
    @abstractmethod
    def form(self) -> dict[str, Any]:
        """What of it is no tensor, as JSON values."""
        ...


def missing_in(cls: type, protocol: type) -> list[str]:
    """The names of a protocol's members that a class has not of its own: those it inherits from a protocol are empty.

    An annotated field counts, such as one of a dataclass.
    """
    kinds = [kind for kind in protocol.__mro__ if Protocol in kind.__bases__]
    members = {name for kind in kinds for name in (*vars(kind), *inspect.get_annotations(kind)) if name[0] != "_"}
    own = {name for kind in cls.__mro__ if kind not in kinds for name in (*vars(kind), *inspect.get_annotations(kind))}
    return sorted(members - own)


def shapes_of(layers: Mapping[str, Shaped]) -> dict[str, Tensor]:
    """Name -> a zero of the parameter's shape that takes no memory, for every parameter in a layer."""
    zero = torch.zeros((), dtype=torch.float32)
    return {n: zero.expand(shape) for name, layer in layers.items() for n, shape in layer.shapes(name).items()}


class Measured(Protocol):
    """An importance of any kind: what `retain` takes."""

    @property
    @abstractmethod
    def layers(self) -> Mapping[str, MeasuredLayer]:
        """By the name of each layer's first parameter."""
        ...

    @property
    @abstractmethod
    def diagonal(self) -> Importance:
        """Of the other parameters, one by one."""
        ...

    @property
    @abstractmethod
    def info(self) -> ImportanceInfo:
        """How it was made."""
        ...

    @abstractmethod
    def __mul__(self, factor: float) -> Measured:
        """Scaled."""
        ...

    @abstractmethod
    def to_diagonal(self) -> Importance:
        """Of all parameters one by one.

        Raises:
            OptionError: it cannot be had so.
        """
        ...


@dataclass(frozen=True)
class MixedImportance:
    """An importance of some layers as a whole, and of other weights one by one.

    Attributes:
        layers: name of a layer's first parameter -> its importance.
        diagonal: of the other parameters.
        info: how it was made.
    """

    layers: Mapping[str, MeasuredLayer]
    diagonal: Importance
    info: ImportanceInfo

    def __mul__(self, factor: float) -> MixedImportance:
        scaled = {name: layer.scaled(factor) for name, layer in self.layers.items()}
        diagonal = self.diagonal * factor
        return MixedImportance(scaled, diagonal, diagonal.info)

    def to_diagonal(self) -> Importance:
        """Its parameters one by one, which layers in general are not.

        Raises:
            OptionError: there are layers.
        """
        if self.layers:
            raise OptionError(
                f"the importance ({self.info.kind}) of {len(self.layers)} layers, such as {next(iter(self.layers))!r}, "
                "is not one of single weights. Hold it with EWC."
            )
        return self.diagonal
