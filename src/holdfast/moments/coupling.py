"""Examples that influence each other, and outputs that chance decides: errors, for nothing is an example's own then.

Where outputs differ from one call to the next, the same draws tell the two apart: the random state of torch is held,
and the company of an example is exchanged for copies of it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from holdfast.errors import CoupledExamplesError, RandomOutputsError
from holdfast.moments.calls import Call, tensors_in
from holdfast.moments.gradients import tolerance
from holdfast.moments.layout import equal_but_for_rounding
from holdfast.tensors import canonical_name, unwrap

_PROBED = 3


def check_independent(model: nn.Module, call: Call, *, where: str) -> None:
    """Raise unless a few examples have the same outputs together, one at a time, and again.

    Args:
        model: in evaluation mode; gradients are enabled, for its forward pass may take some itself.
        call: the first batch; its first three examples are used. With one example only repetition can be checked.
        where: the estimator, for messages.

    Raises:
        CoupledExamplesError: an example's differ with the others; modules likely to be the cause are named, with the
            remedy.
        RandomOutputsError: they differ from call to call alone, likewise.

    Cost: five forward passes of at most three examples, and four more where they differ from call to call.
    """
    few = call.examples(0, min(_PROBED, call.size))
    try:
        together, again = (_outputs(model, few) for _ in range(2))
        alone = [_outputs(model, few.examples(b, b + 1)) for b in range(few.size)]
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise CoupledExamplesError(
            _message(model, where, f"its batch norm refuses one example alone ({error})")
        ) from error
    rtol = tolerance(model)
    if not all(equal_but_for_rounding(a, b, rtol) for a, b in zip(together, again)):
        raise _random(model, few, where=where)
    if not is_each_alone(together, alone, rtol=rtol):
        found = f"its outputs for {few.size} examples together differ from those for each of them alone"
        raise CoupledExamplesError(_message(model, where, found))


def check_in_company(model: nn.Module, call: Call, outputs: Any, *, where: str) -> None:
    """Raise unless the first and the last example of a batch have alone the outputs that they have in it.

    Args:
        model: in evaluation mode.
        call: the batch.
        outputs: of the model for it.
        where: the estimator, for messages.

    Raises:
        CoupledExamplesError, RandomOutputsError: they differ.

    Cost: two forward passes of one example.
    """
    together = floats_in(outputs)
    for b in {0, call.size - 1} if call.size > 1 else ():
        own = [t[b : b + 1] if t.ndim and len(t) == call.size else t[:0] for t in together if t.ndim]
        alone = [t for t in _outputs(model, call.examples(b, b + 1)) if t.ndim]
        if any(a.shape == o.shape and not equal_but_for_rounding(a, o, tolerance(model)) for a, o in zip(alone, own)):
            again = _outputs(model, call)
            if not all(equal_but_for_rounding(a, t, tolerance(model)) for a, t in zip(again, together)):
                raise _random(model, call, where=where)
            found = f"its outputs for example {b} of a batch of {call.size} differ from those for it alone"
            raise CoupledExamplesError(_message(model, where, found))


def coupled(model: nn.Module, *, where: str) -> CoupledExamplesError:
    """The error that says that examples were seen to influence each other, or chance to decide on outputs."""
    found = "its outputs for a few examples together differ from those for each of them alone, or from call to call"
    return CoupledExamplesError(_message(model, where, found))


def reads_entries(model: nn.Module, call: Call) -> bool:
    """Whether lists with as many entries as there are examples are cut as the tensors are.

    This is tried, for a list that is the same for all examples may have as many entries by chance.

    Args:
        model: in evaluation mode.
        call: one that `has_lists`.

    Cost: a forward pass of the batch, and of one example for each reading that is tried.
    """
    try:
        together = _outputs(model, call)
    except Exception:  # whatever a model has to say is said when it is measured
        return True
    for lists in (True, False):
        part = replace(call, lists=lists)
        try:
            found = _outputs(model, part.examples(0, 1) if call.size > 1 else part.picked([0, 0]))
        except Exception:  # of the model, about a list that is too long or too short
            continue
        pairs = [(a, b) for a, b in zip(together, found) if a.ndim and b.ndim and a.shape[1:] == b.shape[1:]]
        if all(equal_but_for_rounding(a[:1], b[:1], tolerance(model)) for a, b in pairs):
            return lists
    return True


def is_each_alone(together: Sequence[Tensor], alone: Sequence[Sequence[Tensor]], *, rtol: float) -> bool:
    """Whether the outputs for B examples are those of each alone; those without an axis of examples do not count.

    Args:
        together: outputs for B examples.
        alone: for each of the examples its outputs.
        rtol: rounding, relative to the largest value.
    """
    for place, tensor in enumerate(together):
        parts = [outputs[place] for outputs in alone]
        one = (1, *tensor.shape[1:])
        comparable = tensor.ndim and len(tensor) == len(alone) and all(part.shape == one for part in parts)
        if comparable and not equal_but_for_rounding(tensor, torch.cat(parts), rtol):
            return False
    return True


def floats_in(outputs: Any) -> list[Tensor]:
    """The floating-point tensors in a model's outputs, detached."""
    return [tensor.detach() for tensor in tensors_in(outputs) if tensor.is_floating_point()]


