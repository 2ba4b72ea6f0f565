"""How many nats one unit of an importance is worth: real rises of the loss under a few perturbations of the weights."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.likelihoods.likelihood import Likelihood, num_targets
from holdfast.moments.calls import Call
from holdfast.tensors import copies, sum_of, trainable_parameters, unwrap

CALIBRATION_EXAMPLES = 1000
"""The rises are measured on the first batches of the data, until so many examples are reached."""

_DIRECTIONS = 4
_LOW, _HIGH = 0.02, 0.3  # nats: above rounding and below where the loss stops being a parabola
_DOUBLINGS = 40

Sample = Sequence[tuple[Call, Any]]


def measured_nats_per_unit(
    model: nn.Module, importance: Mapping[str, Tensor], sample: Sample, likelihood: Likelihood, *, seed: int
) -> float | None:
    """The factor c for which c * 1/2 sum Omega d^2 is nearest to the rise of the mean loss over targets, in nats.

    Rise for a perturbation d: (L(theta + d) + L(theta - d))/2 - L(theta), in which the slope cancels. Four Gaussian
    directions of equal standard deviation for all weights, scaled so that the first rises by 0.02 to 0.3 nats; least
    squares through the origin.

    Args:
        model: in evaluation mode.
        importance: name -> Omega; parameters that it leaves out are not moved.
        sample: calls and batches, about a thousand examples.
        likelihood: whose mean negative log-likelihood, over targets, is L.
        seed: of the directions.

    Returns:
        c > 0, in nats per unit of the importance; None, with a warning, where the loss does not rise or all importances
        are zero.

    Cost: two forward passes over the sample for each of four directions and for each trial of the scale, usually about
    twenty; two copies of the weights. The weights are given back bit by bit.
    """
    rows = []
    with _restored(model) as weights:
        start = _mean_loss(model, sample, likelihood)
        scale = 1e-3
        for number in range(_DIRECTIONS):
            direction = _gaussian({name: weights[name] for name in weights if name in importance}, seed=seed + number)

            def rise(scale: float, direction: Mapping[str, Tensor] = direction) -> float:
                both = 0.0
                for sign in (1.0, -1.0):
                    _move(model, weights, direction, sign * scale)
                    both += _mean_loss(model, sample, likelihood)
                return both / 2 - start

            if number == 0:
                scale = _fitting_scale(rise, scale)
            predicted = sum_of((importance[name] * d.square()).sum() for name, d in direction.items()) * scale**2 / 2
            rows.append((predicted, rise(scale)))
    squares = sum(predicted**2 for predicted, _ in rows)
    factor = sum(predicted * measured for predicted, measured in rows) / squares if squares > 0 else 0.0
    if not (math.isfinite(factor) and factor > 0):
        predicted, measured = rows[0]
        warnings.warn(
            f"calibration: no factor found, nats_per_unit stays None: a perturbation by {scale:.3g} a weight raises "
            f"the mean loss by {measured:.3g} nats, where 1/2 sum Omega d^2 is {predicted:.3g}. "
            "Measure a trained model, on data that it fits.",
            stacklevel=4,
        )
        return None
    return factor


def _fitting_scale(rise: Any, scale: float) -> float:
    """A scale whose rise is between the bounds, found by doubling or halving and then bisection (of the logarithm)."""
    low, high = 0.0, math.inf
    for _ in range(_DOUBLINGS):
        found = rise(scale)
        if _LOW <= found <= _HIGH:
            break
        if found < _LOW:
            low = scale
        else:  # also where the loss is no longer finite
            high = scale
        scale = 2 * scale if high == math.inf else scale / 2 if low == 0.0 else math.sqrt(low * high)
    return scale


@contextmanager
def _restored(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Copies of the trainable weights, which are put back at the end."""
    weights = copies(trainable_parameters(model))
    try:
        yield weights
    finally:
        with torch.no_grad():
            for name, parameter in trainable_parameters(model).items():
                parameter.copy_(weights[name])


def _gaussian(weights: Mapping[str, Tensor], *, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(w.shape, generator=generator, dtype=torch.float32).to(w.device) for name, w in weights.items()
    }


@torch.no_grad()
def _move(model: nn.Module, weights: Mapping[str, Tensor], direction: Mapping[str, Tensor], scale: float) -> None:
    parameters = trainable_parameters(model)
    for name, along in direction.items():
        parameters[name].copy_(weights[name] + scale * along.to(parameters[name].dtype))


def _mean_loss(model: nn.Module, sample: Sample, likelihood: Likelihood) -> float:
    # with a graph, although none is needed: a forward pass may take gradients itself
    losses = [likelihood.nll(call(unwrap(model)), batch).detach().double().sum() for call, batch in sample]
    return sum_of(losses) / max(1, sum(num_targets(likelihood, batch) for _, batch in sample))
