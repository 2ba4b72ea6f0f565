"""Old skills held while LoRA adapters learn: the importance of the base weights on the product s B A.

The mathematics is in `holdfast.memory.adapters`. What learns beside the adapters (`modules_to_save`, biases, norms) and
has an importance is held by an `EWC` of its own: all that was measured and is trained is held, or refused.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from holdfast.errors import FileFormatError, HoldfastError, OptionError, ParameterMismatchError
from holdfast.files import Saved, new_folder, read_folder, write_description, write_tensors, write_text
from holdfast.integrations.peft_layers import assigned, base_weights, lora_adapters
from holdfast.memory import Accumulate, Decayed, Weighting
from holdfast.memory.adapters import Adapter, AdapterCurvature
from holdfast.memory.stored import num_positive
from holdfast.records import Importance, ImportanceInfo, check_importance_values, check_tensors
from holdfast.retention import EWC, Report
from holdfast.retention.checks import check_finite, check_progress
from holdfast.retention.files import DESCRIPTION, accumulate_to_json
from holdfast.retention.options import no_rate
from holdfast.steps import StepHooks, UserMetric, bare_optimizer, metric_values, step_metrics, unknown_rate
from holdfast.tensors import is_sharded, sum_of, trainable_parameters
from holdfast.version import __version__

__all__ = ["LoraEWC", "base_weights"]


_PROGRESS = ("num_steps", "pull_ratio", "nats_per_unit")


class _Others(EWC):
    """Holds what learns beside the adapters."""

    mechanism = "LoraEWC"


class LoraEWC:
    """Elastic weight consolidation of a base model whose LoRA adapters learn (see this module).

    The base model is untouched, in full precision or quantised. Where its importance is zero the adapter is free, and
    so is a trained parameter that no importance covers, such as a new head. Adapters are best in float32, as PEFT makes
    them.

    Args:
        model: a PEFT model with LoRA on linear layers, embeddings or convolutions, however it was started.
        importance: of a first task, to be retained at once.
        strength: lambda, 0..inf; with Fisher importances N_old/N_new is the Laplace value.
        adapter: name of the adapter that learns.
        metric: M of a factor's step, for optimizers other than SGD and Adam, as for `EWC`.
        accumulate: "sum", "mean", "max" or `Decayed`: how a task's importance joins the earlier ones; the anchor is
            where the model stood at the last `retain`.
        weighting: "task" or "examples", as for `EWC`.
        log_every: every so many steps the pull is measured, for `report`; 0: never.

    Attributes:
        adapters: that are held.
        curvatures: weight of the base model -> what is held of it; empty before the first `retain`.
        others: the keeper of what learns beside the adapters.

    Raises:
        OptionError: an option out of its range.
        ParameterMismatchError: the model has no adapter of this name.
        UnsupportedLayerError: the product of an adapter is not all it adds (DoRA, biases of its own), or it is on
            another kind of layer. What `retain` raises.

    Cost: memory of the importances of the adapted weights (the first task's are shared with what `retain` is given) and
    one layer's temporaries; each step as many operations as a forward pass of r (r + 1) tokens through the adapted
    layers, and a system of r unknowns for every row and column.
    """

    is_sharded = False
    """Adapters are held whole."""

    def __init__(
        self,
        model: nn.Module,
        importance: Mapping[str, Tensor] | None = None,
        *,
        strength: float = 1.0,
        adapter: str = "default",
        metric: UserMetric | None = None,
        accumulate: Accumulate = "sum",
        weighting: Weighting = "task",
        log_every: int = 100,
    ) -> None:
        if not (isinstance(log_every, int) and log_every >= 0):
            raise OptionError(f"LoraEWC: log_every is {log_every!r}; expected a whole number >= 0.")
        if accumulate == "per_task":
            raise OptionError(
                'LoraEWC: accumulate is "per_task", and anchors that are joined weight by weight are no product of low '
                'rank. Use "sum", "mean", "max" or Decayed(gamma).'
            )
        self.model, self.adapter, self.log_every = model, adapter, log_every
        self.adapters = lora_adapters(model, adapter)
        self.curvatures: dict[str, AdapterCurvature] = {}
        self.others = _Others(
            model,
            strength=strength,
            metric=metric,
            accumulate=accumulate,
            weighting=weighting,
            new_parameters="free",
            log_every=0,
        )
        self._nats_per_unit = 0.0
        self._hooks: list[StepHooks] = []
        self._before: dict[nn.Parameter, Tensor] = {}
        self._moved: set[nn.Parameter] = set()
        self._num_steps = 0
        self._pull_ratio: float | None = None
        if importance is not None:
            self.retain(importance)

    @property
    def strength(self) -> float:
        """Lambda, 0..inf; it may be changed between steps."""
        assert self.others.strength is not None
        return self.others.strength

    @strength.setter
    def strength(self, value: float) -> None:
        self.others.strength = value

    def attach(self, optimizer: Any) -> Self:
        """Hold this optimizer's steps back from now on, as `EWC.attach` does, with its warnings.

        Raises:
            StateError: it is attached to this optimizer already, or its steps cannot be followed.
            ParameterMismatchError: it trains some factors of the adapters and not the others.
            OptionError: it has no learning rate to take the metric of its steps from, or the model is sharded.
        """
        bare = bare_optimizer(optimizer)
        trained = {id(p) for group in bare.param_groups for p in group["params"]}
        factors = {p: a.name for a in self.adapters for p in (a.first, a.second) if p.requires_grad}
        if any(is_sharded(p) for p in factors):
            raise OptionError("LoraEWC: the model is sharded, and adapters are held whole. Train it under DDP instead.")
        missing = {name: None for p, name in factors.items() if id(p) not in trained}
        if missing:
            raise ParameterMismatchError(
                f"LoraEWC: this {type(bare).__name__} does not train both factors of the adapters of "
                f"{', '.join(map(repr, missing))}. Build it from all parameters of the model that require gradients."
            )
        if self.others.metric is None and (found := unknown_rate(bare)) is not None:
            raise OptionError(no_rate("LoraEWC", type(bare).__name__, found, remedy="Pass metric=, or: "))
        # first, so that what `others` watches for unheld moves is seen after the pull on the adapters
        hooks = StepHooks(bare, before=self._note, gradients=self._note_gradients, after=self._hold)
        try:
            self.others.attach(optimizer)
        except HoldfastError:
            hooks.remove()
            raise
        self._hooks.append(hooks)
        self._place()
        return self

    def detach(self) -> Self:
        """Take every hook off again; what is retained stays."""
        for hooks in self._hooks:
            hooks.remove()
        self._hooks.clear()
        self._before.clear()
        self.others.detach()
        return self

    @torch.no_grad()
    def retain(self, importance: Mapping[str, Tensor]) -> Self:
        """Close a task: merge its importance into what is held, and hold to today's weights and products.

        Args:
            importance: of the base model's weights, under their names there, measured before the adapters were added or
                loaded; of a later task under those of the model with adapters, measured within `base_weights`.

        Raises:
            ParameterMismatchError: adapted weights without an importance or of another shape, or trained parameters
                that change what was measured and cannot be held (other adapters, single tokens).
            UnsupportedLayerError: a weight tied to another that does not learn with it, measured as one.
            NotFiniteError, OptionError: as `EWC.retain`.

        Nothing is changed when it raises.
        """
        if hasattr(importance, "to_diagonal"):
            raise OptionError(
                "LoraEWC.retain: this importance has Kronecker factors, and products are held weight by weight. "
                "Retain importance.to_diagonal()."
            )
        if not isinstance(importance, Importance):
            check_tensors(importance, where="LoraEWC.retain", error=OptionError)
            importance = Importance(dict(importance), ImportanceInfo(kind="custom", num_examples=0))
        of_adapters, of_others = assigned(self.model, self.adapters, importance)
        factors = {n: p for a in self.adapters for n, p in zip(a.names, (a.first, a.second), strict=True)}
        check_finite(factors, where="LoraEWC.retain", what="factors of adapters", remedy="Go back to a checkpoint.")
        num_tasks, info = self.others.held.num_tasks, importance.info
        self.others.retain(Importance(of_others, info))
        if self.others.weighting == "examples" and num_tasks:
            share = info.num_examples / self.others.held.first_examples
            of_adapters = {name: share * value for name, value in of_adapters.items()}
        before = sum_of(c.importance.sum() for c in self.curvatures.values())
        now, factor = sum_of(value.sum() for value in of_adapters.values()), info.nats_per_unit or 0.0
        weighed = self._nats_per_unit * before + factor * now
        self._nats_per_unit = weighed / (before + now) if before + now else factor
        self.curvatures = {
            a.name: self.curvatures[a.name].joined(of_adapters[a.name], self.others.accumulate, num_tasks=num_tasks)
            if self.curvatures
            else AdapterCurvature.of(a, of_adapters[a.name])
            for a in self.adapters
        }
        self._num_steps, self._pull_ratio = 0, None
        return self

    @torch.no_grad()
    def predicted_rise(self) -> float:
        """How much the old tasks' loss has risen by the quadratic model: 1/2 sum Omega (W - anchor)^2, >= 0.

        W is a base weight with what its adapter adds, or a weight that learns beside the adapters.

        Returns:
            Nats, where the importances know their factor; else in their own unit.
        """
        factor = 1.0 if self.others.held.nats_per_unit is None else self._nats_per_unit
        return factor * sum_of(c.rise() for c in self.curvatures.values()) + self.others.predicted_rise()

    def report(self) -> Report:
        """Is it on, and does it work? `protected` is the share of the adapted base weights and all else that learns."""
        others = self.others.report()
        factors = {id(p) for a in self.adapters for p in (a.first, a.second)}
        beside = sum(p.numel() for p in trainable_parameters(self.model).values() if id(p) not in factors)
        weights = sum(a.shape.numel() for a in self.adapters) + beside
        protected = sum_of((c.importance > 0).sum() for c in self.curvatures.values())
        protected += sum_of(num_positive(value) for value in self.others.held.importance.values())
        return Report(
            mechanism="LoraEWC",
            num_tasks=others.num_tasks,
            num_steps=self._num_steps,
            strength=self.strength,
            protected=protected / weights,
            pinned=None,
            pull_ratio=self._pull_ratio,
            predicted_rise=self.predicted_rise(),
            rise_unit=others.rise_unit,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the folder `path`: tensors, `keeper_config.json` and a `README.md`; whole or not at all.

        Raises:
            OutputError: if it cannot be written, or holds what holdfast did not write; it is then unchanged.
        """
        tensors, notes = self.state()
        rule = accumulate_to_json(self.others.accumulate)
        options = {"strength": str(self.strength), "adapter": self.adapter, "accumulate": rule}
        options |= {"weighting": self.others.weighting, "log_every": self.log_every}
        content = {"mechanism": "LoraEWC", "library_version": __version__, "options": options, "notes": notes}
        with new_folder(path) as folder:
            write_tensors(folder, "state", tensors)
            write_description(folder / DESCRIPTION, content)
            write_text(folder / "README.md", _CARD.format(tasks=self.others.held.num_tasks, version=__version__))

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: nn.Module, **options: Any) -> Self:
        """A keeper as `save` wrote it, for a model with the same adapters; `options` replace the saved ones.

        The model's weights are not touched: load the adapters too.

        Raises:
            FileFormatError: a missing, truncated, edited or wrong-version file, or another mechanism's folder.
            ParameterMismatchError: names or shapes that do not match `model`.
        """
        content, tensors = read_folder(path, _saved)
        keeper = cls(model, **{**content["options"], **options})
        keeper.load_state(tensors, content["notes"])
        return keeper

    def restore(self, path: str | os.PathLike[str]) -> Self:
        """Go on from what `save` wrote; the options stay those of this keeper. Raises as `load`, changing nothing."""
        content, tensors = read_folder(path, _saved)
        self.load_state(tensors, content["notes"])
        return self

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that going on to the same bits needs, for a training checkpoint: tensors, and JSON notes."""
        others, notes = self.others.state()
        tensors = {f"others/{name}": tensor for name, tensor in others.items()}
        for name, curvature in self.curvatures.items():
            tensors |= {f"{part}/{name}": tensor for part, tensor in curvature.tensors().items()}
        progress = self._num_steps, self._pull_ratio, self._nats_per_unit
        return tensors, {"others": notes, "progress": dict(zip(_PROGRESS, progress, strict=True))}

    def load_state(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Go on from what `state` gave.

        Raises:
            FileFormatError, NotFiniteError: what was saved is damaged.
            ParameterMismatchError: names or shapes that do not match the model and its adapters.

        Nothing is changed when it raises.
        """
        curvatures, beside = _checked(self.adapters, tensors, notes, where="LoraEWC.load_state")
        self.others.load_state(beside, notes["others"])
        self.curvatures = curvatures
        self._place()
        self._num_steps, self._pull_ratio, self._nats_per_unit = (notes["progress"][name] for name in _PROGRESS)

    def _place(self) -> None:
        self.curvatures = {name: c.to(c.adapter.first.device) for name, c in self.curvatures.items()}

    def _factors(self) -> Iterator[nn.Parameter]:
        return (p for a in self.adapters for p in (a.second, a.first))

    @torch.no_grad()
    def _note(self, optimizer: Optimizer) -> None:
        if self.curvatures and self.log_every and self._num_steps % self.log_every == 0:
            self._before = {p: p.detach().clone() for p in self._factors()}

    def _note_gradients(self, optimizer: Optimizer) -> None:
        """Which factors this step moves, of an optimizer that lets go of its gradients within too."""
        self._moved = {p for p in self._factors() if p.grad is not None}

    @torch.no_grad()
    def _hold(self, optimizer: Optimizer) -> None:
        if not self.curvatures:
            return
        found = _pull(self.curvatures.values(), optimizer, self.others, moved=self._moved, before=self._before)
        if self._before:
            self._pull_ratio = found
        self._before = {}
        self._num_steps += 1


