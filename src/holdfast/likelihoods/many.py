"""Answers over many classes, of which few are kept: the most probable, and some drawn from the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

MANY = 1024
"""Of more classes than this, few answers are kept."""

KEPT = 64
"""So many of the most probable, and as many drawn among the others."""


def kept_answers(logits: Tensor) -> dict[str, Tensor]:
    """What softmax(logits) [..., n] says, in few numbers.

    Returns:
        classes: [..., k], the most probable.
        log_p: [..., k + 1], of those, and of all others together.
        drawn: [..., M], of the others: evenly over their cumulated probabilities, from a random place.
        log_drawn: [..., M], log p(c | the others).
    """
    top, total = logits.topk(KEPT, dim=-1).indices, logits.logsumexp(dim=-1, keepdim=True)
    others = (logits - total).exp_().scatter_(-1, top, 0.0)
    log_rest = others.sum(dim=-1, keepdim=True).log()
    drawn = _drawn_evenly(others, KEPT)
    log_drawn = logits.gather(-1, drawn) - total - log_rest
    return {
        "log_p": torch.cat([logits.gather(-1, top) - total, log_rest], dim=-1),
        "classes": top,
        "drawn": drawn,
        "log_drawn": log_drawn.masked_fill(log_rest == -torch.inf, 0.0),
    }


def divergence_from_kept(logits: Tensor, log_p: Tensor, answers: Mapping[str, Tensor]) -> Tensor:
    """[...]: KL(p || q) from what `kept_answers` told of p to q = softmax(logits), in nats.

    By the chain rule it is that of the classes kept and the rest in one, sum_k p log(p/q) + p_rest log(p_rest/q_rest),
    and p_rest times that within the rest. The latter is taken over the M drawn, with r = q/p: log(1/M sum r) -
    1/M sum log r, which is never below 0 and, over draws, at most the whole; as is the first part alone, where nothing
    was drawn.

    Args:
        logits: [..., n], with their graph.
        log_p: [..., k + 1], as in `answers`, in the logits' dtype.
        answers: the other parts, in any dtype of their kind.

    Cost: beside the logits one tensor of their size in either pass.
    """
    top, drawn = answers["classes"].long(), answers.get("drawn")
    places = top if drawn is None else torch.cat([top, drawn.long()], dim=-1)
    found, total = _gathered(logits, places)
    log_q = found[..., : top.shape[-1]] - total
    least = torch.finfo(logits.dtype).eps
    log_q_rest = (1 - log_q.exp().sum(dim=-1, keepdim=True)).clamp(min=least).log()
    terms = weighted(log_p, log_p - torch.cat([log_q, log_q_rest], dim=-1))
    if drawn is None:
        return terms
    p_rest = log_p[..., -1:].exp()
    log_r = found[..., top.shape[-1] :] - answers["log_drawn"].to(found.dtype)  # but for a constant, which falls out
    log_r = log_r.masked_fill(p_rest == 0, 0.0)
    return terms + p_rest[..., 0] * (log_r.logsumexp(dim=-1) - math.log(log_r.shape[-1]) - log_r.mean(dim=-1))


def weighted(log_p: Tensor, values: Tensor) -> Tensor:
    """[...] from [..., n] twice: the sum under p; what has no probability counts for nothing."""
    return torch.where(log_p == -torch.inf, 0.0, log_p.exp() * values).sum(dim=-1)


def _drawn_evenly(p: Tensor, count: int) -> Tensor:
    """[..., count] of each [..., n], whatever its sum: by inversion at even steps (systematic), alike in every call."""
    cumulated = p.cumsum(dim=-1)
    start = torch.rand(p[..., :1].shape, generator=torch.Generator().manual_seed(0), dtype=p.dtype)
    places = (start.to(p.device) + torch.arange(count, device=p.device, dtype=p.dtype)) / count * cumulated[..., -1:]
    return torch.searchsorted(cumulated, places, right=True).clamp(max=p.shape[-1] - 1)


class _GatheredLogits(torch.autograd.Function):
    """Some of the logits, and the logsumexp of all; autograd's own way has a tensor of their size for each of both."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        total = logits.logsumexp(dim=-1, keepdim=True)
        ctx.save_for_backward(logits, places, total)
        return logits.gather(-1, places), total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, found: Tensor, whole: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        logits, places, total = ctx.saved_tensors
        return (logits - total).exp_().mul_(whole).scatter_add_(-1, places, found), None


def _gathered(logits: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """[..., m] and [..., 1]: the logits at places [..., m], and the logsumexp of all."""
    return _GatheredLogits.apply(logits, places)  # type: ignore[return-value]
