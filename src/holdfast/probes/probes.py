"""Inputs of an old task with the old network's answers, and how far today's answers are from these."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from holdfast.errors import NotFiniteError, OptionError, StateError
from holdfast.likelihoods.batches import batch_copied, batch_size, batch_to, model_inputs
from holdfast.likelihoods.likelihood import AtTargets, Comparable, PerExample, num_targets
from holdfast.probes.evaluating import evaluating


@dataclass(frozen=True)
class Probe:
    """A batch of probes.

    Attributes:
        batch: as the data gave it, first axis the examples.
        answers: what the network said of it when its task was closed, likewise.
        num_targets: of all its examples; 0 for a batch that only keeps other processes company, whose weights come and
            go with this one's, and that counts for nothing.
    """

    batch: Any
    answers: Mapping[str, Tensor]
    num_targets: int


@dataclass(frozen=True)
class Probes:
    """Inputs of an old task and the old network's answers: on these the rise of its loss is measured.

    The rise is the mean over targets of the divergence from old to new answers, in nats:

        classes             KL(p || q) over the classes that there were then; of texts summed over the tokens
        several labels      the sum of the binary KLs
        real numbers        (f - f_0)^2 / (2 s^2), s^2 the variance of the old residuals
        sentence encoders   (cos - cos_0)^2 / (2 * 0.04), of fixed pairs (`Similarity`)
        a loss of one's own its rise at the targets

    Made by `probes_of`; kept in checkpoints of a keeper. They are examples: the folders of importances, which are to be
    shared, leave them out, and `save` writes one of their own.

    Attributes:
        loss: what compares answers.
        batches: the probes.
    """

    loss: Comparable
    batches: Sequence[Probe] = field(default_factory=tuple)

    def __repr__(self) -> str:
        return f"Probes({self.loss.name}, {self.num_examples} examples, {self.num_targets} targets)"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the folder `path`: `probes.safetensors` and `probes_config.json`, whole or not at all.

        Raises:
            StateError: a batch holds something that is neither a tensor nor a JSON value.
            OutputError: it cannot be written, or holds what holdfast did not write; it is then unchanged.
        """
        from holdfast.probes import files  # which makes probes

        files.save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Probes:
        """Read a folder that `save` wrote; a loss of one's own is not in it (`with_loss`).

        Raises:
            FileFormatError: a file is missing, truncated, edited or of another version.
        """
        from holdfast.probes import files

        return files.load(path)

    @classmethod
    def taken(cls, model: nn.Module, data: Iterable[Any], loss: Comparable) -> Self:
        """Ask a model for its answers on batches, which may lie on another device.

        Raises:
            NotFiniteError: an answer is NaN.
            OptionError: there is no target.

        Inputs are copied: the data may use their memory again.
        """
        found = []
        with evaluating(model) as bare:
            for content in data:
                batch, outputs = _asked(bare, content)
                targets = num_targets(loss, batch)
                if targets:
                    answers = batch_copied(loss.answers(outputs, batch))
                    _check_answers(answers)
                    found.append(Probe(batch_copied(batch), answers, targets))
        if not found:
            raise OptionError(
                f"probes: the data held no target of the loss {loss.name!r}. Pass an iterable of batches with targets "
                'in them, under "similarity" of two inputs or more.'
            )
        return cls(loss, tuple(found))

    def with_loss(self, function: Callable[[Any, Any], Tensor]) -> Probes:
        """The same probes, compared by a loss of one's own: (outputs, batch) -> [B], as when they were taken."""
        return replace(self, loss=AtTargets(PerExample(function, "probes")))

    @property
    def num_examples(self) -> int:
        """Of all probes."""
        return sum(batch_size(probe.batch) for probe in self.batches if probe.num_targets)

    @property
    def num_targets(self) -> int:
        """Of all probes."""
        return sum(probe.num_targets for probe in self.batches)

    @property
    def nbytes(self) -> int:
        """Memory of inputs and answers."""
        tensors = [t for probe in self.batches for t in tree_flatten((probe.batch, dict(probe.answers)))[0]]
        return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, Tensor))

    def rise(self, model: nn.Module) -> float:
        """How far today's answers are from the old ones, in nats per target.

        The model is asked in evaluation mode and left as it was. Not rounded, and below zero only for a loss of one's
        own.

        Raises:
            NotFiniteError: an answer is NaN or infinite.
            StateError: the model takes these inputs no more, or gives outputs of another form.

        Cost: one forward pass over the probes.
        """
        total = torch.zeros((), dtype=torch.float64)
        with evaluating(model) as bare:
            for probe in self.batches:
                try:
                    batch, outputs = _asked(bare, probe.batch)
                    answers = batch_to(probe.answers, next(bare.parameters()).device)
                    found = self.loss.divergence(outputs, answers, batch).sum().double().cpu()
                    total += found if probe.num_targets else 0.0
                except (torch.OutOfMemoryError, StateError):
                    raise
                except (RuntimeError, TypeError, ValueError, LookupError) as error:
                    raise StateError(
                        f"probes: the model does not take them as it did ({error}). Its inputs or outputs have changed "
                        "since they were taken: take probes of the model as it is now."
                    ) from error
        rise = float(total) / self.num_targets
        if not torch.isfinite(total):
            raise NotFiniteError(
                f"probes: the rise of an old skill is {rise}. Look for NaN in the weights, or a step that overflowed."
            )
        return rise


def _asked(model: nn.Module, content: Any) -> tuple[Any, Any]:
    """The batch on the model's device, and the outputs; a model that changes its inputs is given copies."""
    batch = batch_to(content, next(model.parameters()).device)
    args, kwargs = model_inputs(batch_copied(batch))
    return batch, model(*args, **kwargs)


def _check_answers(answers: Mapping[str, Tensor]) -> None:
    count = sum(int(answer.isnan().sum()) for answer in answers.values())
    if count:
        raise NotFiniteError(
            f"probes: {count} numbers of the model's answers are NaN. Look for NaN in the weights, or in the probes' "
            "inputs."
        )
