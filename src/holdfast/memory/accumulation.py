"""How a new task's importance joins that of the earlier ones.

With f the importance of task t + 1, F what is held of the first t, theta the weights now:

    "sum"        F + f                        anchors theta
    "mean"       (f + t F) / (t + 1)          anchors theta
    Decayed(g)   g F + f                      anchors theta      (online EWC)
    "max"        max(F, f)                    anchors theta
    "per_task"   F' = F + f                   anchors m' = m + f/F' (theta - m), theta where F' = 0

`per_task` is the penalty with a separate anchor for every task, collapsed exactly into one:
sum_k F_k (x - theta_k)^2 = F (x - m)^2 + constant. Memory and cost are those of one task under every rule.

Layers join by the same rules, those with Kronecker factors by all but "max" (`holdfast.curvature`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from holdfast.curvature import Accumulate, Curvature, MeasuredLayer, Weighting, shapes_of
from holdfast.curvature.exchange import ALONE, Exchange
from holdfast.curvature.owners import LayerElsewhere, in_order
from holdfast.curvature.rules import check_rule, shares_of
from holdfast.curvature.sharing import joined_layers, shared
from holdfast.errors import OptionError
from holdfast.memory.forms import Forms
from holdfast.memory.merge import Closing, Merger, Sums
from holdfast.memory.stored import AnyTensor, AnyTensorMap, shapes_of_any
from holdfast.tensors import TensorMap


@dataclass(frozen=True)
class Retained:
    """What is held of the tasks closed so far.

    Attributes:
        importance: name -> the accumulated importance, >= 0: a float32 tensor, or a form that takes less memory
            (`holdfast.memory.forms`).
        anchors: name -> where the elastic force is zero, likewise; empty for mechanisms without anchors.
        constant: the part of 1/2 sum F (x - theta_k)^2 that no weights can lower (`per_task` alone).
        start: 1/2 sum F (theta - anchor)^2 for theta the weights at the last retain; above zero under `per_task`, and
            by little where anchors are rounded.
        num_tasks: tasks closed.
        first_targets: number of targets of the first importance, the unit of `weighting="examples"`.
        nats_per_unit: what turns the importance's unit into nats, averaged over tasks by their total
            importance; None where one task's is not known.
        scatter: the factor within which real rises were as foreseen along made-up lessons, the largest of the tasks';
            None where one task's was not calibrated.
        largest: largest entry of `importance` as it is held.
        layers: weight -> the curvature of its layer, for layers whose parameters are in no `importance`; of a model
            that is spread over processes those that this one owns.
        elsewhere: weight -> what is known of the layers that other processes own.
    """

    importance: AnyTensorMap = field(default_factory=dict)
    anchors: AnyTensorMap = field(default_factory=dict)
    constant: float = 0.0
    start: float = 0.0
    num_tasks: int = 0
    first_targets: int = 0
    nats_per_unit: float | None = None
    scatter: float | None = None
    largest: float = 0.0
    layers: Mapping[str, Curvature] = field(default_factory=dict)
    elsewhere: Mapping[str, LayerElsewhere[Any]] = field(default_factory=dict)

    @property
    def all_layers(self) -> dict[str, Curvature | LayerElsewhere[Any]]:
        """Those of this process and those of others, in one order in every process."""
        names = in_order(self.layers, self.elsewhere)
        return {name: self.layers[name] if name in self.layers else self.elsewhere[name] for name in names}

    @property
    def covered(self) -> dict[str, Tensor]:
        """Name -> a tensor of the parameter's shape, for every parameter that is held, alone or in a layer."""
        return {**shapes_of_any(self.importance), **shapes_of(self.all_layers)}


