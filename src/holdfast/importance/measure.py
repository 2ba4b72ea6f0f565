"""One pass over the data, and the importance made of what it gave: what all estimators share."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from tqdm import tqdm

from holdfast.choices import check_count
from holdfast.curvature.joining import PROCESSES, Joined, joined
from holdfast.errors import EmptyDataError, OptionError
from holdfast.importance.loss import MeasuredLoss
from holdfast.likelihoods.batches import batch_size, batch_to, model_inputs, slice_batch
from holdfast.likelihoods.categorical import IGNORED
from holdfast.likelihoods.forms import check_is_many, check_taken
from holdfast.moments.calls import Call
from holdfast.moments.company import Company
from holdfast.moments.coupling import check_independent, reads_entries
from holdfast.records import Importance, ImportanceInfo
from holdfast.replicas import Meeting
from holdfast.tensors import check_real, class_of, trainable_parameters, unwrap


@dataclass(frozen=True)
class Batch:
    """A batch on the model's device.

    Attributes:
        content: as the data gave it, for the loss.
        call: as the model is called with it.
        numbers: of its examples among all data.
    """

    content: Any
    call: Call
    numbers: range


class DataPass:
    """One pass over the data, batch by batch. One-shot iterators are good: nothing is read twice.

    The first batch is used to check that the model does not mix its examples (`check_independent`), unless `MomentSums`
    or `Places` does so.

    Args:
        model: in evaluation mode while the pass runs.
        data: an iterable of batches.
        where: the estimator, for messages.
        num_examples: stop after so many; None for all.
        progress: whether to show a progress bar.
        loss: what is measured, whose targets are counted; None where none is.
        check: whether to check the examples.

    Attributes:
        meeting: the processes that measure replicas of the model, each its share of the data; within it an error of one
            ends all.
        seen: examples so far.
        num_targets: targets so far, as the loss counts them; without one as many as examples.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Iterable[Any],
        *,
        where: str,
        num_examples: int | None = None,
        progress: bool = False,
        loss: MeasuredLoss | None = None,
        check: bool = True,
    ) -> None:
        check_count("num_examples", num_examples, where=where, none="all")
        _check_has_shapes(model, where)
        parameters = trainable_parameters(model)
        if not parameters:
            raise OptionError(
                f"{where}: {type(unwrap(model)).__name__} has no trainable parameters. Call requires_grad_(True) on "
                "those to be measured."
            )
        check_real(parameters, where=where)
        _warn_of_quantised(model, where)
        check_is_many(data, where)
        self._model, self._data, self._where = model, data, where
        self._limit, self._progress = num_examples, progress
        self._loss, self._check = loss, check
        self._lists: bool | None = None
        self._share = Company(model)
        self.meeting, self._is_added_up = Meeting(model, where=where), False
        self.seen = self.num_targets = 0

    def __iter__(self) -> Iterator[Batch]:
        device = next(unwrap(self._model).parameters()).device
        for content in tqdm(self._data, desc=self._where, unit="batch", disable=not self._progress):
            args, kwargs = model_inputs(content)
            size = batch_size(content)
            if size == 0:
                continue
            if self.seen == 0:
                check_taken(self._model, content, where=self._where)
            lists = self._cuts_lists(content, Call(args, kwargs, size), device)
            if self._limit is not None and self.seen + size > self._limit:
                size = self._limit - self.seen
                content = slice_batch(content, 0, size, lists=lists)
            # by whole batches, also where examples are then measured one at a time
            self.num_targets += size if self._loss is None else self._loss.num_targets(content)
            content = batch_to(content, device)
            args, kwargs = model_inputs(content)
            share = self._share.size * self.meeting.size  # of which one is 1, and its rank 0
            first = share * self.seen + self._share.rank + self.meeting.rank
            numbers = range(first, first + share * size, share)
            batch = Batch(content, Call(args, kwargs, size, lists), numbers)
            if self.seen == 0 and self._check:
                check_independent(self._model, batch.call, where=self._where)
            self.seen += size
            yield batch
            if self.seen == self._limit:
                break
        if self.seen == 0:
            raise EmptyDataError(
                f"{self._where}: the data held no example. Pass an iterable of non-empty batches; an iterator that "
                "was read before is empty now: make it anew."
            )
        if self.num_targets == 0:
            raise EmptyDataError(
                f"{self._where}: none of the {self.seen} examples has a target: all labels are {IGNORED}, which is "
                "skipped, or sequences of one token, which predict nothing. Pass data with labels."
            )

    def join(self) -> None:
        """Count the examples and targets of all processes that measured together; all of them come here."""
        self.seen, self.num_targets = self._share.total(self.seen), self._share.total(self.num_targets)

    def add_up(self, totals: Mapping[str, Tensor], count: int = 0) -> int:
        """Make sums those over the data of all replicas, in place, and the counts too; `count` over all is returned."""
        seen, targets, counted = self.meeting.total([self.seen, self.num_targets, count])
        self.seen, self.num_targets, self._is_added_up = int(seen), int(targets), True
        self.meeting.add_up(totals.values())
        return int(counted)

    def joined(self, own: Joined) -> Joined:
        """The importance on the data of all replicas, of which `own` is on this one's; itself where there are none."""
        if self.meeting.is_alone:
            return own
        self.meeting.check()
        return joined(own, group=self.meeting.group, where=self._where)

    def _cuts_lists(self, content: Any, call: Call, device: torch.device) -> bool:
        """Whether lists of as many entries as there are examples are the examples'; decided on two or more of these."""
        if self._lists is not None or all(isinstance(value, Tensor) for value in (*call.args, *call.kwargs.values())):
            return bool(self._lists)
        if not call.has_lists:
            return False
        args, kwargs = model_inputs(batch_to(content, device))
        found = reads_entries(self._model, Call(args, kwargs, call.size))
        self._lists = found if call.size > 1 else None
        return found

    def importance(
        self,
        values: Mapping[str, Tensor],
        *,
        kind: str,
        unit: str,
        loss: str | None = None,
        nats_per_unit: float | None = None,
        details: Mapping[str, str | int | float | bool | None] | None = None,
        join: bool = True,
    ) -> Importance:
        """The values, means over `num_targets`, with the record of how they were made; of replicas on all their data.

        With `join=False` of this process's data alone, for what is `joined` later.

        Raises:
            NotFiniteError: a value is NaN or infinite.
        """
        decided = {} if self._loss is None else self._loss.details
        info = ImportanceInfo(
            kind=kind,
            num_examples=self.seen,
            num_targets=self.num_targets,
            loss=loss,
            unit=unit,
            model=class_of(unwrap(self._model)).__name__,
            nats_per_unit=nats_per_unit,
            details={**(details or {}), **decided},
        )
        if not self._is_added_up:
            found = Importance(values, info)
            return self.joined(found) if join else found
        of_all = {} if self.meeting.is_alone else {PROCESSES: self.meeting.size}
        return Importance(values, replace(info, details={**info.details, **of_all}))


