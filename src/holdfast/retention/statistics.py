"""What a forward pass in training changes besides the weights: running statistics, moving averages, codebooks.

A *statistic* is here a buffer of floating-point numbers that the model saves. Pinning every weight does not hold it:
under `model.train()` batch norm goes on to the mean and variance of the new task, and in evaluation the old task is
normalised by those. Estimators measure with the statistics as they are, in evaluation mode, so that an importance says
nothing of a model whose statistics have moved.

Which statistics move is seen, not read off a list of classes. Only `nn.BatchNorm*d`, `nn.SyncBatchNorm` and
`nn.InstanceNorm*d` with running statistics are known beforehand to normalise by the batch in training, and by what they
keep in evaluation. Counters (`num_batches_tracked`) are whole numbers, and caches are not saved: neither is minded.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Collection, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from holdfast.errors import FileFormatError, OptionError, ParameterMismatchError
from holdfast.tensors import TensorMap, canonical_name, copies, unwrap

Statistics = Literal["warn", "hold", "free"]
"""Statistics that move: say so once, hold them, or let them."""

BufferPlace = tuple[nn.Module, str]
"""A module, and the name of a buffer in it."""

_STEPS = 16
"""Steps that are looked at for statistics that move, before a keeper that only warns of them looks no more."""


class HeldStatistics:
    """Holds the statistics of a model as they were when the last task was retained, or says that they move.

    Under "hold", norms with running statistics run their forward pass in evaluation mode as soon as `begin` is called:
    they normalise by what is held and leave it as it is, also under `model.train()`. Any other module whose statistics
    are seen to change gets them back after the step; where it has no modules within, it runs in evaluation mode from
    then on, too (a codebook, spectral norm, a norm of one's own).

    Args:
        model: whose buffers' names everything bears.
        option: "warn", "hold" or "free".
        where: for messages.
        moving: canonical name -> what is held of the statistics that are known to move; filled here.
        resting: likewise of all others.

    Raises:
        OptionError: "hold", and statistics are in TorchScript modules, which take no hooks.

    Cost: "hold": a copy of the statistics; each step one comparison, and one wait for the device, of those that are not
    in norms. "warn": the same of all, in the first 16 steps of a task. "free": nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        option: Statistics,
        *,
        where: str,
        moving: dict[str, Tensor],
        resting: dict[str, Tensor],
    ) -> None:
        self._model, self._option, self._where = model, option, where
        self._moving, self._resting = moving, resting
        self._places: dict[str, BufferPlace] = {}
        self._modes: dict[nn.Module, _EvaluationMode] = {}
        self._noted: dict[str, Tensor] = {}
        self._steps_left = 0
        self._has_warned = False
        self._seen: list[str] = []
        if option == "hold":
            _check_takes_hooks(model, where=where)

    def retain(self) -> None:
        """Hold the statistics as they are now, if they are to be held."""
        known = set(self._moving)
        self._moving.clear()
        self._resting.clear()
        if self._option == "hold":
            self._hold(statistics_of(self._model), known)

    def begin(self) -> None:
        """Hold from here on, or look; the keeper is attached and has retained a task.

        Statistics that have moved since they were retained are put back, and those that nothing is held of, as after
        loading what was saved under another option, are held as they are now.
        """
        self._places = statistics_of(self._model)
        self._noted = {}
        self._steps_left = _STEPS
        if self._option == "hold":
            held = self._held()
            self._hold({name: place for name, place in self._places.items() if name not in held}, set())
            self._put_back(self._places)
            self._evaluate(self._moving)

    def release(self) -> None:
        """Leave every module as it was; the statistics keep the values that they have."""
        for mode in self._modes.values():
            mode.remove()
        self._modes.clear()
        self._steps_left = 0

    def after_step(self) -> None:
        """A step is over: give statistics that have moved their values back, or say that they move."""
        if self._option == "hold":
            others = {name: place for name, place in self._places.items() if not _is_norm(place[0])}
            found = self._put_back(others)
            self._moving.update({name: self._resting.pop(name) for name in found if name in self._resting})
            self._evaluate(found)
        elif self._option == "warn" and self._steps_left > 0 and not self._has_warned:
            self._look()

    @property
    def loose(self) -> list[str]:
        """Names of those that are known to move, by their kind or because they were seen to, and are not held."""
        if self._option == "hold":
            return []
        return [name for name, (module, _) in statistics_of(self._model).items() if _is_norm(module)] or self._seen

    def _look(self) -> None:
        """Compare with what the first step left: until then a user may have loaded other values."""
        self._steps_left -= 1
        buffers = _buffers(self._places)
        if not self._noted:
            self._noted = copies(buffers)
        elif found := moved(buffers, self._noted, tolerance=1e-5):
            self._has_warned, self._seen = True, list(found)
            warnings.warn(moved_warning(self._where, found), stacklevel=2)
        if self._has_warned or self._steps_left == 0:
            self._noted = {}

    def _held(self) -> dict[str, Tensor]:
        return {**self._resting, **self._moving}

    def _hold(self, places: Mapping[str, BufferPlace], known: Collection[str]) -> None:
        """Hold these as they are; `known`: to move, besides those of norms."""
        for name, value in copies(_buffers(places)).items():
            moves = name in known or _is_norm(places[name][0])
            (self._moving if moves else self._resting)[name] = value

    @torch.no_grad()
    def _put_back(self, places: Mapping[str, BufferPlace]) -> list[str]:
        buffers, held = _buffers(places), self._held()
        found = moved(buffers, held)
        for name in found:
            buffers[name].copy_(held[name])
        return found

    def _evaluate(self, names: Collection[str]) -> None:
        modules = dict.fromkeys(self._places[name][0] for name in names if name in self._places)
        is_on = {module for module, mode in self._modes.items() if mode.module is module}
        new = [module for module in modules if module not in is_on and not any(True for _ in module.children())]
        self._modes.update({module: _EvaluationMode(module) for module in new})
        if new and "torch._dynamo" in sys.modules:  # what is compiled already would not see the new hooks
            torch.compiler.reset()


