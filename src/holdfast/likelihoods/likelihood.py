"""What the outputs of a model say about its targets: one negative log-likelihood per example, in nats.

Every likelihood here offers three readings of the same outputs, all differentiable in them:

* `nll`: at the targets of the batch;
* `sampled`: at targets drawn from the model itself, for the sampled Fisher;
* `exact_scores`: a few numbers per example whose squared gradients add up to the exact Fisher, the
  expectation over the model's own targets: K backward passes for what sampling gives on average.

All may be called inside `torch.func` transforms. Under `vmap` no value can be looked at, so that targets outside their
range are left to torch's own errors there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from holdfast.errors import OptionError, UnknownNameError
from holdfast.likelihoods.batches import batch_size, targets_of
from holdfast.likelihoods.categorical import Categorical
from holdfast.likelihoods.draws import Draws
from holdfast.likelihoods.elementwise import Bernoulli, Gaussian
from holdfast.likelihoods.outputs import check_per_example, logits_of
from holdfast.likelihoods.similarity import Similarity

__all__ = [
    "OWN",
    "Bernoulli",
    "Categorical",
    "Comparable",
    "CountsTargets",
    "Gaussian",
    "Likelihood",
    "PerExample",
    "Similarity",
    "check_per_example",
    "logits_of",
    "num_targets",
    "resolve_likelihood",
    "targets_of",
]


@runtime_checkable
class Likelihood(Protocol):
    """A distribution of targets given outputs; B examples a batch, everything in nats."""

    @property
    def name(self) -> str:
        """The name kept in the record of an importance."""
        ...

    def nll(self, outputs: Any, batch: Any) -> Tensor:
        """[B]: -log p(y|x) at the targets of the batch, summed over positions and output axes."""
        ...

    def exact_scores(self, outputs: Any, batch: Any) -> Tensor:
        """[K, B]: scores s, sum_k (d s_kb/d theta)^2 = E_{y ~ p(.|x_b)} (d log p(y|x_b)/d theta)^2."""
        ...

    def sampled(self, outputs: Any, batch: Any, *, draws: Draws) -> Tensor:
        """[B]: -log p(y|x) at y drawn from the model by the random numbers of `draws`; these carry no gradient."""
        ...


@runtime_checkable
class CountsTargets(Protocol):
    """A likelihood whose examples may have several targets each, or none, such as the tokens of sequences."""

    def num_targets(self, batch: Any) -> int:
        """How many targets the batch has, all examples together."""
        ...


def num_targets(likelihood: Likelihood | Comparable, batch: Any) -> int:
    """How many targets a batch has, by which sums over its examples are divided.

    Those that a likelihood with `num_targets` counts, such as the labels of `Categorical` that are not skipped. Of any
    other likelihood, and of a loss function, an example is one target, whatever its loss is summed over: the outputs of
    an example under "gaussian" and "bernoulli".
    """
    return likelihood.num_targets(batch) if isinstance(likelihood, CountsTargets) else batch_size(batch)


class Comparable(Protocol):
    """What can say how far today's outputs are from those of earlier weights; every likelihood here can.

    `answers` have the examples on their first axis.
    """

    @property
    def name(self) -> str:
        """As of a likelihood."""
        ...

    def answers(self, outputs: Any, batch: Any) -> dict[str, Tensor]:
        """What is to be kept of the outputs."""
        ...

    def divergence(self, outputs: Any, answers: Mapping[str, Tensor], batch: Any) -> Tensor:
        """[B]: how far the outputs are from earlier answers, in nats, summed over an example's targets."""
        ...


