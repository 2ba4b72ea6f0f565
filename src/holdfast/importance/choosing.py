"""Measuring with everything chosen: the curvature by the model's size, the labels by their number, and the probes."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, get_args

from torch import Tensor, nn

from holdfast.choices import check_choice, check_count, check_share
from holdfast.curvature.blocks import block_width
from holdfast.curvature.factored import FactoredImportance
from holdfast.errors import EmptyDataError, OptionError
from holdfast.importance.fisher import fisher
from holdfast.importance.kfac import KfacKind, kfac
from holdfast.importance.probing import MOST, probes_of
from holdfast.likelihoods.batches import batch_copied, batch_size, batch_to, model_inputs, slice_batch
from holdfast.likelihoods.forms import check_is_many, check_taken
from holdfast.likelihoods.likelihood import Categorical, Likelihood, PerExample, resolve_likelihood
from holdfast.likelihoods.outputs import logits_of
from holdfast.moments.company import Company
from holdfast.moments.matrices import Layer, is_wide, layers_of
from holdfast.probes import Probes
from holdfast.probes.evaluating import evaluating
from holdfast.records import Importance
from holdfast.replicas import Meeting
from holdfast.tensors import trainable_parameters

Form = Literal["auto", "kronecker", "diagonal"]
Labels = KfacKind | Literal["auto"]

DAMPING = 0.01
"""Share of a factor's mean eigenvalue that is added along every direction."""

_MAX_SIZE = 8192
"""A factor of a longer side, which would take more than 256 MB, is made in blocks."""

_BLOCK_SIZE = 2048
"""Of these. With it grow memory and the work of a pull, and what of the curvature lies in the blocks."""

_MOST_HELD = 8.0
"""Kronecker factors are taken where they take at most so many times the memory of the weights."""

_EXACT_UP_TO = 33
"""Outputs of an example: with more, a label is drawn in place of an expectation over all."""


_TOP_K = 2
"""Labels that factors take exactly, of few; each costs a backward pass, and the products behind it."""

_SHARED_FROM = 1024
"""In models with a longer side than this, layers that read the same input share its basis, for its memory."""


@dataclass(frozen=True)
class Choice:
    """What `measure` takes for a model.

    Attributes:
        form: "kronecker" or "diagonal".
        labels: "exact", "sampled" or "empirical".
        top_k: of factors with exact labels: how many labels are taken exactly, one draw standing for the others; None
            for all.
        block_size: of factors, that of the blocks of sides above 8,192; 0: such layers have the diagonal.
        share_inputs: of factors, whether layers that read the same input share its basis.
        held: float32 numbers that are held of the curvature, over those of the weights; anchors come on top.
        why: in words, the form and the labels.
    """

    form: Literal["kronecker", "diagonal"]
    labels: KfacKind
    top_k: int | None
    block_size: int
    share_inputs: bool
    held: float
    why: str


def choose(
    model: nn.Module,
    batch: Any,
    *,
    loss: str | Likelihood | Callable[[Any, Any], Tensor] | None = None,
    form: Form = "auto",
    labels: Labels = "auto",
) -> Choice:
    """What `measure` takes for a model, by its layers and the outputs of one example.

    Args:
        model: left exactly as it was.
        batch: of which the first two examples are looked at; None where there are none.
        loss: as for `measure`.
        form: as for `measure`; what is given is not chosen.
        labels: likewise.

    Raises:
        UnknownNameError: no such form, labels or loss.
        OptionError: `form="kronecker"` where no layer can have factors.

    Cost: one forward pass of two examples.
    """
    where = "measure"
    check_choice("form", form, get_args(Form))
    check_choice("labels", labels, ("auto", *get_args(KfacKind)))
    taken = _labels(model, batch, loss, where=where) if labels == "auto" else (labels, None, "as asked")
    layers, why = _factored(model, form, where=where)
    return Choice(
        form="kronecker" if layers else "diagonal",
        labels=taken[0],
        top_k=taken[1] if layers else None,
        block_size=_BLOCK_SIZE if any(is_wide(layer, _MAX_SIZE) for layer in layers) else 0,
        share_inputs=any(max(layer.matrix_shape) > _SHARED_FROM for layer in layers),
        held=_held(model, layers),
        why=f"{why}; labels {taken[2]}",
    )


