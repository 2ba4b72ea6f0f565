"""Calls around every optimizer step that really happens, in a loop that knows nothing of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from holdfast.errors import StateError

Callback = Callable[[Optimizer], None]


def bare_optimizer(optimizer: Any) -> Optimizer:
    """The torch optimizer whose steps move the weights, inside of what calls it.

    Wrappers that keep it as `.optimizer`, such as accelerate's, are seen through, and so is one of SAM's kind, whose
    `second_step()` calls the `step()` of the optimizer it was built with, in a loop by hand as within its own `step()`.

    Raises:
        StateError: if there is none, or its steps cannot be followed: torch's hooks are not called around its `step`,
            or the weights move in the backward pass (LOMO's `fused_backward`).
    """
    inner = optimizer
    while (wrapped := getattr(inner, "optimizer", None)) is not None:  # accelerate's wrapper is an Optimizer itself
        inner = wrapped
    if not isinstance(inner, Optimizer):
        raise StateError(
            f"attach: expected a torch.optim.Optimizer, found {type(optimizer).__name__}. "
            "Pass the optimizer whose step() trains the model."
        )
    found = _inner_optimizers(inner)
    if found and is_sharpness_aware(inner):
        return bare_optimizer(next(iter(found.values())))
    _check_steps(inner, found)
    return inner


def is_sharpness_aware(optimizer: Any) -> bool:
    """Whether it is of SAM's kind, which takes its steps by halves."""
    return all(callable(getattr(optimizer, name, None)) for name in ("first_step", "second_step"))


def optimizer_around(optimizer: Any, bare: Optimizer) -> str | None:
    """The kind of the optimizer around `bare` that was passed, which may do more than its steps; None if there is none.

    Accelerate's wrapper does nothing else.
    """
    passes_on = optimizer is bare or type(optimizer).__module__.startswith("accelerate.")
    return None if passes_on else type(optimizer).__name__


def is_skipped(optimizer: Optimizer) -> bool:
    """Whether a `GradScaler` has told a fused optimizer to leave this step out, for infinite gradients."""
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and float(found_inf) != 0


def _inner_optimizers(optimizer: Optimizer) -> dict[str, Optimizer]:
    """Attribute -> optimizer, for those within this one that train the same parameters."""
    own = _parameters(optimizer)
    within = {name: value for name, value in vars(optimizer).items() if isinstance(value, Optimizer)}
    return {name: value for name, value in within.items() if _parameters(value) == own}


def _parameters(optimizer: Optimizer) -> set[int]:
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


def _check_steps(optimizer: Optimizer, inner: Mapping[str, Optimizer]) -> None:
    """Raise `StateError` where it is known that the weights move without a hook being called."""
    kind = type(optimizer).__name__
    if callable(getattr(optimizer, "fused_backward", None)):
        raise StateError(
            f"attach: {kind} moves the weights within the backward pass (fused_backward), and no step follows in which "
            "they could be held. Train with an optimizer that has a step(), such as torch.optim.SGD."
        )
    if not _calls_hooks(optimizer):
        remedy = (
            f"Attach the optimizer within: {', '.join(f'optimizer.{name}' for name in inner)}."
            if inner
            else "Call super().__init__(params, defaults) in its constructor, or attach the optimizer that it steps."
        )
        raise StateError(
            f"attach: torch calls no hooks around the steps of this {kind}, for its constructor never calls "
            f"Optimizer.__init__. {remedy}"
        )


def _calls_hooks(optimizer: Optimizer) -> bool:
    """Whether torch has put its hooks around `step`, and the optimizer can take some."""
    if not getattr(type(optimizer).step, "hooked", False):
        return False
    try:
        optimizer.register_step_post_hook(_nothing).remove()
    except AttributeError:  # what Optimizer.__init__ would have made is missing
        return False
    return True


def _nothing(optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
    """A hook without effect."""


class StepHooks:
    """Three moments of every step of one optimizer.

    Args:
        optimizer: the optimizer to watch.
        before: called first, while the weights are those before the step.
        gradients: called when the gradients are complete, just before they are used: at once, or after each
            evaluation of the closure where `step(closure)` is given one. It may change them.
        after: called when the weights have changed. Not called for a step that was skipped for infinite
            gradients: `GradScaler` then does not call `step()` at all, or tells a fused optimizer by `found_inf`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        before: Callback | None = None,
        gradients: Callback | None = None,
        after: Callback | None = None,
    ) -> None:
        self.optimizer = optimizer
        self._before, self._gradients, self._after = before, gradients, after
        self._handles: list[RemovableHandle] = []
        self.place_last()

    def place_last(self) -> None:
        """Be called after all other hooks of the optimizer that there are now."""
        self.remove()
        self._handles = [
            self.optimizer.register_step_pre_hook(self._pre_step),
            self.optimizer.register_step_post_hook(self._post_step),
        ]

    def remove(self) -> None:
        """Leave the optimizer as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _pre_step(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        if _inside_another_step(optimizer):
            return None
        if self._before is not None:
            self._before(optimizer)
        if self._gradients is None:
            return None
        # torch hands over the arguments of the unbound method: the optimizer comes first
        if len(args) > 1 and callable(args[1]):
            return (args[0], self._wrapped(optimizer, args[1]), *args[2:]), kwargs
        if callable(kwargs.get("closure")):
            return args, {**kwargs, "closure": self._wrapped(optimizer, kwargs["closure"])}
        self._gradients(optimizer)
        return None

    def _wrapped(self, optimizer: Optimizer, closure: Callable[[], Any]) -> Callable[[], Any]:
        def evaluate() -> Any:
            loss = closure()
            assert self._gradients is not None
            with torch.no_grad():
                self._gradients(optimizer)
            return loss

        return evaluate

    def _post_step(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        if self._after is not None and not is_skipped(optimizer) and not _inside_another_step(optimizer):
            self._after(optimizer)


def _inside_another_step(optimizer: Optimizer) -> bool:
    """Whether a hook is called by `super().step()` within the `step` of a subclass: torch then calls hooks for both.

    Read off the stack and not counted, since a step that ended in an exception would leave a count wrong.
    """
    hook = sys._getframe(1)
    wrapper = hook.f_back  # torch's wrapper around `step`, which calls the hooks
    outer = wrapper.f_back if wrapper is not None else None
    while wrapper is not None and outer is not None:
        if outer.f_code is wrapper.f_code and outer.f_locals.get("self") is optimizer:
            return True
        outer = outer.f_back
    return False
