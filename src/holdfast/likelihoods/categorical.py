"""Class targets: the softmax of the outputs, for examples, sequences and images of labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.errors import BatchError, OptionError
from holdfast.likelihoods.batches import targets_of
from holdfast.likelihoods.draws import Draws
from holdfast.likelihoods.many import MANY, divergence_from_kept, kept_answers, weighted
from holdfast.likelihoods.outputs import logits_of, seen_any, widened

IGNORED = -100
"""The label of a position that counts for nothing, as torch and Hugging Face have it."""


@dataclass(frozen=True)
class Categorical:
    """One class per example or per position: p(c|x) = softmax(logits)_c.

    Outputs [B, C] go with targets [B]; [B, T, C], or [B, C, d1, ...] as torch's cross-entropy has it, with targets
    [B, T] or [B, d1, ...]: there the sum over positions is taken, their labels being independent given x. Labels of
    -100 are skipped. Outputs narrower than float32 are widened first.

    Attributes:
        classes: the output columns that take part, the softmax being over them alone; targets keep the numbering of
            the full output. None: all.
        causal: whether position t predicts the label of position t + 1, as in causal language models. None: an
            importance decides it once for all batches, by the model's class and configuration where it is one of
            Hugging Face's, else by the first batch, and says in `info.details` what was decided. Without a model: true
            where the batch is a mapping whose `labels` all equal its `input_ids` wherever they are not -100.
        class_axis: the axis of the classes, 1 or -1. None: told from the shapes, an error where both fit and no earlier
            batch of the same measurement has told.

    Raises:
        OptionError: `classes` is empty, repeats itself or has a negative number; `class_axis` is not 1, -1 or None.
    """

    classes: Sequence[int] | None = None
    causal: bool | None = None
    class_axis: Literal[1, -1] | None = None

    def __post_init__(self) -> None:
        """Check the options; keep the classes as a tuple, so that equal likelihoods compare equal."""
        if self.classes is not None:
            classes = tuple(int(column) for column in self.classes)
            if not classes or min(classes) < 0 or len(set(classes)) < len(classes):
                raise OptionError(f"Categorical: classes={classes}, expected one or more distinct columns >= 0.")
            object.__setattr__(self, "classes", classes)
        if self.class_axis not in (1, -1, None):
            raise OptionError(f"Categorical: class_axis={self.class_axis!r}, expected 1, -1 or None.")

    @property
    def name(self) -> str:
        """The name kept in the record of an importance: "categorical"."""
        return "categorical"

    def nll(self, outputs: Any, batch: Any) -> Tensor:
        """[B]: the cross-entropy, summed over positions.

        Raises:
            BatchError: outputs and targets do not fit each other, or a target is outside the classes.
        """
        return _cross_entropy(*self._read(outputs, batch))

    def exact_scores(self, outputs: Any, batch: Any) -> Tensor:
        """[T * (n - 1), B]: for every position as many scores as there are active classes, less one.

        The Fisher matrix of n logits is diag(p) - p p^T, of rank n - 1. Choosing one class after the other, j or a
        later one, it is sum_j v_j v_j^T with v_j = sqrt(p_j r_j / (p_j + r_j)) (e_j - sum_{i > j} p_i e_i / r_j), and
        r_j = sum_{i > j} p_i. The scores are v_j^T logits, v_j held constant.

        Raises:
            BatchError: as for `nll`.
        """
        logits, labels = self._read(outputs, batch)
        p = logits.detach().softmax(dim=-1)
        scores = _one_after_the_other(p, logits.masked_fill(p == 0, 0.0))  # of a class masked by -inf 0, not 0 * inf
        return (scores * (labels != IGNORED).unsqueeze(-1)).flatten(1).T

    def sampled(self, outputs: Any, batch: Any, *, draws: Draws) -> Tensor:
        """[B]: the cross-entropy at labels drawn from the softmax; positions labelled -100 stay skipped.

        Raises:
            BatchError: as for `nll`.
        """
        logits, labels = self._read(outputs, batch)
        drawn = _drawn(logits.detach().softmax(dim=-1), draws).squeeze(-1)
        return _cross_entropy(logits, drawn.masked_fill(labels == IGNORED, IGNORED))

    def top_scores(self, outputs: Any, batch: Any, *, top_k: int, draws: Draws) -> Tensor:
        """[top_k + 1, B]: scores whose squared gradients add up to the Fisher in expectation, for many classes.

        As `exact_scores`, with the `top_k` most probable classes and then all others at once; what these are among
        themselves, p_rest times the covariance of e_c there, is told by one class drawn among them. Over the positions
        of a sequence each row is summed with random signs, of which the mixed products cancel in expectation.

        Raises:
            BatchError: as for `nll`.
        """
        logits, labels = self._read(outputs, batch)
        p = logits.detach().softmax(dim=-1)
        logits = logits.masked_fill(p == 0, 0.0)
        top = p.topk(min(top_k, p.shape[-1]), dim=-1)
        others = p.scatter(-1, top.indices, 0.0)
        rest = others.sum(dim=-1, keepdim=True)
        mean = (others * logits).sum(dim=-1, keepdim=True) / rest.clamp(min=torch.finfo(p.dtype).tiny)
        drawn = _drawn(torch.where(rest > 0, others, p), draws)
        among_top = _one_after_the_other(
            torch.cat([top.values, rest], dim=-1), torch.cat([logits.gather(-1, top.indices), mean], dim=-1)
        )
        among_others = rest.sqrt() * (logits.gather(-1, drawn) - mean)
        scores = torch.cat([among_top, among_others], dim=-1) * (labels != IGNORED).unsqueeze(-1)
        if scores.shape[1] > 1:
            coins = draws.other(0).uniform(scores.shape, scores) < 0.5
            scores = scores.where(coins, -scores)
        return scores.sum(dim=1).T

    def num_targets(self, batch: Any) -> int:
        """How many labels count: those that a position predicts, and that are not skipped.

        Raises:
            BatchError: the targets are no class numbers.
        """
        return int((self._shifted(_class_numbers(batch), batch) != IGNORED).sum())

    def answers(self, outputs: Any, batch: Any) -> dict[str, Tensor]:
        """What the outputs say: log p(c|x) [B, T, n] of n classes.

        Of more than 1,024 classes the 64 most probable, `classes` [B, T, 64], and as a 65th their rest in one. The rest
        is told by 64 classes drawn from it, `drawn` [B, T, 64], with log p(c | x, rest), `log_drawn` [B, T, 64]: evenly
        over its cumulated probabilities from a random place, the same in every call.

        Raises:
            BatchError: as for `nll`.
        """
        logits = self._read(outputs, batch)[0].detach()
        return {"log_p": logits.log_softmax(dim=-1)} if logits.shape[-1] <= MANY else kept_answers(logits)

    def divergence(self, outputs: Any, answers: Mapping[str, Tensor], batch: Any) -> Tensor:
        """[B]: KL(p || q) from earlier `answers` p to the outputs q, in nats, summed over the positions that count.

        Over the classes that there were then: q is of these alone where the outputs have grown, from 1,024 or fewer.
        Of more, sum_k p log(p/q) over those kept, p_rest log(p_rest/q_rest) of the others, new ones among them, in one,
        and p_rest times KL(p || q) within the rest. This is taken over the M drawn from it, with r = q/p:
        log(1/M sum r) - 1/M sum log r. Never below 0, and of expectation no more than the whole KL.

        Raises:
            BatchError: as for `nll`, or there are fewer classes now.
        """
        logits, labels = self._read(outputs, batch)
        log_p = answers["log_p"]
        if log_p.dtype != logits.dtype:  # rounded to be kept: the errors of first order cancel in a distribution
            log_p = log_p.to(logits.dtype).log_softmax(dim=-1)
        if "classes" in answers:
            terms = divergence_from_kept(logits, log_p, answers)
        elif logits.shape[-1] < log_p.shape[-1]:
            raise BatchError(
                f"categorical loss: {logits.shape[-1]} classes, where the earlier answers have {log_p.shape[-1]}."
            )
        else:
            terms = weighted(log_p, log_p - logits[..., : log_p.shape[-1]].log_softmax(dim=-1))
        return (terms * (labels != IGNORED)).sum(dim=1)

    def _read(self, outputs: Any, batch: Any) -> tuple[Tensor, Tensor]:
        """Logits [B, T, n] of the n active columns and labels [B, T], 0..n-1 or -100; T counts all positions."""
        logits, targets = widened(logits_of(outputs)), _class_numbers(batch)
        logits = logits.movedim(self._axis(logits, targets), -1)
        labels = self._shifted(targets, batch)
        positions = labels.shape[1:].numel()
        logits = logits.reshape(len(labels), positions, logits.shape[-1])
        return self._restricted(logits, labels.reshape(len(labels), positions))

    def only_axis(self, outputs: Any, batch: Any) -> Literal[1, -1] | None:
        """The axis of the classes where shapes leave no doubt; None where they do, or where there are no positions."""
        logits, targets = logits_of(outputs), targets_of(batch)
        fits = _fitting(logits, targets) if logits.ndim > 2 else []
        return fits[0] if len(fits) == 1 else None

    def _axis(self, logits: Tensor, targets: Tensor) -> int:
        shape, fits = list(logits.shape), _fitting(logits, targets)
        if self.class_axis is not None:
            fits = [axis for axis in fits if axis == self.class_axis]
        if not fits:
            raise BatchError(
                f"categorical loss: found outputs of shape {shape} with targets of shape {list(targets.shape)} "
                f"(class_axis={self.class_axis}), expected [B, C] with [B], [B, T, C] with [B, T], or "
                "[B, C, d1, ...] with [B, d1, ...]."
            )
        if len(fits) > 1 and logits.ndim > 2:
            raise BatchError(
                f"categorical loss: outputs of shape {shape} may have their classes on axis 1 or on the last. "
                "Pass loss=Categorical(class_axis=1) or loss=Categorical(class_axis=-1)."
            )
        return fits[0]

    def _shifted(self, targets: Tensor, batch: Any) -> Tensor:
        """Where the model is causal, the label of the next position at every position, and -100 at the last."""
        ids = batch.get("input_ids") if isinstance(batch, Mapping) else None
        if self.causal and targets.ndim != 2:
            raise BatchError(
                f"categorical loss: causal=True with targets of shape {list(targets.shape)}, expected [B, T]."
            )
        if self.causal is None and isinstance(ids, Tensor) and targets.ndim == 2 and ids.shape == targets.shape:
            causal = ((targets == ids) | (targets == IGNORED)).all()
            return _next(targets).where(causal, targets)
        return _next(targets) if self.causal else targets

    def _restricted(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The logits of the active columns, and the labels' places among these."""
        width, counts = logits.shape[-1], labels != IGNORED
        if self.classes is None:
            _check_labels(labels, counts & ((labels < 0) | (labels >= width)), f"0..{width - 1}")
            return logits, labels
        if max(self.classes) >= width:
            raise BatchError(f"categorical loss: classes={self.classes}, but the outputs have {width} columns.")
        columns = torch.tensor(self.classes, device=logits.device)
        match = labels.unsqueeze(-1) == columns
        outside = counts & ~match.any(dim=-1)
        _check_labels(labels, outside, f"{self.classes}")
        # under vmap nothing was checked: a place that does not exist lets torch complain
        places = match.int().argmax(dim=-1).masked_fill(outside, len(columns))
        return logits[..., columns], places.where(counts, IGNORED)


