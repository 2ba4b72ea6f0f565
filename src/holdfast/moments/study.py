"""What is found out about a model on a few examples: where these are in every use of a parameter and in the outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from holdfast.moments.arrangement import CHOICES, HIDDEN, worked_along
from holdfast.moments.calls import Call
from holdfast.moments.company import Company
from holdfast.moments.coupling import check_independent, coupled, floats_in, is_each_alone
from holdfast.moments.gradients import tolerance
from holdfast.moments.intercept import Interception, Key, Tracked
from holdfast.moments.layout import RAGGED, Layout, equal_but_for_rounding, find_layout
from holdfast.moments.operations import Operation
from holdfast.moments.transforms import transformed
from holdfast.moments.watching import Choices, beginnings
from holdfast.tensors import unwrap

NUM_STUDIED = 3
"""Examples that are run together and alone: more than two, so that no axis of two is taken for theirs."""

TOGETHER_BYTES = 2**23
"""Examples go together as long as their activations stay in the processor's cache, and cost no memory to speak of."""


def room_for(bytes_per_example: int, chunk_bytes: int = TOGETHER_BYTES) -> int:
    """How many examples go together well; 0 where a study has not yet said how much one takes."""
    return min(TOGETHER_BYTES, chunk_bytes) // bytes_per_example if bytes_per_example else 0


def few_examples(call: Call, company: Company | None = None) -> Call:
    """The first few examples of a call; of a single one two copies, so that it has company.

    Processes that measure together take equally many, some of them twice where one has fewer.
    """
    if company is not None and not company.is_alone:
        return call.picked([b % call.size for b in range(max(2, company.most(min(NUM_STUDIED, call.size))))])
    if call.size > 1:
        return call.examples(0, min(NUM_STUDIED, call.size))
    return call.picked([0, 0])


@dataclass(frozen=True)
class Study:
    """A few examples seen together and alone.

    Attributes:
        layouts: for every recognised use of a parameter where the examples are in its output, and in its input where
            these must agree; `RAGGED` where there is no single place. For every operand of a function that works along
            axes where they are in that; None where there is no single place.
        outputs: floating-point outputs of the model for the examples together.
        independent: whether they are those of each of the examples alone, as far as these can be compared.
        choices: numbers of the data that Python was told for the examples together, and every beginning of these.
        alike: whether it was told the same for each of them alone.
        hidden: whether rows were arranged, or numbers told, by functions that cannot be seen.
        bytes_per_example: the inputs, and what every function of the model makes of them, frozen layers included.
    """

    layouts: Mapping[Key, Layout | None]
    outputs: list[Tensor]
    independent: bool
    choices: frozenset[Choices]
    alike: bool
    hidden: bool
    bytes_per_example: int

    def has(self, again: Sequence[Tensor], *, rtol: float) -> bool:
        """Whether these, for the first of the examples, are the same outputs."""
        pairs = [(a, b) for a, b in zip(self.outputs, again) if a.ndim == b.ndim > 0]
        return all(a[: len(b)].shape != b.shape or equal_but_for_rounding(a[: len(b)], b, rtol) for a, b in pairs)


def study(
    model: nn.Module, few: Call, *, tracked: Mapping[int, Tracked], rtol: float, company: Company | None = None
) -> Study:
    """Run a few examples together and each of them alone.

    Args:
        model: in evaluation mode.
        few: two or more examples.
        tracked: the model's parameters, as `tracked_parameters` finds them.
        rtol: rounding, relative to the largest value.
        company: of a sharded model.

    Cost: one forward pass of these examples, and one of each of them. Where some make the model take another branch
    alone than together, those that do not are run once more, unless there is company.
    """
    together, outputs = _recorded(model, few, tracked, company)
    recorded = [_recorded(model, few.examples(b, b + 1), tracked, company) for b in range(few.size)]
    records, singles = [alone.uses for alone, _ in recorded], [found for _, found in recorded]
    layouts: dict[Key, Layout | None] = {}
    for key, uses in together.uses.items():
        found: set[Layout | None] = set()
        if all(len(record.get(key, ())) == len(uses) for record in records):
            for number, (x, out, same) in enumerate(uses):
                layout = find_layout(out, [record[key][number][1] for record in records], rtol=rtol)
                if same and layout is not None:
                    inner = find_layout(x, [record[key][number][0] for record in records], rtol=rtol)
                    layout = layout if inner == layout else None
                found.add(layout)
        elif key[0] == "along":  # some examples alone take another way: another batch may tell
            continue
        layout = found.pop() if len(found) == 1 else None
        layouts[key] = RAGGED if layout is None and key[0] != "along" else layout
    alike = [b for b, (alone, _) in enumerate(recorded) if alone.chosen == together.chosen]
    if 1 < len(alike) < few.size and (company is None or company.is_alone):
        some = study(model, few.picked(alike), tracked=tracked, rtol=rtol).layouts
        layouts |= {key: layout for key, layout in some.items() if key not in layouts}
    num_bytes = together.num_bytes + sum(
        leaf.nbytes for leaf in tree_leaves((few.args, few.kwargs)) if isinstance(leaf, Tensor)
    )
    return Study(
        layouts,
        outputs,
        independent=is_each_alone(outputs, singles, rtol=rtol),
        choices=frozenset(beginnings(together.chosen)),
        alike=len(alike) == few.size,
        hidden=any(recorder.hidden.found for recorder in (together, *(alone for alone, _ in recorded))),
        bytes_per_example=num_bytes // few.size,
    )