def retain(
    held: Retained,
    importance: TensorMap,
    *,
    weights: TensorMap,
    layers: Mapping[str, MeasuredLayer] | None = None,
    elsewhere: Mapping[str, LayerElsewhere[Any]] | None = None,
    rule: Accumulate = "sum",
    weighting: Weighting = "task",
    num_targets: int = 0,
    nats_per_unit: float | None = None,
    scatter: float | None = None,
    forms: Forms | None = None,
    references: AnyTensorMap | None = None,
    exchange: Exchange = ALONE,
) -> Retained:
    """What is held after one more task.

    Args:
        held: what is held of the tasks before it.
        importance: the new task's, name -> float32 tensor >= 0; a weight held before and missing here counts as
            zero for this task.
        weights: the weights now, which become the anchors; empty for a mechanism without anchors. A weight held
            before and missing here keeps its anchor.
        layers: the new task's, by weight; with anchors only. Of a model that is spread over processes those that this
            one owns, now and among those that are held.
        elsewhere: what is known of the new task's layers that others own.
        rule: how importances join, see above.
        weighting: "task" counts every task the same; "examples" multiplies an importance by its number of targets
            over that of the first task: examples, but of sequences each label that counts.
        num_targets: targets the new importance is a mean over; needed for weighting by them.
        nats_per_unit: the new importance's factor to nats, or None.
        scatter: of that factor, where it was calibrated.
        forms: that importances and anchors are held in; None for float32. Anchors of layers stay tensors.
        references: name -> anchor on disk, equal to the weight, for those that are not to be held in memory.
        exchange: the processes whose shards of one model these weights are, and who own its layers.

    Returns:
        A new record that shares no memory with `importance` or `weights`.

    Raises:
        OptionError: an unknown rule or weighting, weighting by targets without their number, or a rule that a layer
            does not have.

    Cost: one pass over the weights, no passes over data; for Kronecker factors an eigendecomposition of
        each layer's inputs and outputs, one of inputs that several layers read.
    """
    check_rule(rule)
    first_targets = held.first_targets or num_targets
    share = 1.0
    if weighting == "examples":
        if num_targets < 1 or first_targets < 1:
            raise OptionError('retain: weighting="examples" needs importances that know their number of targets.')
        share = num_targets / first_targets
    elif weighting != "task":
        raise OptionError(f'retain: weighting is {weighting!r}; expected "task" or "examples".')
    if rule == "per_task" and not weights:
        raise OptionError('retain: accumulate="per_task" joins anchors, and this mechanism has none. Use "sum".')
    joint = exchange.together(lambda: _joined_layers(held, layers or {}, rule, share=share), where="retain")
    merger = Merger(rule, num_tasks=held.num_tasks, share=share, forms=forms or Forms())
    joined: dict[str, AnyTensor] = {}
    anchors: dict[str, AnyTensor] = {}
    for name in dict.fromkeys([*importance, *held.importance]):
        closing = Closing(
            held=held.importance.get(name),
            new=importance[name].detach() if name in importance else None,
            mean=held.anchors.get(name),
            theta=weights.get(name),
            reference=(references or {}).get(name),
        )
        joined[name], anchor = merger.merge(closing)
        if anchor is not None:
            anchors[name] = anchor
    means = {name: anchor for name, anchor in held.anchors.items() if isinstance(anchor, Tensor)}
    now = {**means, **weights} if weights else {}
    others = _joined_elsewhere(held, layers or {}, elsewhere or {}, rule, share=share, forms=forms or Forms())
    in_layers = shapes_of(  # in one order in every process
        {name: joint[name][0] if name in joint else others[name] for name in in_order(joint, others)}
    )
    of_layers = {name: now[name].detach().clone() for name in in_layers if name in now}
    costs, rises = exchange.sum_of(merger.sums.costs), exchange.sum_of(merger.sums.rises)
    if rule == "per_task":
        more_costs, more_rises = _collapse_layers(
            joint, held, others, means=means, anchors=of_layers, exchange=exchange
        )
        costs, rises = costs + more_costs, rises + more_rises
    return Retained(
        importance=joined,
        anchors=anchors | of_layers,
        constant=held.constant + costs if rule == "per_task" else 0.0,
        start=rises,
        num_tasks=held.num_tasks + 1,
        first_targets=first_targets,
        nats_per_unit=_factor(held, merger.sums, joint, nats_per_unit, sum_of=exchange.sum_of),
        scatter=_scatter(held, scatter),
        largest=max((float(value) for value in merger.sums.largest), default=0.0),
        layers=shared(
            {name: _in_form(layer, forms or Forms(), num_tasks=held.num_tasks) for name, (layer, _) in joint.items()}
        ),
        elsewhere=others,
    )


_Joint = dict[str, "tuple[Curvature, Tensor | None]"]
"""Weight -> the curvature of its layer, and the newest task's part of its spectrum, None without one."""


