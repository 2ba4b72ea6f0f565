"""Synaptic intelligence: importance measured along the path of training, without extra passes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, Literal, NoReturn, Self, get_args

import torch
from torch import Tensor, nn

from holdfast.choices import check_choice
from holdfast.errors import FileFormatError, OptionError, ParameterMismatchError, StateError
from holdfast.moments.company import Company
from holdfast.moments.state import measuring
from holdfast.records import Importance, ImportanceInfo
from holdfast.steps import BackwardGradients, StepHooks, bare_optimizer
from holdfast.tensors import TensorMap, check_real, copied, local, placed, shard, trainable_parameters, unwrap

Variant = Literal["zenke", "kutalev"]
Gradient = Literal["before", "after"]


class SynapticIntelligence:
    """Watches training and credits each weight with its share of the drop of the loss.

        omega_i = max(0, sum over steps of -g_i * increment_i) / (displacement_i^2 + damping)

    with g the task's gradient as `backward()` left it (before clipping, without any pull; under
    `DistributedDataParallel` averaged over processes), the increment all that happened to the weight until its next
    step (pull included), the displacement that of the whole task.

        path = hf.SynapticIntelligence(model).attach(optimizer)
        for task in stream:
            train(model, optimizer, task)
            keeper.retain(path.importance())

    Args:
        model: the model being trained.
        damping: xi > 0, in weight^2; the authors' 0.1.
        variant: "zenke" as above; "kutalev": the sums go on over all tasks, only the displacement is the task's, and g
            is the gradient on the step's own batch after the step, for which the loop calls `after_step`.
        gradient: of "zenke" alone: "before" each step (default); or "after": the next step's gradient at the weights
            that this one led to, from another batch.
        scaler: the `GradScaler` of mixed-precision training, whose scale is taken out of the gradients.

    Raises:
        OptionError: an option out of its range or without effect.
        UnknownNameError: no such variant or gradient.
        UnsupportedLayerError: a parameter is not of real numbers.

    Minibatch noise inflates the sum: under plain SGD each step credits lr g^2, whose mean lies above that of the whole
    data's gradient by lr times the variance of g. `gradient="after"` is free of it, "kutalev" is not, for its g comes
    from the same batch.

    Cost: no passes over data ("kutalev": one forward and backward pass a step); four copies of the weights; three
    passes over the weights a step. A step made by `penalty()` in the loss counts as the task's; use another pull. Under
    `DistributedDataParallel` and `fully_shard` no communication: every replica finds the same, and each process that
    has shards of the model holds the paths of these alone.

    Source: Zenke, Poole & Ganguli 2017 (arXiv 1703.04200); their penalty is c sum omega (theta - anchor)^2, so that our
    strength is 2 c. Departure: their program clamps the total over all tasks at zero, we clamp each task's sum. Variant
    "kutalev": the permuted MNIST with plain SGD of Kutalev & Lapina 2021 (arXiv 2109.10021); their program with Adam
    resets the sums and takes g before the step, penalty included. Departure: they clamp nothing, and a negative
    importance pushes a weight away from its anchor; under these settings less than 1e-5 of the sum is below zero.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        damping: float = 0.1,
        variant: Variant = "zenke",
        gradient: Gradient | None = None,
        scaler: Any = None,
    ) -> None:
        if not (isinstance(damping, int | float) and 0 < damping < float("inf")):
            raise OptionError(f"SynapticIntelligence: damping is {damping!r}; expected a number above 0, such as 0.1.")
        check_choice("variant of SynapticIntelligence", variant, get_args(Variant))
        if gradient is not None:
            check_choice("gradient of SynapticIntelligence", gradient, get_args(Gradient))
            if variant != "zenke":
                raise OptionError(
                    f"SynapticIntelligence: gradient is {gradient!r}; variant={variant!r} has its own, on the same "
                    'batch after the step. Leave it out, or take variant="zenke".'
                )
        self.model = model
        self.damping = damping
        self.variant = variant
        self.gradient: Gradient | None = (gradient or "before") if variant == "zenke" else None
        check_real(trainable_parameters(model), where="SynapticIntelligence")
        self._scaler = scaler
        self._hooks: list[StepHooks] = []
        self._kept: list[BackwardGradients] = []
        self._path: dict[str, Tensor] = {}  # sum of -g * increment
        self._restart()

    def attach(self, optimizer: Any) -> Self:
        """Watch this optimizer's steps from now on; the loop does not change. Several may be attached.

        Raises:
            StateError: it is attached to this optimizer already, or the path began before the model was sharded.
            ParameterMismatchError: the optimizer trains none of the model's parameters.
            UnsupportedLayerError: a parameter is not of real numbers.
        """
        bare = bare_optimizer(optimizer)
        if any(hooks.optimizer is bare for hooks in self._hooks):
            raise StateError(f"SynapticIntelligence: already attached to this {type(bare).__name__}.")
        named = self._watchable()
        trained = {id(p) for group in bare.param_groups for p in group["params"]}
        watched = {name: parameter for name, parameter in named.items() if id(parameter) in trained}
        if not watched:
            raise ParameterMismatchError(
                f"SynapticIntelligence: this {type(bare).__name__} trains none of the model's parameters. "
                "Build the optimizer from the same model's parameters()."
            )
        if self.variant == "zenke":
            kept = BackwardGradients(watched, scaler=self._scaler)
            self._kept.append(kept)
            at_step = {"gradients": lambda _: self._integrate(watched, kept)}
        else:
            at_step = {"before": lambda _: self._note(watched)}
        self._hooks.append(StepHooks(bare, **at_step, after=lambda _: self._count()))
        return self

    def detach(self) -> Self:
        """Take every hook off again; the path so far stays."""
        for held in (*self._hooks, *self._kept):
            held.remove()
        self._hooks, self._kept = [], []
        return self

    def after_step(self, loss: Callable[[], Tensor]) -> None:
        """Credit the step just taken with the gradient that its own batch has now: of `variant="kutalev"`.

            optimizer.step()
            path.after_step(lambda: loss_of(model, batch))

        Args:
            loss: returns the task's mean loss on the batch of this step, without penalty or loss scale; under
                `DistributedDataParallel` by way of the wrapper. Training modes stay, and gradients, buffers and the
                random state are given back.

        Raises:
            OptionError: the variant is another, which needs no such call.
        """
        if self.variant != "kutalev":
            raise OptionError(
                f'SynapticIntelligence: after_step() belongs to variant="kutalev", and this is {self.variant!r}. '
                "Leave the call out."
            )
        gradients = _gradients_now(self.model, loss)
        for name, parameter in trainable_parameters(self.model).items():
            self._credit(name, parameter, gradients.get(name))
        self._last = {}

    @torch.no_grad()
    def importance(self, *, restart: bool = True, num_examples: int = 0) -> Importance:
        """The importance of the path since the last call, or since construction.

        Args:
            restart: begin a new path, for the next task; False leaves this one going on.
            num_examples: examples of the task, noted in the record for `weighting="examples"`, as its targets too;
                `with_info(num_targets=...)` where they are others.

        Returns:
            float32 >= 0, in the unit of the training loss per weight^2 (of a mean over targets nats per target). Of a
            model under `fully_shard` DTensors that lie beside the parameters.

        Raises:
            StateError: no step was watched, the last one still needs `after_step`, or the path began before the model
                was sharded.
        """
        if self._num_steps == 0:
            raise StateError(
                "SynapticIntelligence: no optimizer step was watched since the path began. Call attach(optimizer) "
                "before training, with the optimizer whose step() trains this model."
            )
        parameters = self._watchable()
        if self.variant == "kutalev":
            self._check_credited(parameters)
        for name, parameter in parameters.items():
            self._credit(name, parameter, self._used.get(name))
        values = {}
        for name, parameter in parameters.items():
            if (start := self._start.get(name)) is None:
                values[name] = placed(torch.zeros_like(local(parameter), dtype=torch.float32), parameter)
                continue
            displacement = (local(parameter.detach()) - start).float()
            found = self._path[name].float().clamp_min(0) / (displacement.square() + self.damping)
            values[name] = placed(found, parameter)
        info = ImportanceInfo(
            kind="si",
            num_examples=num_examples,
            unit="loss/weight^2",
            model=type(unwrap(self.model)).__name__,
            details={
                "variant": self.variant,
                "damping": self.damping,
                "gradient": self.gradient,
                "num_steps": self._num_steps,
            },
        )
        if restart:
            self._restart()
        return Importance(values, info)

    def state_dict(self) -> dict[str, Any]:
        """The path so far: {"variant": str, "num_steps": int, "tensors": {"start/NAME": tensor, ...}}.

        Of a model under `fully_shard` the tensors are DTensors, as its own state's are, which
        `torch.distributed.checkpoint` writes and reads in any number of processes (`holdfast.integrations.sharding`).
        """
        parameters = self._watchable()
        groups = {"start": self._start, "path": self._path, "last": self._last, "used": self._used}
        tensors = {
            f"{group}/{name}": placed(tensor, parameters[name]) if name in parameters else tensor
            for group, named in groups.items()
            for name, tensor in named.items()
        }
        return {"variant": self.variant, "num_steps": self._num_steps, "tensors": tensors}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with a path that `state_dict` gave: whole tensors, or DTensors sharded as the model is.

        Raises:
            FileFormatError: a name or shape that does not match the model, another variant's state, or none at all.
        """
        found = state if isinstance(state, Mapping) else {}
        num_steps, variant = found.get("num_steps"), found.get("variant", self.variant)
        if variant != self.variant:
            raise FileFormatError(
                f"SynapticIntelligence: this is the state of variant={variant!r}, and this is {self.variant!r}. Build "
                f"SynapticIntelligence(model, variant={variant!r}) to go on with it."
            )
        if not (isinstance(num_steps, int) and num_steps >= 0 and isinstance(found.get("tensors"), Mapping)):
            raise FileFormatError(
                'SynapticIntelligence: "num_steps" or "tensors" of the state is missing or damaged. Take what '
                "state_dict() gave."
            )
        parameters = trainable_parameters(self.model)
        groups: dict[str, dict[str, Tensor]] = {"start": {}, "path": {}, "last": {}, "used": {}}
        for key, tensor in state["tensors"].items():
            group, _, name = key.partition("/")
            if group not in groups or name not in parameters or parameters[name].shape != tensor.shape:
                raise FileFormatError(f"SynapticIntelligence: the state's {key!r} does not match the model.")
            groups[group][name] = shard(tensor, parameters[name]).to(parameters[name].device, copy=True)
        self._start, self._path, self._last, self._used = groups.values()
        self._num_steps = num_steps

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Attached to the copies of its optimizers, as they are copied together with it and the model."""
        twin = memo[id(self)] = type(self).__new__(type(self))
        options = {"damping": self.damping, "variant": self.variant, "gradient": self.gradient}
        model = copied(self.model, memo, where="SynapticIntelligence")
        twin.__init__(model, scaler=copy.deepcopy(self._scaler, memo), **options)
        twin.load_state_dict(self.state_dict())
        for hooks in self._hooks:
            twin.attach(copy.deepcopy(hooks.optimizer, memo))
        return twin

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(
            "SynapticIntelligence: it is bound to its model and optimizers: it is not pickled, and copy.copy cannot "
            "copy it without them. Use state_dict(), or copy.deepcopy((model, optimizer, path)), for all three."
        )

    def _restart(self) -> None:
        self._num_steps = 0
        self._start: dict[str, Tensor] = {}  # weights where the path began
        self._last: dict[str, Tensor] = {}  # weights before the step whose increment is not credited yet
        self._used: dict[str, Tensor] = {}  # the gradient of that step
        if self.variant == "zenke":
            self._path = {}

    @torch.no_grad()
    def _integrate(self, watched: Mapping[str, nn.Parameter], kept: BackwardGradients) -> None:
        """Credit the last step's increment, which is complete now, and note where the coming step begins."""
        for name, parameter in watched.items():
            self._begin(name, parameter)
            gradient = kept.take(name)
            if gradient is None and parameter.grad is not None:
                gradient = local(parameter.grad.detach()).clone()
            own = self.gradient == "before" or gradient is None
            self._credit(name, parameter, self._used.get(name) if own else gradient)
            if gradient is not None:
                self._last[name], self._used[name] = _now(parameter), gradient

    @torch.no_grad()
    def _note(self, watched: Mapping[str, nn.Parameter]) -> None:
        """Note where the coming step begins."""
        self._check_credited(watched)
        for name, parameter in watched.items():
            self._begin(name, parameter)
            self._last[name] = _now(parameter)

    def _begin(self, name: str, parameter: nn.Parameter) -> None:
        if name not in self._start:
            self._start[name] = _now(parameter)
            self._path.setdefault(name, torch.zeros_like(self._start[name], dtype=torch.float32))

    @torch.no_grad()
    def _credit(self, name: str, parameter: nn.Parameter, gradient: Tensor | None) -> None:
        """Subtract g * increment since the last step began, once."""
        if gradient is not None and name in self._last:
            increment = local(parameter.detach()) - self._last.pop(name)
            self._path[name].sub_(torch.where(increment == 0, 0.0, gradient * increment).float())

    def _check_credited(self, names: TensorMap) -> None:
        if waiting := [name for name in names if name in self._last]:
            raise StateError(
                f"SynapticIntelligence: the last step was not credited, of {len(waiting)} parameters such as "
                f'{waiting[0]!r}. variant="kutalev" takes its gradient after the step: call '
                "path.after_step(lambda: loss of the same batch) after every optimizer.step()."
            )

    def _watchable(self) -> dict[str, nn.Parameter]:
        """The trainable parameters; raises for those whose path cannot be followed."""
        Company(self.model).rest()  # an evaluation may have left whole weights behind
        named = trainable_parameters(self.model)
        check_real(named, where="SynapticIntelligence")
        parts = {name: local(parameter).shape for name, parameter in named.items()}
        if other := [name for name, start in self._start.items() if parts.get(name, start.shape) != start.shape]:
            raise StateError(
                f"SynapticIntelligence: the path began when the model was sharded in another way, in {len(other)} "
                f"parameters such as {other[0]!r}. Shard the model before the path begins, or take importance() first, "
                "or give state_dict() of before to load_state_dict() now."
            )
        return named

    def _count(self) -> None:
        self._num_steps += 1


def _gradients_now(model: nn.Module, loss: Callable[[], Tensor]) -> dict[str, Tensor]:
    """Of every parameter that `loss` reaches; the model is left as it was, in its own training modes."""
    modes = [(module, module.training) for module in model.modules()]
    with measuring(model):
        for module, mode in modes:
            module.training = mode
        loss().backward()
        named = trainable_parameters(model)
        return {name: local(parameter.grad) for name, parameter in named.items() if parameter.grad is not None}


def _now(parameter: Tensor) -> Tensor:
    """A copy of the weights that this process has of a parameter."""
    return local(parameter.detach()).clone()
