"""Old skills held while LoRA adapters learn: the importance of the base weights on the product s B A.

The mathematics is in `holdfast.memory.adapters`, and where an importance belongs in `peft_layers`. What learns beside
the adapters (`modules_to_save`, biases, norms) and has an importance is held as `EWC` holds it: all that was measured
and is trained is held, or refused.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from holdfast.curvature import Accumulate, AnyImportance, Weighting
from holdfast.errors import FileFormatError, OptionError, ParameterMismatchError
from holdfast.files import Saved, new_folder, read_folder, write_description, write_tensors, write_text
from holdfast.integrations.peft_layers import assigned, base_weights, lora_adapters
from holdfast.memory import Retained
from holdfast.memory.adapters import Adapter, AdapterCurvature
from holdfast.memory.stored import num_positive
from holdfast.records import Importance, ImportanceInfo, check_importance_values, check_tensors
from holdfast.retention import Keeper, Report, Step
from holdfast.retention.checks import check_finite
from holdfast.retention.ewc import Elastic
from holdfast.retention.files import DESCRIPTION, check_options, option_from_json, option_to_json
from holdfast.retention.mechanism import check_strength
from holdfast.steps import UserMetric, metric_values, step_metrics
from holdfast.tensors import is_sharded, sum_of, trainable_parameters
from holdfast.version import __version__

__all__ = ["LoraEWC", "base_weights"]

_OPTIONS = ("strength", "every", "adapter", "accumulate", "weighting", "log_every")


@dataclass
class LowRank(Elastic):
    """The elastic pull on the products of adapters, and on what learns beside them; `LoraEWC` has the options.

    Attributes:
        adapters: that are held.
        curvatures: weight of the base model -> what is held of it; empty before the first task is closed.
        nats_per_unit: of `curvatures`; 0 where it is not known.
    """

    name: ClassVar[str] = "LoraEWC"

    adapter: str = "default"
    adapters: Sequence[Adapter] = field(default=(), init=False)
    curvatures: dict[str, AdapterCurvature] = field(default_factory=dict, init=False)
    nats_per_unit: float = field(default=0.0, init=False)

    def before(self, step: Step) -> None:
        """Copy the factors, in a measured step."""
        step.memory["before"] = {p: p.detach().clone() for p in self.factors()} if step.is_measured else {}

    def gradients(self, step: Step) -> None:
        """Note which factors this step moves, of an optimizer that lets go of its gradients within too."""
        step.memory["moved"] = {p for p in self.factors() if p.grad is not None}

    def after(self, step: Step) -> None:
        """Pull both factors of each adapter, B first, and then the weights beside them."""
        assert self.strength is not None
        groups = {id(p): group for group in step.optimizer.param_groups for p in group["params"]}
        for curvature in self.placed() if self.strength > 0 else ():
            for factor in ("second", "first"):
                parameter: nn.Parameter = getattr(curvature.adapter, factor)
                if id(parameter) not in groups or parameter not in step.memory["moved"]:
                    continue
                described = step_metrics(step.optimizer, groups[id(parameter)], [parameter], user_metric=self.metric)
                metric = metric_values(described, [parameter])
                metric = metric[0] if isinstance(metric, list) else metric
                if not isinstance(metric, Tensor) and metric == math.inf:  # a learning rate of zero: nothing moves
                    continue
                pull = curvature.pull(factor, self.strength * self.every, metric=metric)
                if step.is_measured:
                    step.measure([parameter.detach() - step.memory["before"][parameter]], [pull], [], [])
                parameter.detach().sub_(pull.to(parameter.dtype))
        super().after(step)

    def check(self, optimizer: Optimizer) -> Iterator[str]:
        """Whether it trains both factors of every adapter; and as `Elastic`."""
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        named = {p: a.name for a in self.adapters for p in (a.first, a.second) if p.requires_grad}
        if any(is_sharded(p) for p in named):
            raise OptionError("LoraEWC: the model is sharded, and adapters are held whole. Train it under DDP instead.")
        missing = dict.fromkeys(name for p, name in named.items() if id(p) not in trained)
        if missing:
            raise ParameterMismatchError(
                f"LoraEWC: this {type(optimizer).__name__} does not train both factors of the adapters of "
                f"{', '.join(map(repr, missing))}. Build it from all parameters of the model that require gradients."
            )
        yield from super().check(optimizer)

    def factors(self) -> list[nn.Parameter]:
        """B and A of each adapter."""
        return [p for a in self.adapters for p in (a.second, a.first)]

    def placed(self) -> list[AdapterCurvature]:
        """What is held, where the adapters are now."""
        self.curvatures = {name: c.to(c.adapter.first.device) for name, c in self.curvatures.items()}
        return list(self.curvatures.values())

    def join(self, importance: Mapping[str, Tensor], nats: float, rule: Accumulate, *, num_tasks: int) -> None:
        """Close a task: its importance by weight of the base model, with its factor to nats."""
        before, now = (sum_of(v.sum() for v in some.values()) for some in (self.diagonal(), importance))
        weighed = self.nats_per_unit * before + nats * now
        self.nats_per_unit = weighed / (before + now) if before + now else nats
        self.curvatures = {
            a.name: self.curvatures[a.name].joined(importance[a.name], rule, num_tasks=num_tasks)
            if num_tasks
            else AdapterCurvature.of(a, importance[a.name])
            for a in self.adapters
        }

    def diagonal(self) -> dict[str, Tensor]:
        """Weight of the base model -> its importance."""
        return {name: curvature.diagonal() for name, curvature in self.curvatures.items()}

    def progress(self) -> dict[str, float]:
        """The factor to nats too."""
        return {**super().progress(), "nats_per_unit": self.nats_per_unit}

    def resume(self, progress: Mapping[str, float], held: Retained, *, where: str) -> None:
        """Go on from it."""
        super().resume(progress, held, where=where)
        self.nats_per_unit = progress["nats_per_unit"]


class LoraEWC(Keeper):
    """Elastic weight consolidation of a base model whose LoRA adapters learn (see this module).

    The base model is untouched, in full precision or quantised. Where its importance is zero the adapter is free, and
    so is a trained parameter that no importance covers, such as a new head. Adapters are best in float32, as PEFT makes
    them.

    Args:
        model: a PEFT model with LoRA on linear layers, embeddings or convolutions, however it was started.
        importance: of a first task, to be retained at once.
        strength: lambda, 0..inf; with Fisher importances N_old/N_new is the Laplace value. It may be changed later.
        every: steps from one pull to the next, as for `EWC`.
        adapter: name of the adapter that learns.
        metric: M of a factor's step, for optimizers other than SGD and Adam, as for `EWC`.
        accumulate: "sum", "mean", "max" or `Decayed`: how a task's importance joins the earlier ones; the anchor is
            where the model stood at the last `retain`.
        weighting: "task" or "examples", as for `EWC`.
        log_every: every so many steps the pull is measured and a line logged; 0: never.

    Raises:
        OptionError: an option out of its range.
        ParameterMismatchError: the model has no adapter of this name.
        UnsupportedLayerError: the product of an adapter is not all it adds (DoRA, biases of its own), or it is on
            another kind of layer. What `retain` raises.

    Cost: memory of the importances of the adapted weights (the first task's are shared with what `retain` is given) and
    one layer's temporaries; each pull as many operations as a forward pass of r (r + 1) tokens through the adapted
    layers, and a system of r unknowns for every row and column.
    """

    mechanism: LowRank

    def __init__(
        self,
        model: nn.Module,
        importance: Mapping[str, Tensor] | AnyImportance | None = None,
        *,
        strength: float = 1.0,
        every: int = 1,
        adapter: str = "default",
        metric: UserMetric | None = None,
        accumulate: Accumulate = "sum",
        weighting: Weighting = "task",
        log_every: int = 100,
    ) -> None:
        if accumulate == "per_task":
            raise OptionError(
                'LoraEWC: accumulate is "per_task", and anchors that are joined weight by weight are no product of low '
                'rank. Use "sum", "mean", "max" or Decayed(gamma).'
            )
        mechanism = LowRank(strength, every=every, metric=metric, adapter=adapter)
        mechanism.adapters = lora_adapters(model, adapter)
        options: dict[str, Any] = {"accumulate": accumulate, "weighting": weighting, "log_every": log_every}
        super().__init__(model, mechanism, new_parameters="free", **options)
        if importance is not None:
            self.retain(importance)

    @property
    def strength(self) -> float | None:
        """Lambda, 0..inf; it may be changed between steps."""
        return self.mechanism.strength

    @strength.setter
    def strength(self, value: float) -> None:
        check_strength(value, where="LoraEWC")
        self.mechanism.strength = value

    @torch.no_grad()
    def retain(self, importance: Mapping[str, Tensor] | AnyImportance) -> Self:
        """Close a task: merge its importance into what is held, and hold to today's weights and products.

        Args:
            importance: of the base model's weights, under their names there, measured before the adapters were added or
                loaded; of a later task under those of the model with adapters, measured within `base_weights`. Of
                Kronecker factors the diagonal is taken.

        Raises:
            ParameterMismatchError: adapted weights without an importance or of another shape, or trained parameters
                that change what was measured and cannot be held (other adapters, single tokens).
            UnsupportedLayerError: a weight tied to another that does not learn with it, measured as one.
            NotFiniteError, OptionError: as `EWC.retain`.

        Nothing is changed when it raises.
        """
        given: Any = importance
        if not hasattr(given, "to_diagonal"):
            check_tensors(given, where="LoraEWC.retain", error=OptionError)
            given = Importance(dict(given), ImportanceInfo(kind="custom", num_examples=0))
        given = given.to_diagonal()
        adapters, info = self.mechanism.adapters, given.info
        of_adapters, of_others = assigned(self.model, adapters, given)
        factors = {n: p for a in adapters for n, p in zip(a.names, (a.first, a.second), strict=True)}
        check_finite(factors, where="LoraEWC.retain", what="factors of adapters", remedy="Go back to a checkpoint.")
        num_tasks = self.held.num_tasks
        super().retain(Importance(of_others, info))
        if self.weighting == "examples" and num_tasks:
            share = info.num_examples / self.held.first_examples
            of_adapters = {name: share * value for name, value in of_adapters.items()}
        self.mechanism.join(of_adapters, info.nats_per_unit or 0.0, self.accumulate, num_tasks=num_tasks)
        return self

    @torch.no_grad()
    def predicted_rise(self, reference: Mapping[str, Tensor] | None = None) -> float:
        """How much the old tasks' loss has risen by the quadratic model: 1/2 sum Omega (W - anchor)^2, >= 0.

        W is a base weight with what its adapter adds, or a weight that learns beside the adapters.

        Returns:
            Nats, where the importances know their factor; else in their own unit.

        Raises:
            OptionError: a reference is given.
        """
        if reference is not None:
            raise OptionError("LoraEWC.predicted_rise: it is told from the products held, and takes no reference.")
        factor = 1.0 if self.held.nats_per_unit is None else self.mechanism.nats_per_unit
        return factor * sum_of(c.rise() for c in self.mechanism.placed()) + super().predicted_rise()

    def report(self) -> Report:
        """As `EWC.report`; `protected` is the share of the adapted base weights and all else that learns."""
        factors = {id(p) for p in self.mechanism.factors()}
        beside = sum(p.numel() for p in trainable_parameters(self.model).values() if id(p) not in factors)
        weights = sum(a.shape.numel() for a in self.mechanism.adapters) + beside
        held = (*self.mechanism.diagonal().values(), *self.held.importance.values())
        return replace(super().report(), protected=sum_of(num_positive(value) for value in held) / weights)

    def options(self) -> dict[str, Any]:
        """The constructor's options but the model and a metric."""
        options = super().options()
        return {name: options[name] for name in _OPTIONS}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the folder `path`: tensors, `keeper_config.json` and a `README.md`; whole or not at all.

        Raises:
            OutputError: if it cannot be written, or holds what holdfast did not write; it is then unchanged.
        """
        tensors, notes = self.state()
        options = {name: option_to_json(value) for name, value in self.options().items()}
        content = {"mechanism": self.name, "library_version": __version__, "options": options, "notes": notes}
        with new_folder(path) as folder:
            write_tensors(folder, "state", tensors)
            write_description(folder / DESCRIPTION, content)
            write_text(folder / "README.md", _CARD.format(tasks=self.held.num_tasks, version=__version__))

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: nn.Module, **options: Any) -> Self:
        """A keeper as `save` wrote it, for a model with the same adapters; `options` replace the saved ones.

        The model's weights are not touched: load the adapters too.

        Raises:
            FileFormatError: a missing, truncated, edited or wrong-version file, or another mechanism's folder.
            ParameterMismatchError: names or shapes that do not match `model`.
        """
        saved, tensors, notes = read_folder(path, _saved)
        keeper = cls(model, **{**saved, **options})
        keeper.load_state(tensors, notes)
        return keeper

    def restore(self, path: str | os.PathLike[str]) -> Self:
        """Go on from what `save` wrote; the options stay those of this keeper. Raises as `load`, changing nothing."""
        _, tensors, notes = read_folder(path, _saved)
        self.load_state(tensors, notes)
        return self

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that going on to the same bits needs, for a training checkpoint: tensors, and JSON notes."""
        tensors, notes = super().state()
        for name, curvature in self.mechanism.curvatures.items():
            tensors |= {f"adapters/{part}/{name}": tensor for part, tensor in curvature.tensors().items()}
        return tensors, notes

    def load_state(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Go on from what `state` gave.

        Raises:
            FileFormatError, NotFiniteError: what was saved is damaged.
            ParameterMismatchError: names or shapes that do not match the model and its adapters.

        Nothing is changed when it raises.
        """
        where = "LoraEWC.load_state"
        check_tensors(tensors, where=where, error=FileFormatError)
        own = {name.removeprefix("adapters/"): t for name, t in tensors.items() if name.startswith("adapters/")}
        curvatures = _curvatures(self.mechanism.adapters, own, where=where)
        held = notes.get("held") if isinstance(notes, Mapping) else None
        if isinstance(held, Mapping) and bool(own) != bool(held.get("num_tasks")):
            raise FileFormatError(f"{where}: tensors and number of tasks contradict each other. Save the keeper again.")
        super().load_state({name: t for name, t in tensors.items() if not name.startswith("adapters/")}, notes)
        self.mechanism.curvatures = curvatures


def _curvatures(
    adapters: Sequence[Adapter], tensors: Mapping[str, Tensor], *, where: str
) -> dict[str, AdapterCurvature]:
    """What tensors by "part/weight" hold of these adapters; nothing where there are none."""
    shapes = ((a.name, AdapterCurvature.shapes(a)) for a in adapters if tensors)
    expected = {f"{part}/{name}": shape for name, parts in shapes for part, shape in parts.items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    wrong = sorted(name for name in {**found, **expected} if found.get(name) != expected.get(name))
    if wrong:
        named = "; ".join(f"{n!r} is {found.get(n, 'missing')}, expected {expected.get(n, 'none')}" for n in wrong)
        raise ParameterMismatchError(
            f"{where}: {len(wrong)} tensors are not those of this model's adapters: {named}. Add the same adapters."
        )
    check_importance_values({n: t for n, t in tensors.items() if n.startswith("importance/")}, where=where)
    check_finite(tensors, where=where, what="factors", remedy="Save the keeper again, or take an older copy.")
    parts = [(a, {part: tensors[f"{part}/{a.name}"] for part in AdapterCurvature.shapes(a)}) for a in adapters if found]
    return {a.name: AdapterCurvature(a, **of_adapter) for a, of_adapter in parts}


def _saved(saved: Saved) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """Options, tensors and notes of a folder."""
    content = saved.description(DESCRIPTION)
    if content.get("mechanism") != LowRank.name:
        raise FileFormatError(
            f"{saved.path}: this keeper is {content.get('mechanism')!r}, to be loaded as {LowRank.name!r}. "
            f"Use hf.{content.get('mechanism')}.load."
        )
    if not all(isinstance(content.get(part), dict) for part in ("options", "notes")):
        raise FileFormatError(f"{saved.path}: 'options' or 'notes' is missing or damaged. Save the keeper again.")
    check_options(content["options"], _OPTIONS, where=saved.path, kind=LowRank.name)
    options = {name: option_from_json(value) for name, value in content["options"].items()}
    return options, saved.tensors("state"), content["notes"]


_CARD = """# Skills of a base model, held on its LoRA adapters

Saved with holdfast {version}: {tasks} tasks.

    from holdfast.integrations.peft import LoraEWC
    keeper = LoraEWC.load("THIS FOLDER", model).attach(optimizer)
"""