def _pull(
    curvatures: Iterable[AdapterCurvature],
    optimizer: Optimizer,
    options: EWC,
    *,
    moved: Collection[nn.Parameter],
    before: Mapping[nn.Parameter, Tensor],
) -> float | None:
    """Take both factors of each adapter back, and tell the length of the pull over that of the step from `before`."""
    strength = options.strength or 0.0
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    steps, pulls = [], []
    for curvature in curvatures if strength > 0 else ():
        for factor in ("second", "first"):
            parameter: nn.Parameter = getattr(curvature.adapter, factor)
            if id(parameter) not in groups or (parameter not in moved and parameter.grad is None):
                continue
            metric = _metric(optimizer, groups[id(parameter)], parameter, user_metric=options.metric)
            if metric is None:
                continue
            pull = curvature.pull(factor, strength, metric=metric)
            if before:
                steps.append((parameter.detach() - before[parameter]).float().square().sum())
                pulls.append(pull.square().sum())
            parameter.detach().sub_(pull.to(parameter.dtype))
    step = math.sqrt(sum_of(steps))
    return math.sqrt(sum_of(pulls)) / step if step else None


def _metric(
    optimizer: Optimizer, group: Mapping[str, Any], factor: nn.Parameter, *, user_metric: UserMetric | None
) -> float | Tensor | None:
    """M of one factor; None where the learning rate is zero."""
    found = metric_values(step_metrics(optimizer, group, [factor], user_metric=user_metric), [factor])
    metric = found[0] if isinstance(found, list) else found
    return metric if isinstance(metric, Tensor) or metric != math.inf else None


