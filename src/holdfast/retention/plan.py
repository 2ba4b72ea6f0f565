"""Which of an optimizer's weights a keeper holds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from holdfast.curvature import Curvature, shapes_of
from holdfast.curvature.owners import LayerElsewhere
from holdfast.errors import OptionError, ParameterMismatchError, StateError
from holdfast.memory import Forms, Retained
from holdfast.memory.stored import AnyTensor, read
from holdfast.records import check_shapes
from holdfast.retention.parts import Part
from holdfast.retention.rounding import is_half, no_residual, round_, with_residual
from holdfast.steps import UserMetric, metric_values, rests, step_metrics
from holdfast.tensors import all_parameters, check_real, chunks, local, trainable_parameters, wide_dtype


@dataclass(frozen=True)
class LayerPart:
    """A layer that is held as a whole, with the parameter groups of its parameters.

    Attributes:
        name: of its first parameter.
        groups: of each parameter; None for one that the optimizer does not train.
        parameters: in order.
        curvature: what is held of it, in the dtype that steps are computed in; or what is known of it, where another
            process owns it.
        anchors: of each, likewise; of sharded parameters this process's shards.
        residuals: of parameters of half precision, what rounding took from earlier pulls; None for others.
        moved: those that the last step moved.
    """

    name: str
    groups: list[Mapping[str, Any] | None]
    parameters: list[nn.Parameter]
    curvature: Curvature | LayerElsewhere[Any]
    anchors: list[Tensor]
    residuals: list[Tensor | None]
    moved: set[nn.Parameter] = field(default_factory=set)

    @property
    def weights(self) -> list[Tensor]:
        """The live weights, outside autograd; of sharded ones this process's shards."""
        return [local(parameter.detach()) for parameter in self.parameters]

    def values(self) -> list[Tensor]:
        """The weights with what rounding took from them; new tensors in the dtype that steps are computed in."""
        columns = zip(self.weights, self.residuals, self.anchors, strict=True)
        return [w.to(a.dtype, copy=True) if r is None else with_residual(w, r) for w, r, a in columns]

    def add(self, changes: Sequence[Tensor]) -> None:
        """Add to the weights what a pull found."""
        columns = zip(self.weights, self.residuals, self.values(), changes, strict=True)
        for weight, residual, value, change in columns:
            if residual is None:
                weight.copy_(value.add_(change))
            else:
                round_(weight, residual, value.add_(change))

    def metrics(self, optimizer: Optimizer, user_metric: UserMetric | None, *, where: str) -> list[float | Tensor]:
        """The metric of the step just taken, for each parameter: a number, infinite where it rested, or a tensor.

        Raises:
            StateError: some of the parameters move, and the layer moves as one.
        """
        found: list[float | Tensor] = [math.inf] * len(self.parameters)
        for index, (group, parameter) in enumerate(zip(self.groups, self.parameters, strict=True)):
            if group is not None and parameter in self.moved:
                described = step_metrics(optimizer, group, [parameter], user_metric=user_metric)
                values = metric_values(described, [parameter])
                found[index] = values[0] if isinstance(values, list) else values
        self._check_together([isinstance(metric, Tensor) or metric != math.inf for metric in found], where=where)
        return found

    def stepped(self, gradients: Mapping[int, Tensor], *, where: str) -> bool:
        """Whether the optimizer moves the layer in this step.

        A parameter moves that has a gradient, now or in `gradients`, and a learning rate other than zero.

        Raises:
            StateError: it moves some of the parameters, and the layer moves as one.
        """
        columns = zip(self.parameters, self.groups, strict=True)
        trained = [p for p, group in columns if group is not None and not rests(group)]
        self.moved.clear()
        self.moved.update(p for p in trained if p.grad is not None or id(p) in gradients)
        self._check_together([p in self.moved for p in self.parameters], where=where)
        return bool(self.moved)

    @property
    def has_directions(self) -> bool:
        """Whether all of its parameters move, or none (`Group`)."""
        return _has_directions(self.curvature)

    def _check_together(self, moves: Sequence[bool], *, where: str) -> None:
        if self.has_directions and any(moves) and not all(moves):
            raise StateError(apart_message(self.curvature.shapes(self.name), moves, where=where))