def measure(
    model: nn.Module,
    data: Iterable[Any],
    *,
    probes: Iterable[Any] | Probes | None = None,
    loss: str | Likelihood | Callable[[Any, Any], Tensor] | None = None,
    form: Form = "auto",
    labels: Labels = "auto",
    damping: float = DAMPING,
    num_probes: int | Literal["auto"] = "auto",
    num_examples: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Importance | FactoredImportance:
    """Measure what a skill rests on, with every choice made: what `keeper.retain` takes in place of `fisher` or `kfac`.

    Args:
        model: left exactly as it was. Of several processes as for `fisher`; each has probes of its own share.
        data: batches of the old skill, as for `fisher`; read once.
        probes: batches of the old skill that the model was not trained on, on which a keeper then measures what is lost
            (`probes_of`). None: the last examples of `data`, with a warning: answers to what was learned
            by heart are surer, so that a rise measured on them is too small.
        loss: as for `fisher`.
        form: "kronecker": factors of every layer that can have them (`kfac`), the diagonal elsewhere. "diagonal":
            `fisher`. "auto": Kronecker factors, which miss the rise along training's ways by 5 to 35 times where a
            diagonal misses it by 10 to 1,500, unless the model has no such layer, or they would take more than 8 times
            the weights' memory. Factors of sides above 8,192 are made in blocks of 2,048; layers that have such
            sides get the diagonal where only factors of the others keep to that memory.
            In models with a side above 1,024 layers that read the same input share a basis of it (`share_inputs`).
        labels: "exact" takes all labels with their probability; "sampled" draws one, in two passes; "empirical" takes
            those in the data. "auto": exact up to 33 outputs of an example, such as 33 classes, of which Kronecker
            factors take the two most probable and one draw for the others (`top_k`); beyond them sampled; for a loss
            function empirical.
        damping: of the factors (`kfac`): along directions that the data do not show, the loss rises too.
        num_probes: examples to take probes of; "auto" as for `probes_of`, 512 or fewer.
        num_examples: measure on the first so many examples; None for all.
        seed: of the draws.
        progress: show a progress bar.

    Returns:
        The importance, with its `probes`. What was chosen stands in `info.kind` and `info.details`.

    Raises:
        OptionError: `form="kronecker"` where no layer can have factors.
        and what `fisher`, `kfac` and `probes_of` raise.

    A model under `fully_shard` is measured by all processes, each on its share of the data, with probes of that share.

    Cost: that of `kfac` or `fisher`, and that of `probes_of`.
    """
    where = "measure"
    check_choice("form", form, get_args(Form))
    check_choice("labels", labels, ("auto", *get_args(KfacKind)))
    most = MOST if num_probes == "auto" else num_probes
    check_count("num_probes", most, where=where)
    check_count("num_examples", num_examples, where=where, none="all")
    check_count("seed", seed, where=where, least=0)
    check_share("damping", damping, where=where, example=DAMPING)
    check_is_many(data, where)
    meeting = Meeting(model, where=where)
    if probes is not None and not isinstance(probes, Probes):  # first, for errors in them to come before the long work
        given_probes = probes
        probes = meeting.together(lambda: probes_of(model, given_probes, loss=loss, num_examples=num_probes))
    tail, company = _Tail(data, most), Company(model)
    with company.failing_together():
        first, batches = meeting.together(lambda: first_of(tail))
        if first is None and not company.is_alone:
            raise EmptyDataError(f"{where}: the data of this process held no example. Give each of them a share of it.")
    chosen = meeting.together(lambda: choose(model, first, loss=loss, form=form, labels=labels))
    given: dict[str, Any] = {"loss": loss, "num_examples": num_examples, "seed": seed, "progress": progress}
    if chosen.form == "kronecker":
        of_factors: dict[str, Any] = {"top_k": chosen.top_k, "share_inputs": chosen.share_inputs}
        of_factors |= {"max_size": _MAX_SIZE, "block_size": chosen.block_size}
        importance = kfac(model, batches, kind=chosen.labels, damping=damping, **of_factors, **given)
    else:
        importance = fisher(model, batches, kind=chosen.labels, **given)
    if probes is None:
        warnings.warn(
            f"{where}: the probes are the last {most} examples of the data themselves. If the model was "
            "trained on them, what it loses looks smaller than it is. Pass probes=, batches that it has not seen.",
            stacklevel=2,
        )
        probes = meeting.together(lambda: probes_of(model, tail.examples(), loss=loss, num_examples=num_probes))
    return importance.with_probes(probes)


class _Tail:
    """Batches that are read once, of which the last examples are kept."""

    def __init__(self, data: Iterable[Any], num_examples: int) -> None:
        self._data, self._limit = data, num_examples
        self._kept: deque[Any] = deque()

    def __iter__(self) -> Iterator[Any]:
        for batch in self._data:
            self._kept.append(batch_copied(batch))  # the data may use their memory again
            while sum(map(batch_size, self._kept)) - batch_size(self._kept[0]) >= self._limit:
                self._kept.popleft()
            yield batch

    def examples(self) -> list[Any]:
        """The last examples, in order."""
        batches = list(self._kept)
        surplus = sum(map(batch_size, batches)) - self._limit
        if surplus > 0:
            batches[0] = slice_batch(batches[0], surplus, batch_size(batches[0]), lists=True)
        return batches


def first_of(data: Iterable[Any]) -> tuple[Any, Iterable[Any]]:
    """The first batch that holds an example, or None, and all of them."""
    rest, empty = iter(data), []
    for batch in rest:
        if batch_size(batch):
            return batch, chain(empty, [batch], rest)
        empty.append(batch)
    return None, empty


def _labels(model: nn.Module, batch: Any, loss: Any, *, where: str) -> tuple[KfacKind, int | None, str]:
    """How labels are taken, of how many factors take each, by the outputs of an example, and why."""
    likelihood = resolve_likelihood(loss, where=where)
    if isinstance(likelihood, PerExample):
        return "empirical", None, "of the data, for a loss function says nothing of others"
    if batch is None:
        return "exact", None, "exact"  # the estimator says that there is no data
    check_taken(model, batch, where=where)
    with evaluating(model) as bare:
        size = min(2, batch_size(batch))  # one alone is too few for some models, which are refused later and better
        few = batch_to(slice_batch(batch, 0, size, lists=True), next(bare.parameters()).device)
        args, kwargs = model_inputs(few)
        company = Company(model)
        num_outputs = company.most(logits_of(bare(*args, **kwargs)).numel() // size)
        company.rest()
    classes = getattr(likelihood, "classes", None)
    num_labels = min(num_outputs, len(classes or ()) or num_outputs)
    outputs = f"{num_labels:,} outputs of an example"
    if num_labels > _EXACT_UP_TO:
        return "sampled", None, f"drawn, for {outputs} are more than {_EXACT_UP_TO}"
    why = f"exact, for {outputs} are at most {_EXACT_UP_TO}"
    return "exact", _TOP_K if isinstance(likelihood, Categorical) and num_labels > _TOP_K + 1 else None, why


def _factored(model: nn.Module, form: Form, *, where: str) -> tuple[list[Layer], str]:
    """The layers that are to have factors, and why: all that can, those without wide sides, or none."""
    layers = layers_of(model)
    if form == "diagonal":
        return [], "a diagonal, as asked"
    if not layers and form == "auto":
        return [], "a diagonal, for it has no Linear or convolution layer of its own"
    if not layers:
        raise OptionError(
            f'{where}: form="kronecker", and the model has no plain Linear or convolution layer of its own. Use '
            'form="diagonal".'
        )
    narrow = [layer for layer in layers if not is_wide(layer, _MAX_SIZE)]
    for some in (layers, narrow):
        if some and (held := _held(model, some)) <= _MOST_HELD:
            return some, f"{_told(some, held)}, at most {_MOST_HELD:g}"
    least = narrow or layers
    told = _told(least, _held(model, least))
    if form == "kronecker":
        return least, f"{told}, as asked"
    return [], f"a diagonal, for {told}, more than {_MOST_HELD:g}"


def _told(layers: Sequence[Layer], held: float) -> str:
    count = len(layers)
    return f"Kronecker factors of {count} layer{'s' * (count != 1)} take {held:.1f} times the weights' memory"


def _held(model: nn.Module, layers: Sequence[Layer]) -> float:
    """Numbers that are held, over the weights: of these layers bases, in blocks where they are wide, and spectra."""
    weights = sum(parameter.numel() for parameter in trainable_parameters(model).values())
    sides = [side for layer in layers for side in layer.matrix_shape]
    return (weights + sum(side * block_width(side, _MAX_SIZE, _BLOCK_SIZE) for side in sides)) / weights
