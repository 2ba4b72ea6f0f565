"""What a process has of the layers that several hold together: those that it owns, and what is known of the others.

Layers that are held already stay with their owners. New ones go where `holdfast.curvature.owners` says, which is where
they were measured on shards; layers that read the same input have one owner, since they share a basis.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.curvature import Curvature, KroneckerFactors, Measured, MeasuredLayer, blocks
from holdfast.curvature.exchange import Exchange, elsewhere_in
from holdfast.curvature.form import LayerForm
from holdfast.curvature.owners import LayerElsewhere, apart, in_order
from holdfast.curvature.sharing import shared
from holdfast.curvature.together import regrouped
from holdfast.errors import OptionError
from holdfast.memory import Retained
from holdfast.records import Importance
from holdfast.tensors import (
    TensorMap,
    all_parameters,
    is_sharded,
    local,
    placed,
    shard,
    shards_of,
    trainable_parameters,
    wide_dtype,
)

_START = "start"


def with_own_layers(held: Retained, exchange: Exchange) -> Retained:
    """What is held whole, of its layers those that this process owns."""
    if exchange.shards is None or not held.layers:
        return held
    own, rest = apart(held.layers, exchange.owners(held.layers), exchange.rank)
    return replace(held, layers=own, elsewhere=rest)


def layers_to_hold(
    importance: Measured, held: Retained, exchange: Exchange
) -> tuple[Retained, dict[str, MeasuredLayer], dict[str, LayerElsewhere[Any]]]:
    """A new task's layers at the owners that they are to have, beside those of the tasks before.

    Args:
        importance: whole in every process, or of each process's own layers as it was measured on shards.
        held: of the tasks before.
        exchange: the processes.

    Returns:
        What is held, its layers where the new ones are; this process's new layers; and what is known of the new ones of
        others.

    Cost: of each layer that changes its owner one message.
    """
    known, shards = elsewhere_in(importance), exchange.shards
    new: dict[str, Any] = {**importance.layers, **known}
    if shards is None or not exchange.any(bool(new)):
        return held, dict(importance.layers), {}
    places = _owners_of_all(new, held, exchange)
    layers, rest = _at_owners(importance, places, exchange)
    kept, others = regrouped(held.layers, held.elsewhere, places, shards)
    return replace(held, layers=kept, elsewhere=others), layers, rest


def all_on_first(
    held: Retained, pulls: TensorMap, parameters: TensorMap, exchange: Exchange
) -> tuple[dict[str, Curvature], dict[str, Tensor]]:
    """All layers that are held, and where their next pulls start, for the first process alone, on its CPU.

    Cost: of each layer one message for each of its tensors.
    """
    shards, layers, starts = exchange.shards, held.all_layers, {}
    if shards is None or not layers:
        return dict(held.layers), dict(pulls)
    started = [total > 0 for total in shards.totals([float(name in pulls) for name in layers])]
    found: dict[str, Curvature] = {}
    for (name, layer), has_start in zip(layers.items(), started, strict=True):
        form = layer.layer if isinstance(layer, LayerElsewhere) else layer
        owner = layer.owner if isinstance(layer, LayerElsewhere) else exchange.rank
        parts = {**form.tensors(), **({_START: pulls.get(name, _start(form, parameters[name]))} if has_start else {})}
        there = _on_first(parts, owner, exchange)
        if shards.is_first:
            starts |= {name: there.pop(_START)} if has_start else {}
            found[name] = type(form).described(form.form, there, name=name, where="holding")[0]
    return shared(found), starts


def factors_at_owners(importance: Measured, held: Retained, exchange: Exchange) -> Mapping[str, MeasuredLayer]:
    """The layers of an importance that this process owns among those that are held."""
    new: dict[str, Any] = {**importance.layers, **elsewhere_in(importance)}
    if exchange.shards is None or not exchange.any(bool(new)):
        return importance.layers
    places = {**exchange.owners(new), **_holders(held, exchange)}
    return _at_owners(importance, {name: places[name] for name in new}, exchange)[0]


def diagonal_beside(importance: Measured, parameters: TensorMap, exchange: Exchange) -> dict[str, Tensor]:
    """The importance of parameters one by one: of a sharded model of this process's shards.

    Args:
        importance: of any kind; what it says of a layer may be in its owner alone.
        parameters: by name.
        exchange: the processes.

    Raises:
        OptionError: as `Measured.to_diagonal`.
    """
    found = {name: _beside(value, parameters.get(name)) for name, value in importance.to_diagonal().items()}
    known = elsewhere_in(importance)
    if exchange.any(bool(known)):
        new: dict[str, Any] = {**importance.layers, **known}
        layers, rest = _at_owners(importance, exchange.owners(new), exchange)
        shards = exchange.each({**layers, **rest}, lambda name: (), lambda name, layer: layer.split(_table(layer)))
        for name, values in shards:
            found |= zip(new[name].shapes(name), values, strict=True)
    return found


def with_all_diagonals(accepted: Measured, given: Measured, model: nn.Module, *, where: str) -> Measured:
    """An importance of single weights, where layers were measured in their owners alone: beside the model's shards.

    Args:
        accepted: as a mechanism takes it; unchanged if it holds layers.
        given: as it was measured.
        model: whose it is.
        where: for messages.

    Raises:
        OptionError: other processes have some of the layers, and this one has the whole model.
    """
    parameters, known = all_parameters(model), elsewhere_in(given)
    exchange = Exchange(shards_of(trainable_parameters(model)), parameters)
    if exchange.shards is None and known:
        raise OptionError(
            f"{where}: other processes have {len(known)} layers of this importance, such as {next(iter(known))!r}: it "
            "was measured on a sharded model, and this model is whole. Let all of them call importance.save(folder), "
            "and retain hf.FactoredImportance.load(folder)."
        )
    if not exchange.any(bool(known)) or exchange.any(bool(accepted.layers)):
        return accepted
    values = diagonal_beside(given, parameters, exchange)
    return Importance({name: placed(value, parameters[name]) for name, value in values.items()}, accepted.info)


def _table(layer: KroneckerFactors) -> Tensor:
    return torch.outer(blocks.diagonal(layer.outputs), blocks.diagonal(layer.inputs)).clamp(min=0)


def _beside(value: Tensor, parameter: Tensor | None) -> Tensor:
    """What lies beside this process's shard of a parameter, of a tensor that is whole, or lies there already."""
    if parameter is None or (not is_sharded(value) and value.shape == local(parameter).shape):
        return value
    return shard(value, parameter) if value.shape == parameter.shape else value