def _checked(
    adapters: Sequence[Adapter], tensors: Mapping[str, Tensor], notes: Mapping[str, Any], *, where: str
) -> tuple[dict[str, AdapterCurvature], dict[str, Tensor]]:
    """What a state holds of the adapters, and the tensors of what learns beside them."""
    check_tensors(tensors, where=where, error=FileFormatError)
    if not all(isinstance(notes.get(part), Mapping) for part in ("others", "progress")):
        raise FileFormatError(f"{where}: the notes lack 'others' or 'progress'. Save the keeper again.")
    check_progress(notes["progress"], names=_PROGRESS, where=where)
    beside = {name.removeprefix("others/"): t for name, t in tensors.items() if name.startswith("others/")}
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith("others/")}
    shapes = ((a.name, AdapterCurvature.shapes(a)) for a in adapters if own)
    expected = {f"{part}/{name}": shape for name, parts in shapes for part, shape in parts.items()}
    found = {name: tuple(tensor.shape) for name, tensor in own.items()}
    wrong = sorted(name for name in {**found, **expected} if found.get(name) != expected.get(name))
    if wrong:
        named = "; ".join(f"{n!r} is {found.get(n, 'missing')}, expected {expected.get(n, 'none')}" for n in wrong)
        raise ParameterMismatchError(
            f"{where}: {len(wrong)} tensors are not those of this model's adapters: {named}. Add the same adapters."
        )
    check_importance_values({n: t for n, t in own.items() if n.startswith("importance/")}, where=where)
    check_finite(own, where=where, what="factors", remedy="Save the keeper again, or take an older copy.")
    held = notes["others"].get("held")
    if not isinstance(held, Mapping) or bool(own) != bool(held.get("num_tasks")):
        raise FileFormatError(f"{where}: tensors and number of tasks contradict each other. Save the keeper again.")
    parts = [(a, {part: own[f"{part}/{a.name}"] for part in AdapterCurvature.shapes(a)}) for a in adapters if own]
    return {a.name: AdapterCurvature(a, **of_adapter) for a, of_adapter in parts}, beside


def _saved(saved: Saved) -> tuple[dict[str, Any], dict[str, Tensor]]:
    content = saved.description(DESCRIPTION)
    if content.get("mechanism") != "LoraEWC":
        raise FileFormatError(
            f"{saved.path}: this keeper is {content.get('mechanism')!r}, to be loaded as 'LoraEWC'. "
            f"Use hf.{content.get('mechanism')}.load."
        )
    if not all(isinstance(content.get(part), dict) for part in ("options", "notes")):
        raise FileFormatError(f"{saved.path}: 'options' or 'notes' is missing or damaged. Save the keeper again.")
    options, rule = content["options"], content["options"]["accumulate"]
    options["strength"] = float(options["strength"])
    options["accumulate"] = Decayed(rule["decayed"]) if isinstance(rule, dict) else rule
    return content, saved.tensors("state")


_CARD = """# Skills of a base model, held on its LoRA adapters

Saved with holdfast {version}: {tasks} tasks.

    from holdfast.integrations.peft import LoraEWC
    keeper = LoraEWC.load("THIS FOLDER", model).attach(optimizer)
"""