def _in_form(layer: Curvature, forms: Forms, *, num_tasks: int) -> Curvature:
    """As it is to be held; a sum is rounded at random, and the same for every keeper."""
    device = layer.spectrum.device
    noise = torch.Generator(device).manual_seed(num_tasks) if num_tasks else None
    return forms.layer_as(layer, noise)


def _joined_layers(held: Retained, new: Mapping[str, MeasuredLayer], rule: Accumulate, *, share: float) -> _Joint:
    gone = {name: layer for name, layer in held.layers.items() if name not in new}
    keep = shares_of(rule, num_tasks=held.num_tasks)[0] if gone else 1.0
    found: _Joint = {name: (layer.scaled(keep), None) for name, layer in gone.items()}
    return {**found, **joined_layers(new, held.layers, rule, num_tasks=held.num_tasks, share=share)}


def _joined_elsewhere(
    held: Retained,
    new: Mapping[str, MeasuredLayer],
    elsewhere: Mapping[str, LayerElsewhere[Any]],
    rule: Accumulate,
    *,
    share: float,
    forms: Forms,
) -> dict[str, LayerElsewhere[Any]]:
    """What is known of the layers that others own, as they are after this task: joined without numbers."""
    newest = in_order(new, elsewhere)
    names = [*(name for name in in_order(held.layers, held.elsewhere) if name not in newest), *newest]
    found: dict[str, LayerElsewhere[Any]] = {}
    for place, name in enumerate(names):
        before, now = held.elsewhere.get(name), elsewhere.get(name)
        if now is not None:
            bare = None if before is None else before.layer
            joint, _ = now.layer.joined(bare, rule, num_tasks=held.num_tasks, share=share)
            found[name] = LayerElsewhere(now.owner, place, forms.layer_as(joint))
        elif before is not None:
            found[name] = LayerElsewhere(before.owner, place, before.layer)
    return found


def _collapse_layers(
    joint: _Joint,
    held: Retained,
    elsewhere: Mapping[str, LayerElsewhere[Any]],
    *,
    means: TensorMap,
    anchors: dict[str, Tensor],
    exchange: Exchange,
) -> tuple[float, float]:
    """Move the anchors of layers from theta to where those of all tasks balance, in place.

    Returns:
        What separate anchors cost for good, and the rise at theta, as for single weights.
    """
    costs, rises = [], []
    own, before = {name: layer for name, (layer, _) in joint.items()}, held.all_layers
    layers = {name: layer for name, layer in {**own, **elsewhere}.items() if name in before}
    names = {name: list(layer.shapes(name)) for name, layer in layers.items()}

    def ask(name: str) -> list[list[Tensor]]:
        return [[tensors[n].float() for n in names[name]] for tensors in (anchors, means)]

    def collapsed(name: str, layer: Curvature, theta: list[Tensor], mean: list[Tensor]) -> list[Tensor]:
        newest = joint[name][1]
        part = torch.zeros_like(layer.spectrum) if newest is None else newest
        moved, cost, rise = layer.collapsed(part, theta, mean)
        costs.append(cost)
        rises.append(rise)
        return moved

    for name, moved in exchange.each(layers, ask, collapsed):
        anchors |= {n: value.to(anchors[n]) for n, value in zip(names[name], moved, strict=True)}
    return exchange.sum_of(costs), exchange.sum_of(rises)


def _scatter(held: Retained, scatter: float | None) -> float | None:
    if held.num_tasks == 0 or scatter is None:
        return scatter
    return None if held.scatter is None else max(held.scatter, scatter)


def _factor(
    held: Retained,
    sums: Sums,
    layers: _Joint,
    nats_per_unit: float | None,
    *,
    sum_of: Callable[[Iterable[Tensor]], float],
) -> float | None:
    if held.num_tasks == 0 or held.nats_per_unit == nats_per_unit:
        return nats_per_unit
    if held.nats_per_unit is None or nats_per_unit is None:
        return None
    own = [part.sum() for _, part in layers.values() if part is not None]
    before = sum_of([*sums.before, *(layer.spectrum.sum(dtype=torch.float32) for layer in held.layers.values())])
    now = sum_of([*sums.now, *own])
    total = before + now
    return (held.nats_per_unit * before + nats_per_unit * now) / total if total > 0 else nats_per_unit