@dataclass(frozen=True)
class PerExample:
    """A loss function of the user's own: it has a value at the batch's targets, and draws no others.

    Attributes:
        function: `function(outputs, batch)` returns one negative log-likelihood per example, [B], in nats.
        where: who asks, for messages.
    """

    function: Callable[[Any, Any], Tensor]
    where: str = "loss"

    @property
    def name(self) -> str:
        """The name kept in the record of an importance: "custom"."""
        return "custom"

    def nll(self, outputs: Any, batch: Any) -> Tensor:
        """[B]: what the function returns.

        Raises:
            LossShapeError: it returned something else than one value per example.
        """
        return check_per_example(self.function(outputs, batch), batch_size(batch), self.where)

    def exact_scores(self, outputs: Any, batch: Any) -> Tensor:
        """Not possible.

        Raises:
            OptionError: always.
        """
        raise self._no_distribution("exact")

    def sampled(self, outputs: Any, batch: Any, *, draws: Draws) -> Tensor:
        """Not possible.

        Raises:
            OptionError: always.
        """
        raise self._no_distribution("sampled")

    def _no_distribution(self, kind: str) -> OptionError:
        return OptionError(
            f'{self.where}: kind="{kind}" needs the distribution of the targets, and loss= is a function, '
            'which knows only its value at the labels. Pass kind="empirical" or kind="batched", or name the '
            'distribution: loss="categorical", "gaussian" or "bernoulli".'
        )


@dataclass(frozen=True)
class AtTargets:
    """Compares answers by the loss at the batch's targets: what a likelihood of any kind can do.

    Attributes:
        likelihood: whose loss it is.
    """

    likelihood: Likelihood

    @property
    def name(self) -> str:
        """The name kept in records: "custom"."""
        return "custom"

    def num_targets(self, batch: Any) -> int:
        """As the likelihood has them."""
        return num_targets(self.likelihood, batch)

    def answers(self, outputs: Any, batch: Any) -> dict[str, Tensor]:
        """The loss [B] at the batch's targets."""
        return {"losses": self.likelihood.nll(outputs, batch).detach()}

    def divergence(self, outputs: Any, answers: Mapping[str, Tensor], batch: Any) -> Tensor:
        """[B]: how much higher the loss is; below zero where it has fallen."""
        return self.likelihood.nll(outputs, batch) - answers["losses"]


OWN = (Categorical, Gaussian, Bernoulli, Similarity)
"""The library's own: of these it is known that they read a batch example by example, whatever its size."""

_BY_NAME: dict[str, Callable[[], Likelihood]] = {
    "categorical": Categorical,
    "gaussian": Gaussian,
    "bernoulli": Bernoulli,
    "similarity": Similarity,
}


def resolve_likelihood(loss: str | Likelihood | Callable[[Any, Any], Tensor] | None, *, where: str) -> Likelihood:
    """The likelihood that a `loss=` argument stands for.

    Args:
        loss: "categorical", "gaussian", "bernoulli" or "similarity"; a `Likelihood`; a function of (outputs, batch)
            that returns one negative log-likelihood per example; or None for "categorical".
        where: the function that the user called, for messages.

    Raises:
        UnknownNameError: no likelihood has this name; the message offers the nearest.
        OptionError: the loss is none of these, or one of torch's own, which take (prediction, target).
    """
    if loss is None:
        return Categorical()
    if isinstance(loss, str):
        if loss not in _BY_NAME:
            raise UnknownNameError("loss", loss, _BY_NAME)
        return _BY_NAME[loss]()
    if isinstance(loss, Likelihood) and not isinstance(loss, type):
        return loss
    remedy = (
        "Pass loss='categorical', 'gaussian', 'bernoulli' or 'similarity', or a function of (outputs, batch) that "
        "returns shape [B], such as lambda outputs, batch: F.cross_entropy(outputs, batch[1], reduction='none')."
    )
    if not callable(loss) or isinstance(loss, type):
        raise OptionError(f"{where}: found loss={loss!r}. {remedy}")
    if str(getattr(loss, "__module__", "")).startswith("torch.nn."):
        found = getattr(loss, "__name__", type(loss).__name__)
        raise OptionError(f"{where}: loss={found} takes (prediction, target), not (outputs, batch). {remedy}")
    return PerExample(loss, where)
