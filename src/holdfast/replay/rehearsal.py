"""The past learned again beside the new task, a share of the steps, in a training loop that knows nothing of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from holdfast.errors import EmptyDataError, NotFiniteError, OptionError, ParameterMismatchError, StateError
from holdfast.likelihoods.batches import batch_copied, batch_size, batch_to, model_inputs, slice_batch
from holdfast.likelihoods.forms import check_is_many, check_taken
from holdfast.likelihoods.likelihood import Likelihood, Similarity, num_targets, resolve_likelihood
from holdfast.likelihoods.shift import decided
from holdfast.probes import Probes
from holdfast.probes.probes import Probe
from holdfast.replicas import Replicas
from holdfast.steps import StepHooks, bare_optimizer, is_skipped
from holdfast.tensors import all_parameters, trainable_parameters, unwrap


class Rehearsal:
    """Rehearses the past while an optimizer learns something new: old answers, or old data.

        old = hf.probes_of(model, old_inputs, num_examples=None)     # what the model answers now, before it learns on
        hf.Rehearsal(model, old, share=0.1).attach(optimizer)        # the loop does not change

    In one step of every n, n the nearest whole number to 1/share, the gradient of one batch of the past is added to
    that of the new task, when this is complete: after accumulation, clipping and the scaler, before the optimizer and
    a keeper use it. The batch's loss is the mean over its targets, of

        old answers     the divergence from them, such as KL(p_old || p_now) (`Probes`)
        old data        their own loss

    times `weight`: at 1 a rehearsed step weighs the past and the present alike. So share decides what rehearsal costs,
    and share * weight how much the past counts. Batches are taken in an order drawn anew each time all have been seen.
    Old answers to inputs of the *new* task are what learning without forgetting rehearses (Li & Hoiem 2016, arXiv
    1606.09282), a model's own samples with its answers what deep generative replay does (Shin et al. 2017, arXiv
    1705.08690).

    Where the new task is learned through another head, `model` is the old one over the same base: a classifier with its
    old head, or an encoder that gives embeddings, of which the old cosines are rehearsed (`probes_of` with
    loss="similarity"). An old head that the optimizer does not train stays as it is.

    Replicas in several processes (`group`) add the mean of what each finds on its own past, and so stay equal: give
    each the same past or a part of its own, and a rehearsal to all. Under `fully_shard` too.

    Args:
        model: which learns, or another over the same weights, in whatever mode it is in; wrappers are seen through.
        past: `Probes`, from which the batches and answers are taken as they are; or batches of old data, of which
            copies are kept in memory.
        share: of batches that are of the past, above 0 and at most 1; as large as the new ones, they take that share of
            the time.
        weight: of the past in a rehearsed step, above 0.
        parts: into which every batch of the past is cut, at most n: they are rehearsed one after the other, evenly over
            the n steps, each with its share of the batch's gradient. That costs what whole batches cost, and many small
            gradients disturb the new task less than a large one now and then, above all under Adam, which divides by
            the root of their mean square. 1: whole, as what compares examples needs them (similarity, batch norm in
            training mode).
        loss: of old data, as for `fisher`; none with `Probes`, which have one.
        autocast: torch.bfloat16 to run the model in, or None for the dtype of its weights.
        seed: of the orders.

    Attributes:
        every: n.
        num_steps: steps that were counted so far; set it, or load a state, to go on where another training stopped.
        last_loss: of the last rehearsed batch or part, in nats per target, its mean over replicas, 0 of a part without
            a target; None before one.
        parts: as given, and at most n.
        model, weight, autocast: as given.

    Raises:
        BatchError: the data are in no form of batches that the model takes.
        EmptyDataError: there is no batch, or no target in one.
        OptionError: an option out of its range, or a loss beside `Probes`.

    Cost: share times the time of a training step on such a batch, once the new task's graph is gone: no more memory at
    the peak than this step takes itself. The batches and answers stay in memory, where they are. Between replicas an
    all-reduce of the gradients.
    """

    def __init__(
        self,
        model: nn.Module,
        past: Probes | Iterable[Any],
        *,
        share: float = 0.1,
        weight: float = 1.0,
        parts: int = 1,
        loss: str | Likelihood | Callable[[Any, Any], Tensor] | None = None,
        autocast: torch.dtype | None = None,
        seed: int = 0,
    ) -> None:
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise OptionError(f"Rehearsal: share={share!r}, expected a number above 0 and at most 1, such as 0.1.")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
            raise OptionError(f"Rehearsal: weight={weight!r}, expected a number above 0, such as 1.0.")
        if isinstance(parts, bool) or not isinstance(parts, int) or parts < 1:
            raise OptionError(f"Rehearsal: parts={parts!r}, expected a whole number >= 1.")
        if autocast not in (None, torch.bfloat16):
            raise OptionError(
                f"Rehearsal: autocast={autocast!r}, expected torch.bfloat16 or None. Float16 has no room for small "
                "gradients without a loss scale; None runs the past in the dtype of the weights."
            )
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise OptionError(f"Rehearsal: seed={seed!r}, expected a whole number.")
        if not isinstance(past, Probes):
            check_is_many(past, "Rehearsal")
        if isinstance(past, Probes):
            if loss is not None:
                raise OptionError(f"Rehearsal: loss={loss!r} beside probes, which have their own. Leave it out.")
            self._loss: Any = past.loss
            self._past = list(past.batches)
        elif not isinstance(past, Iterable):
            raise OptionError(
                f"Rehearsal: found a past of type {type(past).__name__}. Pass probes (those of dreams are "
                "dreams.probes), or batches of old data."
            )
        else:
            self._loss, self._past = _old_data(model, past, resolve_likelihood(loss, where="Rehearsal"))
        if not self._past:
            raise EmptyDataError(
                "Rehearsal: the past held no batch with a target. Pass probes, or batches of old data."
            )
        if parts > 1 and isinstance(self._loss, Similarity):
            raise OptionError(
                f"Rehearsal: parts={parts}, and similarity compares the examples of a batch. Leave parts out."
            )
        self.every = max(1, round(1 / share))
        self.parts = min(parts, self.every)
        self.num_steps = 0
        self.last_loss: float | None = None
        self.autocast = autocast
        self.model, self.weight, self._seed = model, weight, seed
        self._replicas = Replicas(model)
        self._hooks: StepHooks | None = None
        self._order: tuple[int, list[int]] = (-1, [])

    def __repr__(self) -> str:
        return f"Rehearsal({len(self._past)} batches of the past, one every {self.every} steps)"

    @property
    def group(self) -> Any:
        """The process group that trains the model together; None for this process alone.

        It is that of the `DistributedDataParallel` that the rehearsal was built on, or all processes where
        `fully_shard` has spread the model. Of a bare model that is wrapped later it is to be set, in all processes; the
        callbacks for Trainers do so.
        """
        return self._replicas.group

    @group.setter
    def group(self, value: Any) -> None:
        self._replicas.named = value

    def attach(self, optimizer: Any) -> Self:
        """Rehearse in this optimizer's steps from now on, through its step hooks, for the parameters that it trains.

        Returns:
            The rehearsal itself.

        Raises:
            ParameterMismatchError: the optimizer trains none of the model's parameters.
            StateError: it is attached already, or the optimizer's steps cannot be followed.
        """
        if self._hooks is not None:
            raise StateError(
                "Rehearsal.attach: it is attached already. Call detach() first; where several optimizers train one "
                "model, give each a rehearsal of its own."
            )
        bare = bare_optimizer(optimizer)
        if not _trained(bare, all_parameters(self.model).values()):
            raise ParameterMismatchError(
                "Rehearsal.attach: the optimizer trains none of the model's parameters. Make the optimizer from "
                "model.parameters(), or the rehearsal with the model that it trains."
            )
        self._hooks = StepHooks(bare, gradients=self._rehearse)
        return self

    def detach(self) -> Self:
        """Leave the optimizer as it was."""
        if self._hooks is not None:
            self._hooks.remove()
        self._hooks = None
        return self

    def state_dict(self) -> dict[str, int]:
        """What decides the batches to come."""
        return {"num_steps": self.num_steps}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where another training stopped.

        Raises:
            StateError: this is no state of a rehearsal.
        """
        count = state.get("num_steps")
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise StateError(f"Rehearsal.load_state_dict: num_steps is {count!r}, expected a whole number >= 0.")
        self.num_steps = count

    def _rehearse(self, optimizer: Optimizer) -> None:
        if is_skipped(optimizer):
            return
        self.num_steps += 1
        model = unwrap(self.model)
        every = list(trainable_parameters(model).values())
        parameters = _trained(optimizer, every)
        number, place = divmod(self.num_steps - 1, self.every)
        part, following = (step * self.parts // self.every for step in (place, place + 1))
        if part == following or not parameters:
            return
        device = parameters[0].device
        probe = self._past[self._at(number)]
        with torch.enable_grad(), torch.autocast(device.type, self.autocast, enabled=self.autocast is not None):
            loss, share = self._part(model, probe, part, device)
        (self.last_loss,) = self._replicas.agreed([float(loss.detach())])
        if not math.isfinite(self.last_loss):
            raise NotFiniteError(
                f"Rehearsal: the loss of a batch of the past is {self.last_loss}, and nothing was added to the "
                "gradients. Look for NaN in the weights, or for a step that overflowed."
            )
        # a fused optimizer under GradScaler divides by the scale itself, inside its step
        scale = getattr(optimizer, "grad_scale", None)
        weight = self.weight * share if scale is None else self.weight * share * float(scale)
        if share:
            loss.backward(loss.new_tensor(weight), inputs=None if len(parameters) == len(every) else parameters)
        self._replicas.average_gradients(parameters)  # those of the new task are the same in all

    def _part(self, model: nn.Module, probe: Probe, part: int, device: torch.device) -> tuple[Tensor, float]:
        """The mean loss over the targets of a part of a batch, with its graph, and its share of the batch's targets."""
        kept, answers, count = probe.batch, dict(probe.answers), probe.num_targets
        if self.parts > 1:
            size = batch_size(kept)
            start, stop = (edge * size // self.parts for edge in (part, part + 1))
            kept = slice_batch(kept, start, stop, lists=True)
            answers = {name: answer[start:stop] for name, answer in answers.items()}
            count = num_targets(self._loss, kept) if stop > start else 0
        if not count:  # of a batch with fewer examples than parts, or of none that count
            return torch.zeros((), device=device, dtype=torch.float32), 0.0
        batch = batch_to(kept, device)
        outputs = _outputs(model, batch)
        if answers:
            found = self._loss.divergence(outputs, batch_to(answers, device), batch)
        else:
            found = self._loss.nll(outputs, batch)
        return found.sum() / count, count / probe.num_targets

    def _at(self, number: int) -> int:
        """Which batch the rehearsal of this number takes."""
        epoch, place = divmod(number, len(self._past))
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(self._seed + epoch)
            self._order = (epoch, torch.randperm(len(self._past), generator=generator).tolist())
        return self._order[1][place]


def _old_data(model: nn.Module, data: Iterable[Any], likelihood: Likelihood) -> tuple[Likelihood, list[Probe]]:
    past = [batch_copied(batch) for batch in data if batch_size(batch)]
    for batch in past:
        check_taken(model, batch, where="Rehearsal")
        likelihood = decided(likelihood, model, batch)  # the first that shows something
    counted = [Probe(batch, {}, num_targets(likelihood, batch)) for batch in past]
    return likelihood, [probe for probe in counted if probe.num_targets]


def _outputs(model: nn.Module, batch: Any) -> Any:
    args, kwargs = model_inputs(batch_copied(batch))  # a model may change its inputs
    return model(*args, **kwargs)


def _trained(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Those that the optimizer trains."""
    own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return [parameter for parameter in parameters if id(parameter) in own]