def _outputs(model: nn.Module, call: Call) -> list[Tensor]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="None of the inputs have requires_grad")  # reentrant checkpoints
        return floats_in(call(unwrap(model)))


def _random(model: nn.Module, call: Call, *, where: str) -> CoupledExamplesError | RandomOutputsError:
    """What is wrong with a model whose outputs for the same examples differ from one call to the next."""
    rtol, size = tolerance(model), max(2, call.size)
    own = call if call.size > 1 else call.picked([0, 0])
    first, again, copies = (_drawn_alike(model, some) for some in (own, own, own.picked([0] * size)))
    name, suspects = type(unwrap(model)).__name__, _suspects(model)
    if not all(equal_but_for_rounding(a, b, rtol) for a, b in zip(first, again)):
        return RandomOutputsError(
            f"{where}: {name} gives other outputs for the same examples at each call in evaluation mode, also where "
            "torch's random state is the same: it keeps a state, or draws from a source of its own, such as numpy or a "
            f"torch.Generator. {suspects}Let forward() draw and count while self.training alone, or give what it draws "
            "as inputs."
        )
    pairs = [(a, b) for a, b in zip(first, copies) if a.ndim and a.shape == b.shape and len(a) == size]
    if not all(equal_but_for_rounding(a[:1], b[:1], rtol) for a, b in pairs):
        return CoupledExamplesError(
            _message(model, where, "under the same random draws its outputs for an example change with the others")
        )
    return RandomOutputsError(
        f"{where}: {name} draws random numbers in evaluation mode: its outputs for the same examples differ from one "
        f"call to the next, and are the same where torch's random state is. {suspects}No example has a gradient of its "
        "own then. Let train(False) reach every module, pass training=self.training to functional dropout, and let a "
        "model that draws by its nature, such as a VAE, take the draws as an input: forward(x, noise), with noise in "
        "the batch."
    )


def _drawn_alike(model: nn.Module, call: Call) -> list[Tensor]:
    """The outputs from one and the same random state of torch, which is put back."""
    devices = {tensor.device for tensor in unwrap(model).parameters() if tensor.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)):
        torch.manual_seed(0)
        return _outputs(model, call)


def _message(model: nn.Module, where: str, found: str) -> str:
    named = _suspects(model) or "No module of it looks like the cause: look at forward(). "
    return (
        f"{where}: {type(unwrap(model)).__name__} mixes its examples in evaluation mode: {found}. {named}"
        "Let train(False) reach every module, and give batch norm running statistics (track_running_stats=True) or "
        "replace it by GroupNorm."
    )


def _suspects(model: nn.Module) -> str:
    """A sentence that names modules likely to be the cause; empty where none is."""
    suspects = [
        f"{canonical_name(name)!r} ({type(module).__name__}, {fault})"
        for name, module in unwrap(model).named_modules()
        if (fault := _fault(module)) and name
    ]
    return f"Likely cause: {', '.join(suspects)}. " if suspects else ""


def _fault(module: nn.Module) -> str | None:
    if isinstance(module, _BatchNorm) and module.running_mean is None:
        return "no running statistics"
    return "in training mode" if module.training and not list(module.children()) else None