class _EvaluationMode:
    """Has one module, and no copy of it, run its forward pass in evaluation mode; its `training` flag stays the user's.

    Attributes:
        module: the module; None of what was copied or pickled with it.
    """

    def __init__(self, module: nn.Module | None) -> None:
        self.module, self._asked, self._handles = module, list[bool](), list[Any]()
        if module is not None:
            self._handles.append(module.register_forward_pre_hook(self._enter, prepend=True))
            self._handles.append(module.register_forward_hook(self._leave, always_call=True))

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of the module is not held."""
        return _EvaluationMode, (None,)

    def remove(self) -> None:
        """Leave the module as it was."""
        for handle in self._handles:
            handle.remove()

    def _enter(self, module: nn.Module, _: Any) -> None:
        if module is self.module:
            self._asked.append(module.training)
            module.training = False

    def _leave(self, module: nn.Module, *_: Any) -> None:
        if module is self.module and self._asked:
            module.training = self._asked.pop()


def statistics_of(model: nn.Module) -> dict[str, BufferPlace]:
    """Canonical name -> the place of every statistic: a saved buffer of floating-point numbers of at least 16 bits."""
    return {
        canonical_name(f"{prefix}.{key}" if prefix else key): (module, key)
        for prefix, module in unwrap(model).named_modules()
        for key, buffer in module._buffers.items()
        if key not in module._non_persistent_buffers_set and _is_statistic(buffer)
    }


def moved(buffers: TensorMap, held: TensorMap, *, tolerance: float = 0.0) -> list[str]:
    """The names of the buffers that are elsewhere than held; NaN stays NaN, and another shape is another thing.

    Args:
        buffers: as they are now.
        held: as they were.
        tolerance: relative to each entry.

    Cost: one wait for the device, whatever their number.
    """
    names = [name for name, buffer in buffers.items() if name in held and buffer.shape == held[name].shape]
    if not names:
        return []
    same = [
        torch.isclose(buffers[n], held[n].to(buffers[n]), rtol=tolerance, atol=1e-3 * tolerance, equal_nan=True).all()
        for n in names
    ]
    found = torch.stack([flag.to(same[0].device) for flag in same]).tolist()
    return [name for name, is_same in zip(names, found, strict=True) if not is_same]


def check_statistics(values: TensorMap, model: nn.Module, *, where: str) -> None:
    """Raise unless every statistic that was saved is one of the model, of its shape.

    Raises:
        ParameterMismatchError: names or shapes that do not match; all of them are listed.
        FileFormatError: one that is no floating-point number.
    """
    own, kind = _buffers(statistics_of(model)), type(unwrap(model)).__name__
    wrong = [f"{n!r} {tuple(v.shape)}" for n, v in values.items() if n not in own or own[n].shape != v.shape]
    if wrong:
        raise ParameterMismatchError(
            f"{where}: {len(wrong)} statistics that were held do not match the buffers of {kind}: {', '.join(wrong)}. "
            "Load it for the model that it was saved for."
        )
    strange = [f"{name!r} ({value.dtype})" for name, value in values.items() if not value.is_floating_point()]
    if strange:
        raise FileFormatError(f"{where}: statistics that are no floating-point numbers: {', '.join(strange)}.")


def moved_warning(where: str, names: Collection[str]) -> str:
    """What to say of statistics that have moved."""
    listed = ", ".join(map(repr, list(names)[:4])) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return (
        f"{where}: forward passes in training have changed {len(names)} buffer{'s' * (len(names) > 1)} since the last "
        f"task was retained: {listed}. A buffer is no weight, so that nothing holds it, and the old tasks are computed "
        f'with it. Hold buffers too with {where}(model, statistics="hold"); where they are to move, say so with '
        'statistics="free".'
    )


def _is_statistic(buffer: Tensor | None) -> bool:
    if buffer is None or not buffer.is_floating_point() or buffer.dtype.itemsize < 2:
        return False
    return buffer.device.type != "meta" and not is_lazy(buffer)


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, _NormBase) and module.track_running_stats


def _buffers(places: Mapping[str, BufferPlace]) -> dict[str, Tensor]:
    """The buffers that are there now, which `to()` and others replace."""
    found = {name: getattr(module, key, None) for name, (module, key) in places.items()}
    return {name: buffer for name, buffer in found.items() if buffer is not None}


def _check_takes_hooks(model: nn.Module, *, where: str) -> None:
    scripted = [
        name or type(module).__name__
        for name, module in unwrap(model).named_modules()
        if isinstance(module, torch.jit.ScriptModule) and any(_is_statistic(b) for b in module.buffers(recurse=False))
    ]
    if scripted:
        raise OptionError(
            f'{where}: statistics="hold" needs hooks, which TorchScript modules do not take: '
            f"{', '.join(map(repr, scripted))}. Hold the Python model, or call their eval() yourself before each epoch "
            'and say statistics="free".'
        )