def _at_owners(
    importance: Measured, places: Mapping[str, int], exchange: Exchange
) -> tuple[dict[str, MeasuredLayer], dict[str, LayerElsewhere[Any]]]:
    shards, known = exchange.shards, elsewhere_in(importance)
    assert shards is not None
    if not exchange.any(bool(known)):  # every process has them all
        return apart(importance.layers, places, exchange.rank)
    if shards.copies == 1:
        return regrouped(importance.layers, known, places, shards)
    return _in_every_copy(importance, places, exchange)


def _in_every_copy(
    importance: Measured, places: Mapping[str, int], exchange: Exchange
) -> tuple[dict[str, MeasuredLayer], dict[str, LayerElsewhere[Any]]]:
    """Layers of which one process alone has each, at the owner that every copy of the model has."""
    shards, known = exchange.shards, elsewhere_in(importance)
    assert shards is not None
    own: dict[str, MeasuredLayer] = {}
    rest: dict[str, LayerElsewhere[Any]] = {}
    for place, name in enumerate(in_order(importance.layers, known)):
        layer: Any = importance.layers.get(name)
        source, form = (known[name].owner, known[name].layer) if name in known else (exchange.rank, layer)
        to = places[name]
        if exchange.rank == to and name in known:
            device, filled = shards.mesh.device_type, form.tensors()
            layer = replace(form, **{part: torch.empty_like(t, device=device) for part, t in filled.items()})
        for owner in exchange.beside(to):
            if exchange.rank in (source, owner):
                for part in layer.tensors().values():
                    shards.hand_over(part, source, owner)
        if exchange.rank == to:
            own[name] = layer
        else:
            rest[name] = LayerElsewhere(to, place, form.to("meta"))
    return own, rest


def _owners_of_all(new: Mapping[str, Any], held: Retained, exchange: Exchange) -> dict[str, int]:
    """The owner of each layer, new or held."""
    places = {**exchange.owners(new), **_holders(held, exchange)}
    first: dict[str, int] = {}
    for name in sorted(new):
        layer = new[name].layer if isinstance(new[name], LayerElsewhere) else new[name]
        if isinstance(layer, LayerForm) and layer.reads is not None:
            places[name] = first.setdefault(layer.reads, places[name])
    return places


def _holders(held: Retained, exchange: Exchange) -> dict[str, int]:
    return {**dict.fromkeys(held.layers, exchange.rank), **{n: layer.owner for n, layer in held.elsewhere.items()}}


def _on_first(parts: TensorMap, owner: int, exchange: Exchange) -> dict[str, Tensor]:
    """The parts of a layer for the first process, on its CPU."""
    shards = exchange.shards
    assert shards is not None
    if shards.first not in exchange.members:  # another copy of the model tells it
        return {}
    found = {}
    for part, tensor in parts.items():
        there = tensor if exchange.rank == owner else torch.empty_like(tensor, device=shards.mesh.device_type)
        shards.hand_over(there, owner, shards.first)
        if shards.is_first:
            found[part] = there.cpu()
    return found


def _start(layer: Curvature, weight: Tensor) -> Tensor:
    """Where a pull starts, of its shape alone."""
    return torch.empty_like(layer.spectrum, dtype=wide_dtype(weight), device="meta")
