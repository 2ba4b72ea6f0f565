"""What is found out about a model on a few examples: the layout of every use of a parameter."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from holdfast.moments.calls import Call
from holdfast.moments.gradients import tolerance
from holdfast.moments.intercept import Interception, Key, Tracked, tracked_parameters
from holdfast.moments.layout import Layout, find_layout
from holdfast.moments.operations import Operation
from holdfast.tensors import unwrap

NUM_STUDIED = 3
"""Examples that are run together and alone: more than two, so that no axis of two is taken for theirs."""


def few_examples(call: Call) -> Call:
    """The first few examples of a call; of a single one two copies, so that it has company."""
    if call.size > 1:
        return call.examples(0, min(NUM_STUDIED, call.size))
    args, kwargs = tree_map_only(Tensor, lambda tensor: torch.cat([tensor, tensor]), (call.args, call.kwargs))
    return Call(args, kwargs, 2)


def find_layouts(model: nn.Module, few: Call) -> dict[Key, Layout | None]:
    """For every recognised use of a parameter where the examples are in what goes through it.

    Args:
        model: in evaluation mode.
        few: two or more examples.

    Returns:
        Use -> layout of its output, and of its input where these must agree; None where there is no single one.

    Cost: one forward pass of these examples, and one of each of them.
    """
    together = _recorded(model, few)
    alone = [_recorded(model, few.examples(b, b + 1)) for b in range(few.size)]
    rtol = tolerance(model)
    layouts: dict[Key, Layout | None] = {}
    for key, uses in together.items():
        found: set[Layout | None] = set()
        if all(len(record.get(key, ())) == len(uses) for record in alone):
            for number, (x, out, same) in enumerate(uses):
                layout = find_layout(out, [record[key][number][1] for record in alone], rtol=rtol)
                if same and layout is not None:
                    inner = find_layout(x, [record[key][number][0] for record in alone], rtol=rtol)
                    layout = layout if inner == layout else None
                found.add(layout)
        layouts[key] = found.pop() if len(found) == 1 else None
    return layouts


Record = dict[Key, list[tuple[Tensor, Tensor, bool]]]


def _recorded(model: nn.Module, call: Call) -> Record:
    with _Recorder(tracked_parameters(model)) as recorder:
        call(unwrap(model))
    return recorder.uses


class _Recorder(Interception):
    """Notes what goes in and out of every recognised use, in order."""

    def __init__(self, parameters: Mapping[int, Tracked]) -> None:
        super().__init__(parameters)
        self.uses: Record = {}

    def use(self, operation: Operation, x: Tensor, *weights: Tensor | None) -> Tensor:
        """The result, noted."""
        out = operation.forward(x, *weights)
        use = (x.detach(), out.detach(), operation.same_layout)
        self.uses.setdefault(self.key(operation, x, *weights), []).append(use)
        if weights[0] is not None:
            self.look_up(operation, out, x, weights[0])
        return out