def _class_numbers(batch: Any) -> Tensor:
    """The targets, as int64."""
    targets = targets_of(batch)
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise BatchError(
            f"categorical loss: found targets of {targets.dtype}, expected integer class numbers. "
            "For other targets pass loss='gaussian' or loss='bernoulli'."
        )
    return targets.long()


def _fitting(logits: Tensor, targets: Tensor) -> list[Literal[1, -1]]:
    """The axes that the classes may have."""
    shape = list(logits.shape)
    rest: dict[Literal[1, -1], list[int]] = {1: shape[:1] + shape[2:], -1: shape[:-1]} if logits.ndim >= 2 else {}
    return [axis for axis, found in rest.items() if found == list(targets.shape)]


def _check_labels(labels: Tensor, outside: Tensor, expected: str) -> None:
    if seen_any(outside):
        found = ", ".join(str(label) for label in labels[outside].unique().tolist()[:10])
        raise BatchError(
            f"categorical loss: found class {found} among the targets, expected classes in {expected}, "
            f"or {IGNORED} for what is skipped."
        )


def _next(labels: Tensor) -> Tensor:
    return F.pad(labels[:, 1:], (0, 1), value=IGNORED)


def _one_after_the_other(p: Tensor, logits: Tensor) -> Tensor:
    """[..., n - 1] from [..., n]: v_j^T logits, with sum_j v_j v_j^T = diag(p) - p p^T (see `exact_scores`)."""
    from_here = p.flip(-1).cumsum(-1).flip(-1)
    here, rest = from_here[..., :-1], from_here[..., 1:]
    weight = (p[..., :-1] * rest / here).sqrt().masked_fill(rest == 0, 0.0)
    sum_of_rest = (p * logits).flip(-1).cumsum(-1).flip(-1)[..., 1:]
    return weight * (logits[..., :-1] - sum_of_rest / rest.clamp(min=torch.finfo(p.dtype).tiny))


def _drawn(p: Tensor, draws: Draws) -> Tensor:
    """[B, T, 1]: a class drawn from each of the distributions [B, T, n], by inversion: one random number each."""
    cumulated = p.cumsum(dim=-1)
    total = cumulated[..., -1:]
    chance = draws.uniform(total.shape, p) * total
    chance = torch.minimum(chance, torch.nextafter(total, torch.zeros_like(total)))  # below the last class that can be
    return torch.searchsorted(cumulated, chance, right=True)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """[B] from [B, T, n] and [B, T], summed over positions."""
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none", ignore_index=IGNORED)
    return losses.view_as(labels).sum(dim=1)
