"""Measuring with everything chosen: the curvature by the model's size, the labels by their number, and the probes."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any, Literal, get_args

from torch import Tensor, nn

from holdfast.choices import check_choice, check_count, check_share
from holdfast.curvature.blocks import block_width
from holdfast.curvature.factored import FactoredImportance
from holdfast.errors import OptionError
from holdfast.importance.fisher import fisher
from holdfast.importance.kfac import KfacKind, kfac
from holdfast.importance.measure import check_is_many
from holdfast.importance.probing import MOST, probes_of
from holdfast.likelihoods.batches import batch_copied, batch_size, batch_to, model_inputs, slice_batch
from holdfast.likelihoods.likelihood import Categorical, Likelihood, PerExample, resolve_likelihood
from holdfast.likelihoods.outputs import logits_of
from holdfast.moments.matrices import Layer, is_wide, layers_of
from holdfast.probes import Probes
from holdfast.probes.evaluating import evaluating
from holdfast.records import Importance
from holdfast.tensors import trainable_parameters

Form = Literal["auto", "kronecker", "diagonal"]
Labels = KfacKind | Literal["auto"]

DAMPING = 0.01
"""Share of a factor's mean eigenvalue that is added along every direction."""

_MAX_SIZE = 8192
"""A factor of a longer side, which would take more than 256 MB, is made in blocks."""

_MOST_HELD = 8.0
"""Kronecker factors are taken where they take at most so many times the memory of the weights."""

_EXACT_UP_TO = 33
"""Outputs of an example: with more, a label is drawn in place of an expectation over all."""


_TOP_K = 2
"""Labels that factors take exactly, of few; each costs a backward pass, and the products behind it."""

_SHARED_FROM = 1024
"""In models with a longer side than this, layers that read the same input share its basis, for its memory."""


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
        model: left exactly as it was.
        data: batches of the old skill, as for `fisher`; read once.
        probes: batches of the old skill that the model was not trained on, on which a keeper then measures what is lost
            (`probes_of`). None: the last examples of `data`, with a warning: answers to what was learned
            by heart are surer, so that a rise measured on them is too small.
        loss: as for `fisher`.
        form: "kronecker": factors of every layer that can have them (`kfac`), the diagonal elsewhere. "diagonal":
            `fisher`. "auto": Kronecker factors, which miss the rise along training's ways by 5 to 35 times where a
            diagonal misses it by 10 to 1,500, unless the model has no such layer, or they would take more than 8 times
            the weights' memory. Factors of sides above 8,192 are made in blocks; layers that have such sides get the
            diagonal where factors of the others alone keep to that memory.
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
    if probes is not None and not isinstance(probes, Probes):  # first, for errors in them to come before the long work
        probes = probes_of(model, probes, loss=loss, num_examples=num_probes)
    tail = _Tail(data, most)
    first, batches = _first_of(tail)
    kind, top_k = _labels(model, first, loss, where=where) if labels == "auto" else (labels, None)
    given: dict[str, Any] = {"loss": loss, "num_examples": num_examples, "seed": seed, "progress": progress}
    if factored := _factored(model, form, where=where):
        share = max(max(layer.matrix_shape) for layer in factored) > _SHARED_FROM
        wide = "blocks" if any(is_wide(layer, _MAX_SIZE) for layer in factored) else "diagonal"
        options: dict[str, Any] = {"share_inputs": share, "max_size": _MAX_SIZE, "wide": wide}
        importance = kfac(model, batches, kind=kind, top_k=top_k, damping=damping, **options, **given)
    else:
        importance = fisher(model, batches, kind=kind, **given)
    if probes is None:
        warnings.warn(
            f"{where}: the probes are the last {most} examples of the data themselves. If the model was "
            "trained on them, what it loses looks smaller than it is. Pass probes=, batches that it has not seen.",
            stacklevel=2,
        )
        probes = probes_of(model, tail.examples(), loss=loss, num_examples=num_probes)
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


def _first_of(data: Iterable[Any]) -> tuple[Any, Iterable[Any]]:
    """The first batch that holds an example, or None, and all of them."""
    rest, empty = iter(data), []
    for batch in rest:
        if batch_size(batch):
            return batch, chain(empty, [batch], rest)
        empty.append(batch)
    return None, empty


def _labels(model: nn.Module, batch: Any, loss: Any, *, where: str) -> tuple[KfacKind, int | None]:
    """How labels are taken, and of how many factors take each, by the outputs of an example."""
    likelihood = resolve_likelihood(loss, where=where)
    if isinstance(likelihood, PerExample):
        return "empirical", None
    if batch is None:
        return "exact", None  # the estimator says that there is no data
    with evaluating(model) as bare:
        one = batch_to(slice_batch(batch, 0, 1, lists=True), next(bare.parameters()).device)
        args, kwargs = model_inputs(one)
        num_outputs = logits_of(bare(*args, **kwargs)).numel()
    chosen = getattr(likelihood, "classes", None)
    num_labels = min(num_outputs, len(chosen or ()) or num_outputs)
    if num_labels > _EXACT_UP_TO:
        return "sampled", None
    return "exact", _TOP_K if isinstance(likelihood, Categorical) and num_labels > _TOP_K + 1 else None


def _factored(model: nn.Module, form: Form, *, where: str) -> list[Layer]:
    """The layers that are to have factors: all that can, those without wide sides, or none, by their memory."""
    layers = layers_of(model)
    if form == "diagonal":
        return []
    if form == "kronecker" and not layers:
        raise OptionError(
            f'{where}: form="kronecker", and the model has no plain Linear or convolution layer of its own. Use '
            'form="diagonal".'
        )
    narrow = [layer for layer in layers if not is_wide(layer, _MAX_SIZE)]
    room = _MOST_HELD * sum(parameter.numel() for parameter in trainable_parameters(model).values())
    affordable = [some for some in (layers, narrow) if some and _held(some) <= room]
    if form == "kronecker":
        affordable.append(narrow or layers)
    return affordable[0] if affordable else []


def _held(layers: list[Layer]) -> int:
    """Numbers that are held of these: bases of inputs and outputs, in blocks where they are wide, and the spectra."""
    return sum(
        m * block_width(m, _MAX_SIZE) + n * block_width(n, _MAX_SIZE) + m * n
        for m, n in (layer.matrix_shape for layer in layers)
    )
