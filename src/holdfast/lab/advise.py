"""What every method would cost for a model: memory and time, measured on a few batches of its own."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from holdfast.errors import HoldfastError, UnknownNameError
from holdfast.importance import measure, probes_of
from holdfast.importance.choosing import Choice, choose
from holdfast.lab.methods import IMPORTANCES, METHODS, Learner, Moment, Setting, build_learner, method_named
from holdfast.lab.methods.registry import MethodEntry
from holdfast.lab.methods.states import checked_state
from holdfast.lab.registry import all_options
from holdfast.lab.streams import Examples
from holdfast.lab.training import Losses, OptimizerName, build_optimizer
from holdfast.likelihoods.batches import batch_size, model_inputs
from holdfast.likelihoods.likelihood import Categorical, Likelihood, PerExample, resolve_likelihood
from holdfast.likelihoods.shift import decided
from holdfast.replay import Buffer
from holdfast.steps.descent import descend


@dataclass(frozen=True)
class Workload:
    """A model and a few batches to measure it on.

    Attributes:
        name: for people.
        model: on its device.
        batches: on the same device, in either form of `holdfast.likelihoods.batches`; at least one.
        setting: of the stream that it stands for.
        classes: the output columns of the first task's loss; None: all.
        loss: as the estimators take it: a name, a likelihood, or a function of (outputs, batch) that gives a loss for
            each example; None: "categorical".
    """

    name: str
    model: nn.Module
    batches: Sequence[Any]
    setting: Setting
    classes: tuple[int, ...] | None = None
    loss: str | Likelihood | Callable[[Any, Any], Tensor] | None = None

    @property
    def has_classes(self) -> bool:
        """Whether the loss is that of classes."""
        return isinstance(resolve_likelihood(self.loss, where="advise"), Categorical)

    @property
    def examples(self) -> Examples | None:
        """The batches as examples, where they are pairs of a tensor and class targets."""
        pairs = self.has_classes and all(
            isinstance(b, tuple) and isinstance(b[0], Tensor) and b[1].dim() == 1 for b in self.batches
        )
        if not pairs or self.batches[0][1].is_floating_point():
            return None
        return Examples(torch.cat([inputs for inputs, _ in self.batches]), torch.cat([y for _, y in self.batches]))

    @property
    def num_examples(self) -> int:
        """How many examples the batches hold."""
        return sum(batch_size(batch) for batch in self.batches)


@dataclass(frozen=True)
class MethodCost:
    """What a method costs.

    Attributes:
        method: its name.
        held_bytes: what it keeps from task to task beside the weights: importances, anchors, copies, a full buffer.
        step_ratio: median time of a training step in a second task over that of plain training, in turn with it.
        closing_seconds: time to close a task, by importances on as many examples as were asked for.
        peak_bytes: most memory in use during its steps; None on the CPU, where it cannot be told.
        lacking: why it cannot be had; the figures are then 0.
    """

    method: str
    held_bytes: int = 0
    step_ratio: float = 0.0
    closing_seconds: float = 0.0
    peak_bytes: int | None = None
    lacking: str = ""


@dataclass(frozen=True)
class MeasureCost:
    """What `hf.measure` takes for the model, by the same choice that it makes itself, and what that costs.

    Attributes:
        choice: form, labels and why.
        held_bytes: of the curvature and the anchors that a keeper holds, in float32.
        seconds: to measure as many examples as were asked for.
    """

    choice: Choice
    held_bytes: int
    seconds: float


@dataclass(frozen=True)
class Advice:
    """What all methods cost, and what plain training does.

    Attributes:
        model: name of the workload.
        device: as torch names it.
        optimizer: name of the optimizer.
        num_parameters: trainable ones.
        weight_bytes: parameters and buffers.
        gradient_bytes: one gradient.
        optimizer_bytes: the optimizer's state after a step.
        step_seconds: median of plain training's steps.
        batch_size: of the first batch.
        num_examples: that the closing of a task is told for.
        costs: one a method.
        measure: of `hf.measure`; None where it cannot measure the model on these batches.
    """

    model: str
    device: str
    optimizer: str
    num_parameters: int
    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    step_seconds: float
    batch_size: int
    num_examples: int
    costs: tuple[MethodCost, ...]
    measure: MeasureCost | None


def advise(
    workload: Workload,
    *,
    optimizer: OptimizerName = "adam",
    methods: Iterable[str] | None = None,
    num_examples: int = 10_000,
    rounds: int = 5,
    options: Mapping[str, Any] | None = None,
    on_method: Callable[[str], None] | None = None,
) -> Advice:
    """Measure what every method costs for a model.

    Each method closes a first task, measured on the batches, and then trains on them in turn with plain training, as
    in a second task. The model itself is left as it is: copies are trained.

    Args:
        workload: model and batches.
        optimizer: its state is part of the memory.
        methods: their names; None: all but those that keep all earlier data.
        num_examples: what grows with the examples in closing a task is scaled to so many.
        rounds: how often the batches are gone through, at least 1.
        options: of the methods, such as buffer_size. The Fisher is sampled where batches are no class targets of
            examples: the exact one of a language model takes a pass for every word and position.
        on_method: called with each method's name before it is measured.

    Raises:
        UnknownNameError: there is no such method, optimizer, option or loss; before anything is measured.
        OptionError: the loss is none.

    Cost: two copies of the model; for each method `rounds` + 3 passes over the batches, and its importance twice; and
    `hf.measure` once.
    """
    names = [name for name in METHODS if name not in ("joint", "cumulative")] if methods is None else methods
    chosen = [method_named(name) for name in names]
    for name in options or {}:
        if not any(name in all_options(method, {}) for method in chosen):
            raise UnknownNameError("option", name, {own for method in chosen for own in all_options(method, {})})
    is_function = isinstance(resolve_likelihood(workload.loss, where="advise"), PerExample)
    fisher = "exact" if workload.examples else "empirical" if is_function else "sampled"
    settings = {"strength": 1.0, "fisher": fisher, **(options or {})}
    plain = _Trained(METHODS["none"], workload, optimizer, settings)
    plain.steps()
    seconds, costs = [], []
    for method in chosen:
        if on_method is not None:
            on_method(method.name)
        cost, beside = _cost(method, plain, settings, rounds=rounds, num_examples=num_examples)
        costs.append(cost)
        seconds += beside
    trainable = [p for p in workload.model.parameters() if p.requires_grad]
    weights = [*workload.model.parameters(), *workload.model.buffers()]
    return Advice(
        model=workload.name,
        device=str(plain.device),
        optimizer=optimizer,
        num_parameters=sum(p.numel() for p in trainable),
        weight_bytes=_bytes(weights),
        gradient_bytes=_bytes(trainable),
        optimizer_bytes=_bytes(v for s in plain.optimizer.state.values() for v in s.values() if isinstance(v, Tensor)),
        step_seconds=statistics.median(seconds) / len(workload.batches) if seconds else 0.0,
        batch_size=batch_size(workload.batches[0]),
        num_examples=num_examples,
        costs=tuple(costs),
        measure=_measured(workload, plain.device, num_examples),
    )


def _measured(workload: Workload, device: torch.device, num_examples: int) -> MeasureCost | None:
    """The cost of `hf.measure`, on as many examples as the workload has and scaled."""
    batches, model = list(workload.batches), copy.deepcopy(workload.model)
    loss = workload.loss if workload.classes is None else Categorical(classes=workload.classes)
    try:
        choice = choose(model, batches[0], loss=loss)
        probes = probes_of(model, batches, loss=loss)
        seconds = _seconds(lambda: measure(model, batches, probes=probes, loss=loss), device)
    except HoldfastError:
        return None
    weights = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return MeasureCost(choice, round(4 * weights * (1 + choice.held)), seconds * num_examples / workload.num_examples)


class _Trained:
    """A copy of the model, trained with one method."""

    def __init__(
        self, method: MethodEntry, workload: Workload, optimizer: OptimizerName, settings: Mapping[str, Any]
    ) -> None:
        self.workload = workload
        self.learner: Learner = build_learner(method, copy.deepcopy(workload.model), workload.setting, settings)
        self.device = next(self.learner.model.parameters()).device
        self.optimizer_name: OptimizerName = optimizer
        pairs = workload.examples is not None  # their loss is the learner's
        likelihood = resolve_likelihood(workload.loss, where="advise")
        self._likelihood = likelihood if pairs else decided(likelihood, self.learner.model, workload.batches[0])
        if not workload.has_classes:
            self.learner.likelihood = likelihood
        self.open(0)
        self._columns = _columns(workload, self.device)

    def open(self, task: int) -> None:
        """Begin a task, on the same batches and with a new optimizer."""
        self._task = task
        self.optimizer: Optimizer = build_optimizer(self.optimizer_name, self.learner.model.parameters(), lr=1e-6)
        self.learner.attach(self.optimizer)
        self.learner.open_task(task, self.workload.examples or Examples(torch.empty(0), torch.empty(0)))

    def steps(self) -> None:
        """One optimizer step a batch; none where the method takes none in this task."""
        if not self.learner.trains(self._task):
            return
        count = len(self.workload.batches)
        self.learner.model.train()

        def after_step(batch: Any) -> None:
            if self.workload.examples is not None:
                self.learner.after_step(batch[0], batch[1], self._columns)

        descend(
            self.optimizer,
            self.workload.batches,
            self._loss,
            before_step=lambda step: self.learner.before_step(Moment(step, count, step, count)),
            after_step=after_step,
        )

    def close(self) -> None:
        """Close the task on the batches."""
        workload = self.workload
        data: Any = workload.examples or list(workload.batches)
        if workload.examples is not None:
            self.learner.after_training(self._task, workload.examples)
        self.learner.close_task(data, classes=workload.classes, task=self._task)

    def held_bytes(self) -> int:
        """What the method keeps; of a buffer, when it is full."""
        buffer = getattr(self.learner, "buffer", None)
        tensors, _ = checked_state(self.learner.state(), whose=type(self.learner).__name__)
        held = _bytes(tensors.values())
        return held * buffer.capacity // len(buffer) if isinstance(buffer, Buffer) and len(buffer) else held

    def _loss(self, batch: Any) -> Losses:
        if self.workload.examples is not None:
            return self.learner.loss(batch[0], batch[1], self._columns)
        args, kwargs = model_inputs(batch)
        return self._likelihood.nll(self.learner.model(*args, **kwargs), batch).mean(), None


def _cost(
    method: MethodEntry, plain: _Trained, settings: Mapping[str, Any], *, rounds: int, num_examples: int
) -> tuple[MethodCost, list[float]]:
    """The cost of a method, and the seconds that plain training took beside it."""
    workload = plain.workload
    if workload.examples is None and method.batches:
        return MethodCost(method.name, lacking="it needs batches of (inputs, class targets)"), []
    try:
        trained = _Trained(method, workload, plain.optimizer_name, settings)
        trained.steps()
        trained.close()  # the first time is not the usual one: memory is asked for, the model is looked into
        trained.open(1)
        trained.steps()
        closing = _seconds(trained.close, trained.device)
    except HoldfastError as error:
        return MethodCost(method.name, lacking=str(error)), []
    trained.steps()
    held = trained.held_bytes()  # with what only a step adds, such as what half precision rounds away of a pull
    if trained.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(trained.device)
    taken, beside = [], []
    for _ in range(rounds):
        beside.append(_seconds(plain.steps, plain.device))
        taken.append(_seconds(trained.steps, trained.device))
    peak = torch.cuda.max_memory_allocated(trained.device) if trained.device.type == "cuda" else None
    ratio = statistics.median(one / other for one, other in zip(taken, beside))
    scale = num_examples / workload.num_examples if _looks_at_examples(method, settings, trained.learner) else 1.0
    return MethodCost(method.name, held, ratio, closing * scale, peak), beside


def _looks_at_examples(method: MethodEntry, settings: Mapping[str, Any], learner: Learner) -> bool:
    """Whether a task is closed by a pass over examples."""
    if type(learner).after_training is not Learner.after_training:
        return True
    measured = method.importance in IMPORTANCES and IMPORTANCES[method.importance].on_examples
    return measured or (method.name == "imm" and settings.get("imm") == "mode")


def _columns(workload: Workload, device: torch.device) -> Tensor | None:
    if workload.classes is None:
        return None
    count = 1 + max(max(classes) for classes in workload.setting.task_classes)
    table = torch.zeros(count, count, dtype=torch.bool, device=device)
    table[:, list(workload.classes)] = True
    return table


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    """Of the processor where one thread does the work, else on the wall."""
    on_gpu = device.type == "cuda"
    now = time.process_time if torch.get_num_threads() == 1 and not on_gpu else time.perf_counter
    if on_gpu:
        torch.cuda.synchronize(device)
    began = now()
    call()
    if on_gpu:
        torch.cuda.synchronize(device)
    return now() - began


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