def check_apart(model: nn.Module, call: Call, *, where: str, company: Company) -> None:
    """As `check_independent`, by all processes that measure together.

    Raises:
        CoupledExamplesError: the outputs for an example depend on the others, or on chance; in all of them.

    Cost: five forward passes of at most three examples.
    """
    if company.is_alone:
        check_independent(model, call, where=where)
        return
    few, rtol, seen = few_examples(call, company), tolerance(model, company), []
    for some in (few, few, *(few.examples(b, b + 1) for b in range(few.size))):
        seen.append(floats_in(some(unwrap(model))))
        company.rest()
    together, again, *alone = seen
    repeats = all(equal_but_for_rounding(a, b, rtol) for a, b in zip(together, again))
    if company.any(not repeats or not is_each_alone(together, alone, rtol=rtol)):
        raise coupled(model, where=where)


LayoutRecord = dict[Key, list[tuple[Tensor, Tensor, bool]]]


def _recorded(
    model: nn.Module, call: Call, tracked: Mapping[int, Tracked], company: Company | None
) -> tuple[_Recorder, list[Tensor]]:
    recorder = _Recorder(tracked)
    with nullcontext() if company is None else company.following(recorder), recorder, recorder.hidden:
        outputs = call(unwrap(model))
    if company is not None:
        company.rest()
    return recorder, floats_in(outputs)


class _Hidden(TorchDispatchMode):
    """Notices operations that arrange rows and that no function was seen to call, as inside TorchScript.

    Attributes:
        visible: whether a function that was seen is at work.
        found: whether there was such an operation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.visible = self.found = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: the base class would import the whole of torch._dynamo, some seconds, to keep it away."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """What the operation returns."""
        if not self.visible and func.overloadpacket.__name__ in HIDDEN:
            self.found = True
        return func(*args, **(kwargs or {}))


class _Recorder(Interception):
    """Notes what goes in and out of every recognised use, in order, and how much memory all functions fill."""

    def __init__(self, parameters: Mapping[int, Tracked]) -> None:
        super().__init__(parameters)
        self.uses: LayoutRecord = {}
        self.num_bytes = 0
        self.chosen: Choices = ()
        self.hidden = _Hidden()  # which knows nothing of this, so that what was noted is freed at once

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """What the function returns, its bytes counted."""
        inside, self.hidden.visible = self.hidden.visible, True
        try:
            result = super().__torch_function__(func, types, args, kwargs)
        finally:
            self.hidden.visible = inside
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor) and not any(_share(tensor, value) for value in args):
                self.num_bytes += _num_bytes(tensor)
        return result

    def other(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a function returns, with its operands, or the number that it tells Python, noted."""
        if not transformed():
            for number, operand in enumerate(worked_along(func, args, kwargs) or ()):
                tensor = operand.tensor
                if not isinstance(tensor, nn.Parameter):  # as a table of embeddings, which takes much memory
                    tensor = tensor.detach().clone()  # which the function may change in place
                self.uses.setdefault(self.along_key(func, operand, number), []).append((tensor, tensor, False))
        result = func(*args, **kwargs)
        if func in CHOICES:
            self.chosen += (repr(result),)
        return result

    def use(self, operation: Operation, x: Tensor, *weights: Tensor | None) -> Tensor:
        """The result of a recognised operation, noted."""
        out = operation.forward(x, *weights)
        use = (x.detach(), out.detach(), operation.same_layout)
        self.uses.setdefault(self.key(operation, x, *weights), []).append(use)
        if weights[0] is not None:
            self.look_up(operation, out, x, weights[0])
        return out


def _num_bytes(tensor: Tensor) -> int:
    """What a tensor fills; of a sparse one its values and as much again for where they are."""
    if tensor.layout in (torch.strided, torch.jagged):
        return tensor.nbytes
    values = tensor._values() if tensor.layout == torch.sparse_coo else tensor.values()
    return 2 * values.nbytes


def _share(tensor: Tensor, other: Any) -> bool:
    """Whether a result is an argument or a view of one."""
    if not isinstance(other, Tensor) or other is tensor:
        return other is tensor
    try:
        return tensor.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):  # of sparse tensors, and inside a transform
        return False
