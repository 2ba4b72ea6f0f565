"""A loss of the user's own must give each example what it would give it alone: then its gradients are the example's."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from holdfast.errors import CoupledExamplesError
from holdfast.likelihoods.batches import batch_readings, batch_size, has_opaque_entries
from holdfast.moments.calls import tensors_in, with_tensors
from holdfast.moments.gradients import tolerance

Score = Callable[[Any, Any], Tensor]
"""From the outputs for B examples, and their batch, to [B] or [K, B]."""

_FEW = 8
_ALONE = 3
_EVERY = 16
_MASKED = 1e4
"""Outputs from here on say that something cannot be, such as the logit of a masked class."""

_REMEDY = (
    "The Fisher information and its like are of single examples. Let the loss of an example read its own row of the "
    "outputs and of the batch alone: divide by its own count of tokens instead of the batch's, leave out means over "
    "the batch, and where a contrastive loss needs a group of inputs, make the group one example, the first axis "
    "counting groups."
)


class LossCheck:
    """Compares the loss of a few examples together with that of each alone, on the same outputs of the model.

    On the first batch of more than one example, and on the first of every new form: no gradient of the loss of some
    examples may reach the outputs of others, and values may differ by rounding only. On the 2nd, 4th and 8th batch and
    on every 16th one example, the next each time, is compared by its value. Where the loss gives another value when it
    is called again, only gradients can be looked at, and a warning says so.

    Args:
        model: whose parameters' dtype says how much rounding explains.
        where: the estimator, for messages.

    Cost: about seven calls of the loss on at most eight examples, and two of its backward passes to the outputs; then
    one call on one example for 16 batches. No pass through the model.
    """

    def __init__(self, model: nn.Module, *, where: str) -> None:
        self._model, self._where = model, where
        self._seen: set[Any] = set()
        self._comparable = True
        self._count = self._turn = 0

    @torch.no_grad()
    def __call__(self, score: Score, found: Any, outputs: Any, batch: Any, *, draws: bool = False) -> None:
        """Check the loss on a batch.

        Args:
            score: the loss.
            found: what it gave for this batch.
            outputs: of the model.
            batch: as the data gave it.
            draws: whether the loss draws targets, so that its values are not to be compared.

        Raises:
            CoupledExamplesError: the loss of an example depends on the others.
        """
        size = batch_size(batch)
        if size < 2 or not isinstance(found, Tensor) or found.ndim not in (1, 2) or found.shape[-1] != size:
            return  # whoever asked for the scores says what is wrong with their shape
        form = draws, _form(outputs, batch)
        is_new = form not in self._seen
        self._count += 1
        due = self._comparable and not draws and (self._count % _EVERY == 0 or self._count & (self._count - 1) == 0)
        if not (is_new or due):
            return
        reason = None
        devices = {t.device for t in tensors_in(outputs) if t.device.type == "cuda"}
        with torch.random.fork_rng(devices=list(devices)), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about shapes that broadcast where one example is alone
            part = _Part(score, outputs, batch, size)
            if is_new:
                reason = self._look_closely(part, _values(found), draws=draws)
                self._seen.add(form)
            else:
                self._turn = 0 if has_opaque_entries(batch) else (self._turn + 1) % size
                self._compare(part, _values(found), self._turn, self._turn + 1)
        if reason is not None:
            warnings.warn(f"{self._where}: {reason}", stacklevel=2)

    def _look_closely(self, part: _Part, together: Tensor, *, draws: bool) -> str | None:
        """All checks on one batch; returns why a part of them was not possible."""
        few = part if part.size <= _FEW else part.of(0, _FEW)
        first = few.values()
        if first is None:  # such as of a loss that knows the size of its batches
            few, first = part, part.values()
        self._check_gradients(few)
        if draws or not self._comparable:
            return None
        again = few.values()
        if first is None or again is None or not self._agree(few, again, first):
            self._comparable = False
            return (
                "the loss gives other values for the same batch when it is called again, so that it draws random "
                "numbers or keeps a state. No gradient of an example's loss reaches the outputs of other examples, but "
                "whether its value depends on them could not be checked. Let it give the same values again, as with a "
                "torch.Generator of a fixed seed made inside it."
            )
        alone = range(_ALONE) if not has_opaque_entries(part.batch) else range(1)
        tried = [(b, b + 1) for b in alone if b < part.size]
        done = [self._compare(part, together, *places) for places in tried]
        if not any(done):
            done += [self._compare(part, together, 0, stop) for stop in {2, part.size // 2} if 1 < stop < part.size]
        if part.size > _FEW:
            done.append(self._compare(part, together, 0, _FEW))
        if any(done):
            return None
        self._comparable = False
        return (
            f"the loss could not be called on the first example of a batch alone ({part.failure}). No gradient of an "
            "example's loss reaches the outputs of other examples, but whether its value depends on them could not be "
            "checked. Let the loss take batches of any size."
        )

    def _compare(self, part: _Part, together: Tensor, start: int, stop: int) -> bool:
        """Whether examples `start` to `stop` could be given to the loss alone.

        Raises:
            CoupledExamplesError: it gives them another value then.
        """
        expected, first = together[start:stop], None
        for content in batch_readings(part.batch, start, stop):
            alone = part.of(start, stop, content=content)
            values = alone.values()
            if values is None:
                part.failure = part.failure or alone.failure
                continue
            if self._agree(alone, values, expected):
                return True
            first = values if first is None else first
        if first is None:
            return False
        worst = int((first - expected).abs().nan_to_num(torch.inf).argmax())
        others = "alone" if stop - start == 1 else f"among {stop - start}"
        raise self._error(
            f"for example {start + worst} of a batch of {part.size} it gives {_shown(expected[worst])}, and "
            f"{_shown(first[worst])} for the same example {others}, from the same outputs"
        )

    def _check_gradients(self, part: _Part) -> None:
        """Raise if a gradient of one half's losses reaches the outputs of the other half."""
        half = part.size // 2
        for start, stop in ((0, half), (half, part.size)):
            reached = part.reached(start, stop)
            if reached is not None:
                raise self._error(
                    f"of {part.size} examples together, the gradient of its values for {_span(start, stop)} reaches "
                    f"the outputs for example {reached}"
                )

    def _agree(self, part: _Part, found: Tensor, expected: Tensor) -> bool:
        """Whether values differ by rounding only.

        The outputs being the same to the bit, only the sums inside the loss are rounded: a fiftieth of what is allowed
        to a whole model, or four units in the last place of the narrowest tensor. Where a loss is a small difference of
        large outputs, as that of a sure answer is, some units in the last place of these.
        """
        if not found.is_floating_point():
            return torch.equal(found, expected)
        eps = max(torch.finfo(dtype).eps for dtype in (found.dtype, *(t.dtype for t in part.leaves)))
        rtol = max(tolerance(self._model) / 50, 4 * eps)
        sizes = [float(t.abs().masked_fill(~(t.abs() < _MASKED), 0.0).max()) for t in part.leaves if t.numel()]
        floor = 16 * torch.finfo(torch.promote_types(found.dtype, torch.float32)).eps * max(sizes, default=0.0)
        return torch.allclose(found.double(), expected.double(), rtol=rtol, atol=floor, equal_nan=True)

    def _error(self, found: str) -> CoupledExamplesError:
        return CoupledExamplesError(f"{self._where}: the loss mixes the examples of a batch: {found}. {_REMEDY}")


