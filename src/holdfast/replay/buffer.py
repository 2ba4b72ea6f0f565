"""A memory of fixed size for examples of a stream whose length is not known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from holdfast.choices import check_choice
from holdfast.errors import OptionError

Keep = Literal["reservoir", "balanced"]


class Buffer:
    """Examples, each a row of named fields, of which "targets" int64 [B] are the classes.

    reservoir: of n examples offered every one is kept with probability capacity/n (Vitter 1985).
    balanced: an example of a class that is not among the largest takes the place of one of the largest class; within
        a class that has ever been the largest, reservoir sampling goes on (Chrysakis & Moens, ICML 2020).

    An example that is offered again, as in a second epoch, counts as another one. Draws come from torch's global
    random state on the CPU.

    Args:
        capacity: the most examples it holds, at least 1.
        keep: see above.

    Raises:
        OptionError: capacity is below 1.
        UnknownNameError: no such way to keep.

    Cost: memory for the fields of `capacity` examples, on the device of those that are offered.
    """

    def __init__(self, capacity: int, *, keep: Keep = "reservoir") -> None:
        if capacity < 1:
            raise OptionError(f"Buffer: capacity={capacity}, expected a whole number >= 1.")
        check_choice("way to keep examples", keep, get_args(Keep))
        self.capacity, self.keep = capacity, keep
        self._fields: dict[str, Tensor] = {}
        self._classes: list[int] = []  # of the example in each slot
        self._sizes: Counter[int] = Counter()  # of each class
        self._offered: Counter[int] = Counter()
        self._full: set[int] = set()  # classes that have ever been the largest of a full memory

    def __len__(self) -> int:
        """How many examples it holds."""
        return len(self._classes)

    def __getitem__(self, name: str) -> Tensor:
        """One field of all examples, as a view."""
        return self._fields[name][: len(self)]

    def offer(self, **fields: Tensor) -> None:
        """Offer examples, one a row of every field; some are kept."""
        classes = fields["targets"].tolist()
        draws = torch.rand(len(classes), 2, dtype=torch.float64).tolist()
        chosen = [self._slot(own, chance, place) for own, (chance, place) in zip(classes, draws)]
        rows = {slot: row for row, slot in enumerate(chosen) if slot is not None}  # the last that came to a slot
        if not rows:
            return
        for name, values in fields.items():
            if name not in self._fields:
                self._fields[name] = values.new_zeros(self.capacity, *values.shape[1:])
            slots, sources = (torch.tensor(list(places), device=values.device) for places in (rows, rows.values()))
            self._fields[name].index_copy_(0, slots, values.detach().index_select(0, sources))

    def draw(self, count: int, *, among: Tensor | None = None) -> dict[str, Tensor]:
        """At most `count` different examples, chosen at random.

        Args:
            count: how many are wanted.
            among: bool [len(self)], those that may be drawn; None: all.

        Returns:
            Field -> its values, [count, ...] or as many as there are.
        """
        candidates = torch.arange(len(self)) if among is None else among.nonzero().squeeze(1).cpu()
        chosen = candidates[torch.randperm(len(candidates))[:count]]
        return {name: values.index_select(0, chosen.to(values.device)) for name, values in self._fields.items()}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What `load_state` needs: the fields, and counts as JSON."""
        notes = {"offered": sorted(self._offered.items()), "full": sorted(self._full)}
        return {name: self[name] for name in self._fields}, notes

    def load_state(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Go on from what `state` gave, on the device of these tensors."""
        self._fields = {}
        for name, values in tensors.items():
            self._fields[name] = values.new_zeros(self.capacity, *values.shape[1:])
            self._fields[name][: len(values)] = values
        self._classes = tensors["targets"].tolist() if tensors else []
        self._sizes = Counter(self._classes)
        self._offered = Counter(dict(notes["offered"]))
        self._full = set(notes["full"])

    def _slot(self, own: int, chance: float, place: float) -> int | None:
        """Where an example of a class goes, by two draws from [0, 1); None: nowhere."""
        self._offered[own] += 1
        if len(self) < self.capacity:
            self._classes.append(own)
            self._sizes[own] += 1
            return len(self) - 1
        if self.keep == "reservoir":
            slot = int(chance * self._offered.total())
            return self._replace(slot, own) if slot < self.capacity else None
        most = max(self._sizes.values())
        self._full |= {each for each, size in self._sizes.items() if size == most}
        if own not in self._full:
            shrinking = min(each for each, size in self._sizes.items() if size == most)
        elif chance < self._sizes[own] / self._offered[own]:
            shrinking = own
        else:
            return None
        slots = [slot for slot, each in enumerate(self._classes) if each == shrinking]
        return self._replace(slots[int(place * len(slots))], own)

    def _replace(self, slot: int, own: int) -> int:
        self._sizes[self._classes[slot]] -= 1
        self._sizes[own] += 1
        self._classes[slot] = own
        return slot
