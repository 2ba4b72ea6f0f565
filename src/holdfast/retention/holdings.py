"""What a keeper has from step to step: all that is saved of it but its options, whole or in shards."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.curvature import Accumulate, Measured, Weighting, shapes_of
from holdfast.curvature.exchange import ALONE, Exchange
from holdfast.curvature.sharing import shared
from holdfast.errors import StateError
from holdfast.memory import Forms, Retained, retain
from holdfast.memory.codes import IMPORTANCE_ERROR
from holdfast.memory.reference import Reference, anchors_on_disk
from holdfast.memory.stored import AnyTensor, AnyTensorMap, read, shapes_of_any
from holdfast.records import check_names
from holdfast.replicas import rest
from holdfast.retention.checks import check_anchors, check_extra, check_retained
from holdfast.retention.options import check_on_disk
from holdfast.retention.owned import all_on_first, layers_to_hold, with_own_layers
from holdfast.retention.statistics import check_statistics
from holdfast.tensors import (
    Shards,
    TensorMap,
    all_parameters,
    bounds_of,
    local,
    placed,
    shard,
    shards_of,
    tied_names,
    trainable_parameters,
    whole_on_first,
)

Extra = dict[str, dict[str, Tensor]]
"""The tensors by part and name that beside `held` decide the steps to come."""


@dataclass(frozen=True)
class Taken:
    """What was saved, looked at and ready to be held.

    Attributes:
        held: of past tasks, beside the parameters.
        extra: by part and name.
        shards: how the model is sharded; None where it is whole.
    """

    held: Retained
    extra: Extra
    shards: Shards | None


class Holdings:
    """What this process holds of its model: of a sharded one the entries of its own shards.

    Args:
        model: whose parameter names everything bears.
        forms: in which and where importance and anchors are held.
        where: for messages.
        anchored: whether there are anchors.
        check_sharded: raises `OptionError` for what needs whole weights.

    Attributes:
        forms: as given.
        checkpoint: where the anchors of the next task are to be found on disk; None for anchors in memory.
        held: of the tasks retained so far; replaced, never changed in place.
        pulls: of the last step, by the weight of a factored layer that this process owns: where the next one starts.
        residuals: by weight of half precision: `holdfast.retention.rounding`.
        moving, resting: by buffer, the statistics held that are known to move, and all others.
        shards: how the model is sharded; None where it is whole.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        forms: Forms,
        where: str,
        anchored: bool,
        check_sharded: Callable[[Retained], None],
    ) -> None:
        self.forms, self.checkpoint = forms, None
        self._model, self._where, self._anchored = model, where, anchored
        self._mechanism_check = check_sharded
        self.held = Retained()
        self.pulls: dict[str, Tensor] = {}
        self.residuals: dict[str, Tensor] = {}
        self.moving: dict[str, Tensor] = {}
        self.resting: dict[str, Tensor] = {}
        self.shards: Shards | None = None
        self._exchange = ALONE

    @property
    def exchange(self) -> Exchange:
        """The processes that hold the model together."""
        if self._exchange.shards != self.shards:
            self._exchange = Exchange(self.shards, all_parameters(self._model))
        return self._exchange

    def set_checkpoint(self, path: str | os.PathLike[str] | None, rule: Accumulate) -> None:
        """Look for the next anchors there.

        Raises:
            OptionError: it contradicts another option.
        """
        if path is not None:
            check_on_disk(path, self.forms, rule)
        self.checkpoint = None if path is None else os.fspath(path)

    def close(self, importance: Measured, *, at: TensorMap | None, rule: Accumulate, weighting: Weighting) -> None:
        """Merge one more task into what is held.

        Args:
            importance: of the task.
            at: name -> weights beside the parameters, those at which it was closed; None for today's.
            rule: of accumulation.
            weighting: of the tasks.

        Raises:
            OptionError: layers that cannot be held in the model's shards.
            NotFiniteError, ParameterMismatchError, FileFormatError: of weights that cannot be anchors.
        """
        diagonal, where = importance.diagonal, f"{self._where}.retain"
        before, layers, others = layers_to_hold(importance, self.held, self.exchange)
        parameters = all_parameters(self._model)  # frozen ones have an anchor too, should they be unfrozen
        weights = {name: local(parameter.detach()) for name, parameter in parameters.items()}
        weights |= {name: weight.to(weights[name]) for name, weight in (at or {}).items()}
        devices = {name: weight.device for name, weight in weights.items()}
        to_hold = {name: weights[name] for name in (*self.held.importance, *diagonal) if name in weights}
        on_disk: dict[str, Reference] = {}
        if self._anchored:
            in_layers = {name: weights[name] for name in shapes_of({**layers, **others}) if name in weights}
            sum_of = self.shards and self.sum_of
            check_anchors({**to_hold, **in_layers}, where=where, sum_of=sum_of)
            if self.checkpoint is not None:
                on_disk = self._found_on_disk({name: parameters[name] for name in to_hold})
        held = retain(
            self._placed(before, devices),
            {name: shard(value, parameters[name]).to(devices[name]) for name, value in diagonal.items()},
            weights=weights if self._anchored else {},
            layers={name: layer.to(devices[name]) for name, layer in layers.items()},
            elsewhere=others,
            rule=rule,
            weighting=weighting,
            num_targets=importance.info.num_targets,
            nats_per_unit=importance.info.nats_per_unit,
            scatter=importance.info.scatter,
            forms=self.forms,
            references=on_disk,
            exchange=self.exchange,
        )
        self.held = held if self.shards is None else replace(held, largest=self.shards.largest(held.largest))
        self.pulls.clear()
        self.residuals.clear()

    def checked(self, held: Retained, extra: Mapping[str, TensorMap], *, where: str, in_form: bool = False) -> Taken:
        """What was saved, whole, ready to be taken, and in the keeper's forms if asked for. Nothing is changed by it.

        Raises:
            ParameterMismatchError: names or shapes that do not match the model.
            NotFiniteError, FileFormatError: as `check_retained` and `check_extra`.
            OptionError: what needs whole weights, where the model is sharded.
        """
        rest(self._model)
        for named in (held.covered, shapes_of_any(held.anchors)):
            check_names(named, self._model, where=where)
        check_retained(held, anchored=self._anchored, where=where)
        parameters = all_parameters(self._model)
        shapes = {f"residuals/{name}": parameter.shape for name, parameter in parameters.items()}
        shapes |= {f"pulls/{name}": layer.spectrum.shape for name, layer in held.layers.items()}
        check_extra(extra, shapes, where=where)
        statistics = {**extra["moving_statistics"], **extra["resting_statistics"]}
        check_statistics(statistics, self._model, where=where)
        shards = shards_of(trainable_parameters(self._model))
        beside = self._beside(self._in_form(held) if in_form and shards is None else held, parameters, shards=shards)
        return Taken(beside, self._extra_beside(extra, parameters, beside), shards)

    def take(self, taken: Taken) -> None:
        """Hold what `checked` gave."""
        self.held, self.shards = taken.held, taken.shards
        for part, own in self._extra().items():
            own.clear()
            own.update({name: value.clone() for name, value in taken.extra[part].items()})  # changed in place by steps

    def settle(self) -> None:
        """Forget what belongs to the weights' last way, which have been put elsewhere."""
        self.pulls.clear()
        self.residuals.clear()

    def whole(self) -> tuple[Retained, Extra]:
        """What is held, and the extra; of a sharded model gathered, for the first process alone."""
        if self.shards is None:
            return self.held, self._extra()
        rest(self._model)
        parameters = all_parameters(self._model)
        extra = {part: _each(_on_first, own, parameters) for part, own in self._extra().items() if part != "pulls"}
        layers, pulls = all_on_first(self.held, self.pulls, parameters, self.exchange)
        held = replace(_weights_each(_on_first, self.held, parameters), layers=layers, elsewhere={})
        return held, {"pulls": pulls, **extra}

    def spread(self) -> tuple[Retained, Extra]:
        """As `whole`, in every process: of a sharded model each entry is a DTensor beside its parameter.

        Layers are whole in the first process, as in `whole`.

        Cost: of a sharded model a copy of what is held in another form than tensors.
        """
        if self.shards is None:
            return self.held, self._extra()
        rest(self._model)
        parameters = all_parameters(self._model)
        extra = {part: _each(_laid_out, own, parameters) for part, own in self._extra().items() if part != "pulls"}
        layers, pulls = all_on_first(self.held, self.pulls, parameters, self.exchange)
        held = replace(_weights_each(_laid_out, self.held, parameters), layers=layers, elsewhere={})
        return held, {"pulls": pulls, **extra}

    def follow_shards(self) -> None:
        """Shard what is held as the model is now, which may have been whole when it was retained.

        Raises:
            ParameterMismatchError: the model is sharded in part.
            StateError: the model was sharded, and is no more or in another way.
            OptionError: an option that needs whole weights.
        """
        rest(self._model)
        shards = shards_of(trainable_parameters(self._model))
        if shards == self.shards:
            return
        if self.shards is not None and self.held.num_tasks:
            raise StateError(
                f"{self._where}: the model is sharded in another way than when its tasks were retained. Leave "
                "whole(model) first, or save the keeper while it was so and load it now."
            )
        parameters = all_parameters(self._model)
        self.held = self._beside(self.held, parameters, shards=shards)
        self.shards = shards
        extra = self._extra_beside(self._extra(), parameters, self.held)
        for part, own in self._extra().items():
            own.clear()
            own.update(extra[part])

    def sum_of(self, values: Iterable[Tensor]) -> float:
        """The sum of terms that stand for this process's weights, over all processes where the model is sharded."""
        return self.exchange.sum_of(values)

    @property
    def writes(self) -> bool:
        """Whether this process is the one that has the whole and writes it."""
        return self.shards is None or self.shards.is_first

    def wait(self) -> None:
        """Until every process of a sharded model is here."""
        if self.shards is not None:
            self.shards.wait()

    def _extra(self) -> Extra:
        statistics = {"moving_statistics": self.moving, "resting_statistics": self.resting}
        return {"pulls": self.pulls, "residuals": self.residuals, **statistics}

    def _extra_beside(self, extra: Mapping[str, TensorMap], parameters: TensorMap, held: Retained) -> Extra:
        """What was saved beside what is held, whole, as this process has it: shards, and the pulls of its layers."""
        found = {part: _each(_in_shards, extra.get(part, {}), parameters) for part in self._extra() if part != "pulls"}
        pulls = {name: value for name, value in extra.get("pulls", {}).items() if name not in held.elsewhere}
        return {"pulls": {name: value.to(parameters[name].device) for name, value in pulls.items()}, **found}

    def _in_form(self, held: Retained) -> Retained:
        """The same, in the forms that were asked for; anchors on disk stay there if there is a checkpoint."""
        forms = self.forms
        importance = {name: forms.importance_as(value) for name, value in held.importance.items()}
        layers = shared({name: forms.layer_as(layer) for name, layer in held.layers.items()})
        changed = any(value is not held.importance[name] for name, value in importance.items())
        weights = {name: local(parameter.detach()) for name, parameter in all_parameters(self._model).items()}
        anchors = {
            name: forms.anchor_as(anchor, weights[name])
            if name in held.importance and not (self.checkpoint and isinstance(anchor, Reference))
            else anchor
            for name, anchor in held.anchors.items()
        }
        largest = held.largest * (1 + IMPORTANCE_ERROR * changed)
        return replace(held, importance=importance, anchors=anchors, largest=largest, layers=layers)

    def _check_sharded(self, held: Retained) -> None:
        self._mechanism_check(held)

    def _found_on_disk(self, weights: TensorMap) -> dict[str, Reference]:
        """The anchors in the checkpoint, of a sharded model this process's part of each; all processes ask for them."""
        path, names, where = self.checkpoint, tied_names(self._model), f"{self._where}.retain"
        assert path is not None

        def find() -> dict[str, Reference]:
            return anchors_on_disk(path, weights, names=names, where=where)

        return find() if self.shards is None else self.shards.together(find, where=where)

    def _beside(self, held: Retained, parameters: TensorMap, *, shards: Shards | None) -> Retained:
        """What is held whole, beside the parameters: on their devices, and sharded as they are."""
        if shards is not None:
            self._check_sharded(held)
            own = with_own_layers(held, Exchange(shards, parameters))
            held = self._in_form(_weights_each(_in_shards, own, parameters))
        return self._placed(held, {name: parameter.device for name, parameter in parameters.items()})

    def _placed(self, held: Retained, devices: Mapping[str, torch.device]) -> Retained:
        """The same, each tensor on the device of its parameter, or where the forms have it."""
        importance, anchors = (
            {name: self.forms.placed(value, devices.get(name)) for name, value in entries.items()}
            for entries in (held.importance, held.anchors)
        )
        layers = shared({name: layer.to(devices.get(name)) for name, layer in held.layers.items()})
        return replace(held, importance=importance, anchors=anchors, layers=layers)


