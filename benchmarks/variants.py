"""The estimators and the usual ways: what each measures, how it is called, and on how many examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import holdfast as hf
from benchmarks import rivals
from benchmarks.workloads import Batch, Batches, Workload, nll, singles
from holdfast.importance.choosing import DAMPING, choose, first_of

PLAIN = "plain forward and backward"
SINGLY = "one at a time: "
TOP_K = 2


@dataclass(frozen=True)
class Variant:
    """One way to measure importances.

    Attributes:
        name: for people.
        call: (model, batches) -> name -> mean over examples.
        quantity: what it measures, a key of `truths`; None where there is no simple truth to compare with.
        ours: whether it is holdfast's.
        target: largest ratio to the plain pass; None for no target.
        alone: how many examples, each a batch of its own, it is timed on; 0 for whole batches.
    """

    name: str
    call: Callable[[nn.Module, Batches], Any]
    quantity: str | None = None
    ours: bool = True
    target: float | None = None
    alone: int = 0

    def batches(self, some: list[Batch]) -> list[Batch]:
        """What it is timed on: all batches, for the usual ways one, or single examples."""
        if self.alone:
            return singles(some[0], self.alone)
        return some if self.ours else some[:1]


def plain_pass(model: nn.Module, batches: Batches) -> None:
    """What training does to each batch, without the step."""
    for inputs, targets in batches:
        model.zero_grad()
        nll(model(*inputs), targets).mean().backward()
    model.zero_grad()


def all_variants(workload: Workload, *, chunk: int) -> dict[str, Variant]:
    """Name -> variant, the plain pass first."""
    found = [Variant(PLAIN, plain_pass), *our_variants(workload), *usual_ways(workload, chunk=chunk)]
    return {variant.name: variant for variant in found}


def our_variants(workload: Workload) -> list[Variant]:
    """holdfast's estimators, as far as they make sense for the workload."""
    one, exact = workload.target, workload.exact_target
    found = [
        Variant("fisher, sampled", _measured(hf.fisher, kind="sampled"), target=one),
        Variant("fisher, empirical", _measured(hf.fisher, kind="empirical"), "empirical", target=one),
        Variant("fisher, batched", _measured(hf.fisher, kind="batched")),
        Variant("mas", _measured(hf.mas), "mas", target=one),
        Variant("mas, batched", _measured(hf.mas, batched=True)),
        Variant("mas, local", _measured(hf.mas, local=True, others="zero")),
        Variant("signal", _measured(hf.signal, others="zero")),
        Variant("taylor", _measured(hf.taylor), "taylor", target=one),
        Variant("kfac, exact" if workload.exact else "kfac, sampled", _factored(workload)),
        Variant("kfac, as hf.measure takes it", _chosen, target=workload.factors_target),
    ]
    if workload.exact:
        found.insert(0, Variant("fisher, exact", _measured(hf.fisher), "exact", target=exact))
    else:
        top = Variant(f"fisher, top {TOP_K} classes and one draw", _measured(hf.fisher, top_k=TOP_K), target=exact)
        token = Variant("fisher, empirical, per token", _measured(hf.fisher, kind="empirical", per="token"))
        found = [top, *found, token]
    return found


def usual_ways(workload: Workload, *, chunk: int) -> list[Variant]:
    """The usual ways; `chunk` is the number of examples that vmap takes at once."""
    few = max(2, workload.batch_size // 4)
    usual = partial(Variant, ours=False)
    one = partial(rivals.one_at_a_time, phi=torch.square)
    mas = partial(rivals.one_at_a_time, phi=torch.abs, rows=rivals.mas_rows, counted=len)
    found = [
        usual(f"{SINGLY}empirical", partial(one, rows=rivals.empirical_rows), "empirical", alone=few),
        usual(f"{SINGLY}mas", mas, "mas", alone=few),
        usual(f"torch.func vmap, {chunk} at once", partial(rivals.vmapped, chunk=chunk), "empirical"),
        usual("Opacus GradSampleModule", rivals.opacus_squares, "empirical"),
        usual("BackPACK SumGradSquared", rivals.backpack_squares, "empirical"),
    ]
    if workload.exact:
        found += [
            usual(f"{SINGLY}exact", partial(one, rows=rivals.exact_rows), "exact", alone=max(2, few // 8)),
            usual("BackPACK DiagGGNExact", rivals.backpack_exact, "exact"),
        ]
    return found


def truths(workload: Workload, model: nn.Module, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Quantity -> mean over the targets, of MAS over the examples; one at a time in float64."""
    model, examples = model.double(), [_double(example) for example in singles(batch, len(batch[1]))]
    weights = {name: parameter.detach().abs() for name, parameter in model.named_parameters()}
    one = partial(rivals.one_at_a_time, model, examples)
    yield "empirical", one(rows=rivals.empirical_rows, phi=torch.square)
    absolute = one(rows=rivals.empirical_rows, phi=torch.abs)
    yield "taylor", {name: weights[name] * value for name, value in absolute.items()}
    yield "mas", one(rows=rivals.mas_rows, phi=torch.abs, counted=len)
    if workload.exact:
        yield "exact", one(rows=rivals.exact_rows, phi=torch.square)


def _measured(estimator: Callable[..., Any], **options: Any) -> Callable[[nn.Module, Batches], Any]:
    return lambda model, batches: estimator(model, batches, **options)


def _factored(workload: Workload) -> Callable[[nn.Module, Batches], Any]:
    return _measured(hf.kfac, kind="exact" if workload.exact else "sampled")


def _chosen(model: nn.Module, batches: Batches) -> Any:
    """Kronecker factors with labels as `hf.measure` takes them, without its probes."""
    first, batches = first_of(batches)
    choice = choose(model, first, form="kronecker")
    given = {"top_k": choice.top_k, "share_inputs": choice.share_inputs, "damping": DAMPING}
    return hf.kfac(model, batches, kind=choice.labels, **given)


def _double(batch: Batch) -> Batch:
    inputs, targets = batch
    return tuple(tensor.double() if tensor.is_floating_point() else tensor for tensor in inputs), targets