class _Part:
    """The loss on some examples: their outputs, detached, and their part of the batch.

    Attributes:
        size: how many examples.
        batch: their part of it.
        leaves: the floating-point tensors in the outputs that hold the examples on their first axis.
        failure: what the loss said when it could not be called.
    """

    def __init__(
        self, score: Score, outputs: Any, batch: Any, size: int, *, by_example: list[bool] | None = None
    ) -> None:
        self.size, self.batch, self.failure = size, batch, ""
        self._score = score
        self._tensors = [tensor.detach() for tensor in tensors_in(outputs)]
        self._outputs = with_tensors(outputs, self._tensors)
        self._by_example = [t.ndim > 0 and len(t) == size for t in self._tensors] if by_example is None else by_example
        self.leaves = [t for t, its in zip(self._tensors, self._by_example) if its and t.is_floating_point()]

    def of(self, start: int, stop: int, *, content: Any = None) -> _Part:
        """Examples `start` to `stop`; `content` is their part of the batch where it is known."""
        tensors = [t[start:stop] if its else t for t, its in zip(self._tensors, self._by_example)]
        if content is None:
            content = next(batch_readings(self.batch, start, stop))
        outputs, size = with_tensors(self._outputs, tensors), stop - start
        return _Part(self._score, outputs, content, size, by_example=self._by_example)

    def values(self) -> Tensor | None:
        """[B]: one value for each example; None where the loss cannot be called on these alone."""
        try:
            found = self._score(self._outputs, self.batch)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a loss of the user's finds to say
            self.failure = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            return None
        if not isinstance(found, Tensor) or found.ndim not in (1, 2) or found.shape[-1] != self.size:
            self.failure = f"it returned {list(found.shape) if isinstance(found, Tensor) else type(found).__name__}"
            return None
        return _values(found)

    def reached(self, start: int, stop: int) -> int | None:
        """An example outside `start` to `stop` whose outputs the losses of those inside depend on, or None."""
        wanted = {id(leaf) for leaf in self.leaves}
        tensors = [t.clone().requires_grad_() if id(t) in wanted else t for t in self._tensors]
        leaves = [t for t in tensors if t.requires_grad]
        with torch.enable_grad():
            found = self._score(with_tensors(self._outputs, tensors), self.batch)[..., start:stop]
            if not (found.requires_grad and leaves):
                return None
            generator = torch.Generator().manual_seed(0)
            weights = torch.empty(found.shape, dtype=torch.float32).uniform_(0.5, 1.5, generator=generator)
            gradients = torch.autograd.grad((found * weights.to(found)).sum(), leaves, allow_unused=True)
        for gradient in gradients:
            if gradient is None:
                continue
            sizes = gradient.detach().abs().nan_to_num(0.0, 0.0, 0.0).reshape(self.size, -1).sum(dim=1)
            outside = sizes.clone()
            outside[start:stop] = 0.0
            if bool(outside.max() > 1e-6 * sizes.max()):
                return int(outside.argmax())
        return None


def _values(scores: Tensor) -> Tensor:
    """[B]: a loss as it is; of K scores an example the sum of squares, which does not depend on their order or sign."""
    scores = scores.detach()
    return scores if scores.ndim == 1 else scores.square().sum(dim=0)


def _form(outputs: Any, batch: Any) -> Any:
    """What two batches have in common that a loss reads in the same way."""
    leaves, spec = tree_flatten(batch)
    kinds = tuple((leaf.dtype, leaf.ndim) if isinstance(leaf, Tensor) else type(leaf) for leaf in leaves)
    return spec, kinds, tuple((tensor.dtype, tensor.ndim) for tensor in tensors_in(outputs))


def _span(start: int, stop: int) -> str:
    return f"example {start}" if stop == start + 1 else f"examples {start} to {stop - 1}"


def _shown(value: Tensor) -> str:
    return f"{float(value):.6g}"