class Plan:
    """The parts of one optimizer, found again whenever its groups or the retained importance change.

    Args:
        model: the model whose parameter names the importance bears.
        new_parameters: "error" or "free", for trainable parameters that no importance covers.
        forms: in which and where importance and anchors are held.
        where: for messages.
        residuals: by name, of parameters of half precision, filled with what is missing; None where no pull is rounded.

    Attributes:
        model: as given.
        gradients: id -> gradient of the held parameters as they were just before the step, for an optimizer that lets
            go of them within.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        new_parameters: str,
        forms: Forms,
        where: str,
        residuals: dict[str, Tensor] | None = None,
    ) -> None:
        self.model, self._new_parameters, self._forms, self._where = model, new_parameters, forms, where
        self._residuals = residuals
        self._key: object = None
        self._held: Retained | None = None
        self.gradients: dict[int, Tensor] = {}
        self._parts: list[Part] = []
        self._layers: list[LayerPart] = []

    def parts(self, optimizer: Optimizer, held: Retained) -> Iterator[Part]:
        """The parts that this step moves.

        Raises:
            ParameterMismatchError: if a parameter changed its shape, or under `new_parameters="error"` if the optimizer
                trains parameters of the model that have no importance.
            UnsupportedLayerError: a trainable parameter is not of real numbers, or no longer.
        """
        for part in self.all_parts(optimizer, held):
            stepped = part.stepped(self.gradients)
            if stepped is not None:
                yield stepped

    def layers(self, optimizer: Optimizer, held: Retained) -> list[LayerPart]:
        """The layers that are held as a whole, moved by this step or not.

        Raises:
            ParameterMismatchError: as for `parts`.
            StateError: the optimizer trains some of a layer's parameters, and the layer moves as one.
        """
        self.all_parts(optimizer, held)
        return self._layers

    def stepped_layers(self, optimizer: Optimizer, held: Retained) -> Iterator[LayerPart]:
        """Those that this step moves.

        Raises:
            ParameterMismatchError, StateError: as for `layers`.
        """
        return (part for part in self.layers(optimizer, held) if part.stepped(self.gradients, where=self._where))

    def note_gradients(self) -> None:
        """Remember the gradients of all that was found last; to be called just before they are used."""
        self.gradients = {id(p): p.grad for p in self.found if p.grad is not None}

    @property
    def found(self) -> list[nn.Parameter]:
        """All that is held, moved by this step or not, as it was found last."""
        return [p for part in (*self._parts, *self._layers) for p in part.parameters]

    def all_parts(self, optimizer: Optimizer, held: Retained) -> list[Part]:
        """All parts, moved by this step or not."""
        key = [
            (id(group), [(id(p), _place(p), p.device, p.dtype, p.requires_grad) for p in group["params"]])
            for group in optimizer.param_groups
        ]
        if held is not self._held or key != self._key:
            self._parts = self._find(optimizer, held)
            self._layers = self._find_layers(optimizer, held)
            self._key, self._held = key, held
        return self._parts

    def _find(self, optimizer: Optimizer, held: Retained) -> list[Part]:
        parameters = trainable_parameters(self.model)
        check_real(parameters, where=self._where)
        names = {id(parameter): name for name, parameter in parameters.items()}
        check_held_shapes(held, self.model, where=self._where)
        check_covered(
            [names[id(p)] for g in optimizer.param_groups for p in g["params"] if id(p) in names],
            held,
            new_parameters=self._new_parameters,
            where=self._where,
        )
        parts = []
        for group in optimizer.param_groups:
            found = [(p, names[id(p)]) for p in group["params"] if names.get(id(p)) in held.importance]
            for piece in chunks([p for p, _ in found]):
                chosen = found[piece]
                importance = [self._forms.placed(held.importance[name], p.device) for p, name in chosen]
                anchors = [self._anchor(held.anchors[name], p) for p, name in chosen] if held.anchors else []
                residuals = [r for p, name in chosen if (r := self._residual(name, p)) is not None]
                parts.append(Part(group, [p for p, _ in chosen], importance, anchors, residuals))
        return parts

    def _residual(self, name: str, parameter: nn.Parameter) -> Tensor | None:
        if self._residuals is None or not is_half(parameter):
            return None
        known = self._residuals.get(name)
        found = no_residual(local(parameter.detach())) if known is None else known.to(parameter.device)
        self._residuals[name] = found
        return found

    def _anchor(self, anchor: AnyTensor, parameter: nn.Parameter) -> AnyTensor:
        placed = self._forms.placed(anchor, parameter.device)
        if isinstance(placed, Tensor) and placed.dtype.itemsize >= parameter.dtype.itemsize:
            return placed.to(parameter.dtype)  # no larger, and then a step can take it as it is
        return placed

    def _find_layers(self, optimizer: Optimizer, held: Retained) -> list[LayerPart]:
        if not held.all_layers:
            return []
        parameters = all_parameters(self.model)
        groups = {id(p): group for group in optimizer.param_groups for p in group["params"] if p.requires_grad}
        layers = []
        for name, layer in held.all_layers.items():
            names = list(layer.shapes(name))
            found = [parameters[n] for n in names if n in parameters]
            trained: list[Mapping[str, Any] | None] = [groups.get(id(p)) for p in found]
            if not any(group is not None for group in trained):
                continue
            if len(found) < len(names) or (_has_directions(layer) and None in trained):
                moves = [n in parameters and id(parameters[n]) in groups for n in names]
                raise StateError(apart_message(names, moves, where=self._where))
            weight, dtype = found[0], wide_dtype(found[0])
            anchors = [read(held.anchors[n], dtype=dtype, device=weight.device) for n in names]
            moved = layer if isinstance(layer, LayerElsewhere) else layer.to(weight.device, dtype)
            residuals = [self._residual(n, p) for n, p in zip(names, found, strict=True)]
            layers.append(LayerPart(name, trained, found, moved, anchors, residuals))
        return layers


def _has_directions(layer: Curvature | LayerElsewhere[Any]) -> bool:
    return layer.layer.has_directions if isinstance(layer, LayerElsewhere) else layer.has_directions


def _place(parameter: Tensor) -> int:
    return local(parameter.detach()).data_ptr()


def apart_message(names: Iterable[str], moves: Iterable[bool], *, where: str) -> str:
    """What to say of a layer some of whose parameters move without the others."""
    moved, resting = (
        ", ".join(repr(name) for name, is_moved in zip(names, moves) if is_moved == wanted) for wanted in (True, False)
    )
    return (
        f"{where}: the optimizer moves {moved} without {resting}, and they are held as one layer. Train all of it with "
        "one optimizer, at learning rates above 0, or retain importance.to_diagonal()."
    )


def check_held_shapes(held: Retained, model: nn.Module, *, where: str) -> None:
    """Raise `ParameterMismatchError` naming the parameters whose shape is no longer the one that is held."""
    remedy = "Let the model grow by parameters of their own beside the old ones, or start a new keeper."
    check_shapes(held.covered, model, where=where, remedy=remedy)


def check_same_curvature(new: Iterable[str], layered: Iterable[str], held: Retained, *, where: str) -> None:
    """Raise `OptionError` for parameters held in a layer for some tasks and one by one for others.

    Args:
        new: names that the new importance covers.
        layered: those of them that are in layers.
        held: what is held of the tasks before.
        where: for the message.
    """
    before, now = set(shapes_of(held.all_layers)), set(layered)
    mixed = sorted((before & set(new)) - now) + sorted(now & set(held.importance))
    if mixed:
        raise OptionError(
            f"{where}: {', '.join(map(repr, mixed))} would be held in a layer for some tasks and weight by weight for "
            "others. Retain one kind of importance for every task, such as kfac, or every task's to_diagonal()."
        )


def check_covered(names: Sequence[str], held: Retained, *, new_parameters: str, where: str) -> None:
    """Raise `ParameterMismatchError` naming the parameters without an importance, unless they are to be free."""
    covered = held.covered
    missing = [name for name in names if name not in covered]
    if missing and new_parameters == "error":
        has, they, them = ("parameter has", "It", "it") if len(missing) == 1 else ("parameters have", "They", "them")
        raise ParameterMismatchError(
            f"{where}: {len(missing)} {has} no importance: {', '.join(map(repr, missing))}. {they} appeared after task "
            f"{held.num_tasks} was retained, or its importance left {them} out. "
            f'Pass new_parameters="free" to train {them} unprotected.'
        )
