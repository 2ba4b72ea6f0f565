"""Synaptic intelligence: importance measured along the path of training, without extra passes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from holdfast.errors import FileFormatError, OptionError, ParameterMismatchError, StateError
from holdfast.records import Importance, ImportanceInfo
from holdfast.steps import StepHooks, bare_optimizer
from holdfast.tensors import check_real, trainable_parameters, unwrap


class SynapticIntelligence:
    """Watches training and credits each weight with its share of the drop of the loss.

        omega_i = max(0, sum over steps of -g_i * increment_i) / (displacement_i^2 + damping)

    with g the task's gradient as `backward()` left it (before clipping, without any pull), the increment all that
    happened to the weight until its next step (pull included), the displacement that of the whole task.

        path = hf.SynapticIntelligence(model).attach(optimizer)
        for task in stream:
            train(model, optimizer, task)
            keeper.retain(path.importance())

    Args:
        model: the model being trained.
        damping: xi > 0, in weight^2; the authors' 0.1.
        gradient: "before" each step, as the authors have it: minibatch noise inflates the sum by about lr E|g|^2; or
            "after": the next step's gradient at the weights it led to, from another batch, free of that bias.
        scaler: the `GradScaler` of mixed-precision training, whose scale is taken out of the gradients.

    Raises:
        OptionError: an option out of its range.
        UnsupportedLayerError: a parameter is not of real numbers.

    Cost: no passes over data; four copies of the weights; three passes over the weights a step. A step made by
    `penalty()` in the loss counts as the task's; use another pull.

    Source: Zenke, Poole & Ganguli 2017 (arXiv 1703.04200); their strength c is half of ours. Departure: they clamp
    nothing, we clamp the sum at zero, since a penalty needs importances >= 0.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        damping: float = 0.1,
        gradient: Literal["before", "after"] = "before",
        scaler: Any = None,
    ) -> None:
        if not (isinstance(damping, int | float) and 0 < damping < float("inf")):
            raise OptionError(f"SynapticIntelligence: damping is {damping!r}; expected a number above 0, such as 0.1.")
        if gradient not in ("before", "after"):
            raise OptionError(f'SynapticIntelligence: gradient is {gradient!r}; expected "before" or "after".')
        check_real(trainable_parameters(model), where="SynapticIntelligence")
        self.model = model
        self.damping = damping
        self.gradient = gradient
        self._scaler = scaler
        self._hooks: list[StepHooks] = []
        self._handles: list[Any] = []
        self._fresh: dict[str, Tensor] = {}
        self._restart()

    def attach(self, optimizer: Any) -> Self:
        """Watch this optimizer's steps from now on; the loop does not change. Several may be attached.

        Raises:
            StateError: it is attached to this optimizer already.
            ParameterMismatchError: the optimizer trains none of the model's parameters.
        """
        bare = bare_optimizer(optimizer)
        if any(hooks.optimizer is bare for hooks in self._hooks):
            raise StateError(f"SynapticIntelligence: already attached to this {type(bare).__name__}.")
        named = trainable_parameters(self.model)
        check_real(named, where="SynapticIntelligence")
        trained = {id(p) for group in bare.param_groups for p in group["params"]}
        watched = {name: parameter for name, parameter in named.items() if id(parameter) in trained}
        if not watched:
            raise ParameterMismatchError(
                f"SynapticIntelligence: this {type(bare).__name__} trains none of the model's parameters. "
                "Build the optimizer from the same model's parameters()."
            )
        for name, parameter in watched.items():
            hook = parameter.register_post_accumulate_grad_hook(lambda p, name=name: self._keep_gradient(name, p))
            self._handles.append(hook)
        hooks = StepHooks(bare, gradients=lambda _: self._integrate(watched), after=lambda _: self._count())
        self._hooks.append(hooks)
        return self

    def detach(self) -> Self:
        """Take every hook off again; the path so far stays."""
        for hooks in self._hooks:
            hooks.remove()
        for handle in self._handles:
            handle.remove()
        self._hooks, self._handles = [], []
        self._fresh = {}
        return self

    @torch.no_grad()
    def importance(self, *, restart: bool = True, num_examples: int = 0) -> Importance:
        """The importance of the path since the last call, or since construction.

        Args:
            restart: begin a new path, for the next task; False leaves this one going on.
            num_examples: examples of the task, noted in the record for `weighting="examples"`.

        Returns:
            float32 >= 0, in the loss's unit per weight^2 (nats for a likelihood).

        Raises:
            StateError: no step was watched.
        """
        if self._num_steps == 0:
            raise StateError(
                "SynapticIntelligence: no optimizer step was watched since the path began. Call attach(optimizer) "
                "before training, with the optimizer whose step() trains this model."
            )
        parameters = trainable_parameters(self.model)
        self._integrate({name: p for name, p in parameters.items() if name in self._last}, final=True)
        values = {}
        for name, parameter in parameters.items():
            if (start := self._start.get(name)) is None:
                values[name] = torch.zeros_like(parameter, dtype=torch.float32)
                continue
            displacement = (parameter.detach() - start).float()
            values[name] = self._path[name].float().clamp_min(0) / (displacement.square() + self.damping)
        info = ImportanceInfo(
            kind="si",
            num_examples=num_examples,
            unit="loss/weight^2",
            model=type(unwrap(self.model)).__name__,
            details={"damping": self.damping, "gradient": self.gradient, "num_steps": self._num_steps},
        )
        if restart:
            self._restart()
        return Importance(values, info)

    def state_dict(self) -> dict[str, Any]:
        """The path so far: {"num_steps": int, "tensors": {"start/NAME": tensor, ...}}, to resume training with."""
        groups = {"start": self._start, "path": self._path, "last": self._last, "used": self._used}
        tensors = {f"{group}/{name}": tensor for group, named in groups.items() for name, tensor in named.items()}
        return {"num_steps": self._num_steps, "tensors": tensors}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with a path that `state_dict` gave.

        Raises:
            FileFormatError: a name or shape that does not match the model.
        """
        parameters = trainable_parameters(self.model)
        groups: dict[str, dict[str, Tensor]] = {"start": {}, "path": {}, "last": {}, "used": {}}
        for key, tensor in state["tensors"].items():
            group, _, name = key.partition("/")
            if group not in groups or name not in parameters or parameters[name].shape != tensor.shape:
                raise FileFormatError(f"SynapticIntelligence: the state's {key!r} does not match the model.")
            groups[group][name] = tensor.to(parameters[name].device).clone()
        self._start, self._path, self._last, self._used = groups.values()
        self._num_steps = int(state["num_steps"])

    def _restart(self) -> None:
        self._num_steps = 0
        self._start: dict[str, Tensor] = {}  # weights where the path began
        self._path: dict[str, Tensor] = {}  # sum of -g * increment
        self._last: dict[str, Tensor] = {}  # weights before the step whose increment is not credited yet
        self._used: dict[str, Tensor] = {}  # the gradient of that step

    def _keep_gradient(self, name: str, parameter: Tensor) -> None:
        if parameter.grad is not None:
            scale = 1.0 if self._scaler is None else 1.0 / float(self._scaler.get_scale())
            self._fresh[name] = parameter.grad.detach() * scale

    @torch.no_grad()
    def _integrate(self, watched: Mapping[str, nn.Parameter], *, final: bool = False) -> None:
        """Credit the last step's increment, which is complete now, and note where the coming step begins."""
        for name, parameter in watched.items():
            if name not in self._start:
                self._start[name] = parameter.detach().clone()
                self._path[name] = torch.zeros_like(parameter, dtype=torch.float32)
            gradient = self._fresh.pop(name, None)
            if gradient is None and parameter.grad is not None:
                gradient = parameter.grad.detach().clone()
            credit = self._used.get(name) if self.gradient == "before" or final or gradient is None else gradient
            if name in self._last and credit is not None:
                increment = parameter.detach() - self._last.pop(name)
                self._path[name].sub_(torch.where(increment == 0, 0.0, credit * increment).float())
            if gradient is not None and not final:
                self._last[name], self._used[name] = parameter.detach().clone(), gradient

    def _count(self) -> None:
        self._num_steps += 1
