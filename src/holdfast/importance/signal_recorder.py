"""The signal importance gathered while training, without a pass of its own."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self, get_args

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from holdfast.choices import check_choice
from holdfast.errors import StateError
from holdfast.importance.layerwise import Others, check_elsewhere, check_watchable
from holdfast.importance.signal_sums import UNIT, BiasSignal, SignalSums
from holdfast.moments.layers import LayerRecorder
from holdfast.records import Importance, ImportanceInfo
from holdfast.tensors import unwrap


class SignalRecorder:
    """Collects the signal during ordinary training: forward passes that are made anyway, no pass of its own.

    with hf.SignalRecorder(model) as recorder:
        last_epoch()
    keeper.retain(recorder.importance())

    E |x_j| is gathered over the forward passes made in training mode while it is attached (evaluation in between does
    not count, nor what activation checkpointing computes again); |w_ij| is that of the moment when `importance` is
    called. With dropout and batch norm the inputs are those of training mode, so it agrees with `signal` only where
    these are absent and the weights stand still.

    Args:
        model: any module, whole or wrapped by DistributedDataParallel. Under torch.compile nothing can be seen: pass
            the run uncompiled, or use `signal`.
        bias: as for `signal`.
        others: as for `signal`; the error comes with the first forward pass.

    Attributes:
        num_examples: examples gathered, by the first axis of the model's first tensor.

    Cost: one |x| and sum for each layer, and a few microseconds for each torch function, as long as it is attached.
    """

    def __init__(self, model: nn.Module, *, bias: BiasSignal = "output", others: Others = "error") -> None:
        check_choice("bias of signal", bias, get_args(BiasSignal))
        check_choice("value of others", others, get_args(Others))
        check_watchable(model, where="SignalRecorder")
        self._model, self._bias = model, bias
        self._others: Others = others
        self._sums = SignalSums(model, bias)
        self._handles: list[RemovableHandle] = []
        self._recorder: LayerRecorder | None = None
        self.num_examples = 0

    def attach(self) -> Self:
        """Start gathering.

        Raises:
            StateError: it is attached already.
        """
        if self._handles:
            raise StateError(
                "SignalRecorder: attached already; a second attach() would count twice. Call detach() first."
            )
        bare = unwrap(self._model)
        self._handles = [
            bare.register_forward_pre_hook(self._before, with_kwargs=True),
            bare.register_forward_hook(self._after, always_call=True),
        ]
        return self

    def detach(self) -> None:
        """Stop gathering and take the hooks off the model; what was gathered stays."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __enter__(self) -> Self:
        """Attach."""
        return self.attach()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Detach."""
        self.detach()

    def importance(self) -> Importance:
        """What was gathered so far, times today's weights.

        Raises:
            StateError: no forward pass was seen.
            NotFiniteError: a value is NaN or infinite.
        """
        if self.num_examples == 0:
            raise StateError(
                "SignalRecorder: no forward pass in training mode was seen. Call importance() after training inside "
                "`with SignalRecorder(model)`; a model under torch.compile cannot be watched: use hf.signal(model, "
                "data)."
            )
        info = ImportanceInfo(
            kind="signal",
            num_examples=self.num_examples,
            unit=UNIT,
            model=type(unwrap(self._model)).__name__,
            details={"bias": self._bias, "others": self._others, "recorded": True},
        )
        return Importance(self._sums.values(), info)

    def _before(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if model.training and self._recorder is None and not torch.compiler.is_compiling():
            self._recorder = LayerRecorder(model, self._sums.add, activations=self._bias == "activation")
            self._recorder.__enter__()
            tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.ndim]
            self.num_examples += len(tensors[0]) if tensors else 1

    def _after(self, model: nn.Module, args: tuple[Any, ...], outputs: Any) -> None:
        recorder, self._recorder = self._recorder, None
        if recorder is not None:
            recorder.__exit__(None, None, None)
            if outputs is not None:
                recorder.finish(outputs)
                check_elsewhere(recorder.elsewhere, others=self._others, where="SignalRecorder")
