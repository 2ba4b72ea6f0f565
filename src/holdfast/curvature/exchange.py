"""What the processes do together that hold the layers of one model: each has the curvature of those that it owns.

Of the parameters of a model that `fully_shard` has spread every process has its shards. A layer is pulled, or asked for
its rise, by its owner, as one process does it: the shards of its weights, anchors and metrics are sent there, and what
is to be added to the weights is sent back to the shards. It goes in rounds, in each of which every process owns one
layer at most: so the owners work side by side, and none of them has more than one layer's weights at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, reduce
from typing import Any

import torch
from torch import Tensor

from holdfast.curvature.cuts import Cut, axis_of, cut_of
from holdfast.curvature.form import LayerForm
from holdfast.curvature.owners import LayerElsewhere, cost_of, owners
from holdfast.errors import StateError
from holdfast.tensors import Found, Shards, TensorMap, sum_of

ByParameter = Sequence[Tensor | float]
"""Something of each parameter of a layer, in order: a tensor of its shape or of its shard's, or one number."""

Ask = Callable[[str], Sequence[ByParameter] | None]
"""What of a layer, by its name, its owner is to see; of the shards of this process. None leaves the layer out."""


class Exchange:
    """The processes that hold a model together; alone, a process owns every layer, and nothing is sent.

    Each of them must come to every call, with the same layers.

    Args:
        shards: how the model is spread; None where it is this process's own.
        parameters: its parameters, by name.

    Attributes:
        shards: as given.

    Owners are told by their rank in the mesh. Under HSDP every copy of the model has owners of its own.
    """

    def __init__(self, shards: Shards | None, parameters: TensorMap) -> None:
        self.shards = shards
        self._parameters = parameters if shards is not None else {}

    @property
    def size(self) -> int:
        """How many processes share a copy of the model."""
        return 1 if self.shards is None else self.shards.size // self.shards.copies

    @property
    def rank(self) -> int:
        """Which of all processes this is."""
        return 0 if self.shards is None else self.shards.rank

    @cached_property
    def members(self) -> list[int]:
        """The ranks of those that share this process's copy of the model, in the order of their shards."""
        if self.shards is None:
            return [0]
        ranks = self.shards.mesh.mesh.flatten().tolist()
        return [ranks.index(rank) for rank in torch.distributed.get_process_group_ranks(self._group)]

    def beside(self, rank: int) -> list[int]:
        """Of every copy of the model the process that has the same shards as process `rank`, that one among them."""
        assert self.shards is not None
        ranks, place = self.shards.mesh.mesh, self.members.index(rank)
        flat = ranks.flatten().tolist()
        return [flat.index(each) for each in ranks.select(self._axis, place).flatten().tolist()]

    def owners(self, layers: Mapping[str, Any]) -> dict[str, int]:
        """The owner of each of these layers, which may be held or measured, here or elsewhere."""
        bare = {name: layer.layer if isinstance(layer, LayerElsewhere) else layer for name, layer in layers.items()}
        reads = {name: layer.reads for name, layer in bare.items() if isinstance(layer, LayerForm)}
        together = {name: head for name, head in reads.items() if head is not None}
        places = owners({name: cost_of(layer) for name, layer in bare.items()}, self.size, groups=together)
        return {name: self.members[place] for name, place in places.items()}

    # --- what they do together

    def gathered(self, layers: Mapping[str, Any], ask: Ask) -> Iterator[tuple[str, Any, list[list[Any]]]]:
        """The layers that this process owns, each with what was asked for, whole.

        Args:
            layers: `Curvature`, or `LayerElsewhere`, by name.
            ask: see `Ask`; called in all processes for all layers.

        Cost: of each layer its shards are sent to its owner, in one all-to-all for as many layers as there are owners.
        """
        if self.shards is None:
            for name, layer in layers.items():
                if (asked := ask(name)) is not None:
                    yield name, layer, [list(column) for column in asked]
            return
        for names in self._rounds(layers):
            _, mine = self._gather(layers, names, ask)
            if mine is not None:
                yield names[self._number], layers[names[self._number]], mine

    def each(
        self, layers: Mapping[str, Any], ask: Ask, answer: Callable[..., Sequence[Tensor]]
    ) -> Iterator[tuple[str, list[Tensor]]]:
        """Every layer, with what its owner answers for each of its parameters: of this process's shards.

        Args:
            layers: as for `gathered`.
            ask: likewise.
            answer: called by the owner as `answer(name, layer, *asked)`; a tensor of each parameter's shape.

        Raises:
            StateError: an owner's answer ended in an error; there that error itself.

        Cost: as of `gathered`, and the same once back.
        """
        if self.shards is None:
            for name, layer, asked in self.gathered(layers, ask):
                yield name, list(answer(name, layer, *asked))
            return
        for names in self._rounds(layers):
            asked, mine = self._gather(layers, names, ask)
            if not asked:
                continue
            answered, failure = None, None
            try:
                if mine is not None:
                    name = names[self._number]
                    answered = list(answer(name, layers[name], *mine))
            except Exception as error:  # of which the others must know
                failure = error
            yield from self._scatter(asked, answered, failure, dtype=self._dtype(asked))

    def sum_of(self, values: Iterable[Tensor]) -> float:
        """The sum of terms of all processes: of weights by their shards, and of layers by their owners."""
        return sum_of(values) if self.shards is None else self.shards.sum_of(values)

    def means(self, pieces: TensorMap) -> dict[str, float]:
        """The mean of the entries of each tensor, by the name of the parameter that it lies beside."""
        if self.shards is None:
            return {name: float(piece.mean()) for name, piece in pieces.items()}
        sums = self.shards.totals([float(piece.sum(dtype=torch.float64)) for piece in pieces.values()])
        numels = [self._parameters[name].numel() * self.shards.copies for name in pieces]
        return {name: total / max(1, numel) for name, total, numel in zip(pieces, sums, numels, strict=True)}

    def any(self, answer: bool) -> bool:
        """Whether one of the processes says so."""
        return answer if self.shards is None else self.shards.largest(float(answer)) > 0

    def together(self, act: Callable[[], Found], *, where: str) -> Found:
        """What `act` gives, which asks nothing of the others; where it raises in one process all of them raise."""
        return act() if self.shards is None else self.shards.together(act, where=where)

    # --- rounds

    @cached_property
    def _number(self) -> int:
        """This process's among those of its copy of the model."""
        return self.members.index(self.rank)

    def _owner(self, layer: Any) -> int:
        return self.members.index(layer.owner) if isinstance(layer, LayerElsewhere) else self._number

    def _rounds(self, layers: Mapping[str, Any]) -> Iterator[dict[int, str]]:
        """Owner -> layer, as many as there are owners with a layer left; the largest first, so that they take alike."""
        left: dict[int, list[str]] = {}
        for name in sorted(layers, key=lambda name: (-self._numel(name, layers[name]), name)):
            left.setdefault(self._owner(layers[name]), []).append(name)
        for number in range(max(map(len, left.values()), default=0)):
            yield {owner: left[owner][number] for owner in sorted(left) if number < len(left[owner])}

    def _gather(
        self, layers: Mapping[str, Any], names: Mapping[int, str], ask: Ask
    ) -> tuple[dict[int, tuple[str, list[Cut]]], list[list[Any]] | None]:
        """The layers that are asked for, by owner, with the cuts of their parameters; and what this process owns."""
        found = {owner: (name, asked) for owner, name in names.items() if (asked := ask(name)) is not None}
        asked = {owner: (name, self._cuts(name, layers[name])) for owner, (name, _) in found.items()}
        if not asked:
            return asked, None
        dtype, outgoing = self._dtype(asked), []
        for owner in range(self.size):
            columns = found[owner][1] if owner in found else ()
            outgoing.append([value.reshape(-1) for column in columns for value in column if isinstance(value, Tensor)])
        mine = found[self._number][1] if self._number in found else ()
        cuts = asked[self._number][1] if self._number in asked else []
        expected = [(cut, value) for column in mine for cut, value in zip(cuts, column) if isinstance(value, Tensor)]
        incoming = [sum(cut.numel(rank) for cut, _ in expected) for rank in range(self.size)]
        received = self._all_to_all(outgoing, incoming, dtype)
        if self._number not in asked:
            return asked, None
        parts = [
            piece.split([cut.numel(rank) for cut, _ in expected]) for rank, piece in enumerate(received)
        ]  # by sender, in the order of `expected`
        wholes = iter(
            [
                cut.joined(pieces, rank=self._number).to(value.dtype)
                for (cut, value), pieces in zip(expected, zip(*parts, strict=True), strict=True)
            ]
        )
        return asked, [[next(wholes) if isinstance(value, Tensor) else value for value in column] for column in mine]

    def _scatter(
        self,
        asked: Mapping[int, tuple[str, list[Cut]]],
        answered: list[Tensor] | None,
        failure: Exception | None,
        *,
        dtype: torch.dtype,
    ) -> Iterator[tuple[str, list[Tensor]]]:
        outgoing: list[list[Tensor]] = [[] for _ in range(self.size)]
        if self._number in asked:
            cuts = asked[self._number][1]
            answers = [torch.zeros(cut.shape, dtype=dtype) for cut in cuts] if answered is None else answered
            flag = answers[0].new_tensor([float(failure is not None)])
            for rank, row in enumerate(outgoing):
                row += [flag, *(cut.piece(value, rank).reshape(-1) for cut, value in zip(cuts, answers, strict=True))]
        incoming = [
            1 + sum(cut.numel(self._number) for cut in asked[owner][1]) if owner in asked else 0
            for owner in range(self.size)
        ]
        received = self._all_to_all(outgoing, incoming, dtype)
        failed = any(bool(received[owner][0]) for owner in asked)
        self._check(failure, failed=failed, where="holding")
        for owner, (name, cuts) in asked.items():
            parts = received[owner][1:].split([cut.numel(self._number) for cut in cuts])
            yield name, [cut.laid(part, self._number) for cut, part in zip(cuts, parts, strict=True)]

    def _all_to_all(
        self, outgoing: Sequence[Sequence[Tensor]], incoming: Sequence[int], dtype: torch.dtype
    ) -> Sequence[Tensor]:
        assert self.shards is not None
        device = torch.device(self.shards.mesh.device_type)
        if device.type != "cpu":
            device = next(iter(self._parameters.values())).device
        empty = torch.empty(0, dtype=dtype, device=device)
        sent = torch.cat([empty, *(value.to(empty) for row in outgoing for value in row)])
        received = empty.new_empty(sum(incoming))
        sizes = [sum(value.numel() for value in row) for row in outgoing]
        torch.distributed.all_to_all_single(received, sent, list(incoming), sizes, group=self._group)
        return received.split(list(incoming))

    def _check(self, failure: Exception | None, *, failed: bool, where: str) -> None:
        if failure is not None:
            raise failure
        if failed:
            raise StateError(f"{where}: another process ended in an error, which it tells.")

    # --- the processes

    @cached_property
    def _axis(self) -> int:
        """Of the mesh, along which the parameters of a copy of the model are cut."""
        axes = {axis for p in self._parameters.values() if (axis := axis_of(p)) is not None}
        return min(axes, default=0)

    @cached_property
    def _group(self) -> Any:
        assert self.shards is not None
        return self.shards.mesh.get_group(self._axis)

    # --- parameters

    def _cuts(self, name: str, layer: Any) -> list[Cut]:
        return [self._cut(parameter) for parameter in layer.shapes(name)]

    def _cut(self, name: str) -> Cut:
        return cut_of(self._parameters[name], size=self.size)

    def _dtype(self, asked: Mapping[int, tuple[str, list[Cut]]]) -> torch.dtype:
        """The one that all of them are sent in: no narrower than any that is computed in."""
        dtypes = [cut.dtype for _, cuts in asked.values() for cut in cuts]
        return reduce(torch.promote_types, dtypes, torch.float32)

    @staticmethod
    def _numel(name: str, layer: Any) -> int:
        return sum(math.prod(shape) for shape in layer.shapes(name).values())


ALONE = Exchange(None, {})
"""This process, which has the whole model."""


def elsewhere_in(importance: Any) -> Mapping[str, LayerElsewhere[Any]]:
    """The layers of an importance that other processes have: of one that was measured on shards, else none."""
    return getattr(importance, "elsewhere", {})