Act = Callable[[AnyTensor, Tensor], AnyTensor]
"""What is done with what is held of a parameter, and the parameter."""


def _in_shards(held: AnyTensor, parameter: Tensor) -> AnyTensor:
    """Of what is held whole this process's part; anchors on disk stay there."""
    if isinstance(held, Reference):
        return held.part(bounds_of(parameter))
    return shard(_as_tensor(held, parameter), parameter)


def _on_first(held: AnyTensor, parameter: Tensor) -> AnyTensor:
    """What is held in parts, whole in the first process; anchors on disk are there as they are."""
    return held if isinstance(held, Reference) else whole_on_first(_as_tensor(held, parameter), parameter)


def _laid_out(held: AnyTensor, parameter: Tensor) -> AnyTensor:
    """What this process holds of a parameter as a part of a DTensor; anchors on disk as they are."""
    return held if isinstance(held, Reference) else placed(_as_tensor(held, parameter), parameter)


def _as_tensor(held: AnyTensor, parameter: Tensor) -> Tensor:
    device = parameter.device
    return held.to(device) if isinstance(held, Tensor) else read(held, dtype=torch.float32, device=device)


def _weights_each(act: Act, held: Retained, parameters: TensorMap) -> Retained:
    importance, anchors = (_each(act, entries, parameters) for entries in (held.importance, held.anchors))
    return replace(held, importance=importance, anchors=anchors)


def _each(act: Act, entries: AnyTensorMap, parameters: TensorMap) -> dict[str, Any]:
    """`act(entries, parameter)` of each that has a parameter."""
    return {name: act(value, parameters[name]) if name in parameters else value for name, value in entries.items()}