def _check_has_shapes(model: nn.Module, where: str) -> None:
    bare = unwrap(model)
    lazy = [name for name, tensor in (*bare.named_parameters(), *bare.named_buffers()) if is_lazy(tensor)]
    if lazy:
        raise OptionError(
            f"{where}: {len(lazy)} tensors of {type(bare).__name__} have no shape yet: "
            f"{', '.join(map(repr, lazy[:8]))}. Call the model once on a batch, which its lazy modules wait for."
        )


def _warn_of_quantised(model: nn.Module, where: str) -> None:
    """Warn where weights are packed into fewer bits and cannot be measured; not where adapters learn beside them."""
    bare = unwrap(model)
    if any("base_layer" in name.split(".") for name, _ in bare.named_modules()):
        return
    packed = [name for name, p in bare.named_parameters() if _is_packed(p)]
    if packed or getattr(bare, "is_quantized", False):  # transformers says so, also where packed weights are buffers
        found = f"{len(packed)} parameters are" if packed else f"layers of {type(bare).__name__} are"
        named = f", such as {packed[0]!r}" if packed else ""
        kept = len(trainable_parameters(model))
        warnings.warn(
            f"{where}: {found} quantised and cannot be measured{named}; the importance is of the {kept} others alone. "
            "Measure it on the model before it is quantised.",
            stacklevel=4,
        )


def _is_packed(parameter: nn.Parameter) -> bool:
    """Whether it holds codes: whole numbers, numbers of 8 bits, or 4 bits each in the memory of what seem floats."""
    is_number = parameter.is_floating_point() or parameter.is_complex()
    return not is_number or parameter.element_size() == 1 or hasattr(parameter, "quant_state")
