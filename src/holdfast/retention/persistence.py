"""How a keeper is written and read: its folder, its part of a training checkpoint, and what neither can hold."""

from __future__ import annotations

import os
from collections.abc import Mapping
from inspect import signature
from typing import Any, ClassVar, NoReturn, Self

from torch import Tensor, nn

from holdfast.errors import FileFormatError, OptionError
from holdfast.files import from_bytes, take_the_rest, to_bytes
from holdfast.memory import Retained
from holdfast.retention import files
from holdfast.retention.attachments import Attachments
from holdfast.retention.checks import check_mechanism_progress, check_notes, check_progress
from holdfast.retention.holdings import Extra, Holdings
from holdfast.retention.mechanism import Mechanism
from holdfast.retention.options import KeeperOptions
from holdfast.retention.skills import Skills
from holdfast.tensors import TensorMap, is_sharded, unwrap

_LAID_OUT = "laid out"
"""In the notes of a state: names of its tensors that are beside it, each in parts over the processes."""


class Persistent:
    """The half of a keeper that saves and loads it: what it holds, its options, and what decides its next steps.

    Attributes:
        model: whose weights are held; never written.
        mechanism: what is done to them.
    """

    _kind: ClassVar[type[Mechanism] | None] = None  # whose options the constructor takes in the mechanism's place

    model: nn.Module
    mechanism: Mechanism
    _holdings: Holdings
    _attachments: Attachments
    _skills: Skills

    def options(self) -> dict[str, Any]:
        """The constructor's options but the model and a metric, of the mechanism and of the keeper."""
        return {**self.mechanism.options(), **self._own_options()}

    def save(self, path: str | os.PathLike[str], *, probes: bool = False) -> None:
        """Write the folder `path`: importance, anchors, `keeper_config.json` and a `README.md`; whole or not at all.

        Args:
            path: the folder.
            probes: whether probes and budgets of the skills are written too. Probes are examples of the old data.

        Of a sharded model every process calls it, and the first one writes what all of them hold, whole: it loads into
        any sharding or none. They gather one tensor after the other, so that none has more than that whole. Of any
        other model, one process alone calls it.

        Raises:
            OutputError: if it cannot be written, or holds what holdfast did not write; it is then unchanged.
        """
        self._attachments.compare()
        held, extra = self._holdings.spread()
        contents = files.contents_of(held, extra)
        try:
            if self._holdings.writes:
                files.save(
                    path,
                    held,
                    contents=contents,
                    mechanism=self.mechanism.name,
                    options=self.options(),
                    progress=self._progress(),
                    skills=self._skills.to_state() if probes else None,
                    model=unwrap(self.model),
                )
        finally:  # the others come along also where the first process is refused
            take_the_rest(contents.values())
            self._holdings.wait()

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], model: nn.Module, *, mechanism: type[Mechanism] | None = None, **options: Any
    ) -> Self:
        """A keeper as `save` wrote it, for `model`; `options` of the constructor replace the saved ones.

        Args:
            path: the folder.
            model: its weights are not touched: what is loaded is what is held, not the network. Attach it to go on.
            mechanism: the class of the mechanism, for `hf.Keeper.load`; `EWC.load` and `WVA.load` know theirs.
            options: see above.

        Raises:
            FileFormatError: a missing, truncated, edited or wrong-version file, or another mechanism's folder.
            ParameterMismatchError: names or shapes that do not match `model`.
        """
        kind = cls._kind or mechanism
        if not (isinstance(kind, type) and issubclass(kind, Mechanism)):
            raise OptionError(
                f"{cls.__name__}.load: say which mechanism it has: load(folder, model, mechanism=...), the class."
            )
        if mechanism not in (None, kind):
            raise OptionError(f"{cls.__name__}.load: its mechanism is its own. Use hf.Keeper.load for {mechanism!r}.")
        held, saved, progress, extra, skills = files.load(
            path, mechanism=kind.name, anchors=kind.anchored, checkpoint=options.get("anchors")
        )
        own = set(signature(kind).parameters) - kind.unsaved
        files.check_saved_options(saved, {*KeeperOptions.__annotations__, *own}, where=path, kind=kind.name)
        given = {**saved, **options}
        if cls._kind is None:
            of_kind = {name: given.pop(name) for name in signature(kind).parameters if name in given}
            given = {"mechanism": kind(**of_kind), **given}
        keeper = cls(model, **given)  # pyright: ignore[reportCallIssue]  # the constructor is the keeper's
        keeper._take(held, extra, progress, skills, where=f"{kind.name}.load({str(path)!r})", in_form=True)
        return keeper

    def restore(self, path: str | os.PathLike[str]) -> Self:
        """Go on from what `save` wrote; the options stay those of this keeper.

        Returns:
            The keeper itself.

        Raises:
            FileFormatError: as `load`.
            NotFiniteError: an importance that is not finite and >= 0, or an anchor that is not finite.
            ParameterMismatchError: as `load`.
            OptionError: what was saved contradicts an option of this keeper.

        Nothing is changed when it raises.
        """
        held, _, progress, extra, skills = files.load(
            path, mechanism=self.mechanism.name, anchors=self.mechanism.anchored, checkpoint=self._holdings.checkpoint
        )
        where = f"{self.mechanism.name}.restore({str(path)!r})"
        self._take(held, extra, progress, skills, where=where, in_form=True)
        return self

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that going on to the same bits needs, for a training checkpoint: tensors, and JSON notes.

        The tensors are those in use, as in torch's own state dicts: copy them to keep them past the next step.
        Of a sharded model every process asks for it, and the first gets it, whole.
        """
        return self._state_of(*self._holdings.whole())

    def _state_of(self, held: Retained, extra: Extra) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, notes = files.to_state(held, extra)
        probes, skills = self._skills.to_state()
        tensors |= {f"{files.PROBES}/{name}": tensor for name, tensor in probes.items()}
        return tensors, {**notes, "skills": skills, "mechanism": self.mechanism.name, "progress": self._progress()}

    def load_state(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Go on from what `state` gave.

        Raises:
            FileFormatError, NotFiniteError, ParameterMismatchError, OptionError: as `restore`.
        """
        self._load_state(tensors, notes, in_form=False)

    def _load_state(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any], *, in_form: bool) -> None:
        where = f"{self.mechanism.name}.load_state"
        check_notes(tensors, notes, parts=files.PARTS, mechanism=self.mechanism.name, where=where)
        held, extra = files.from_state(tensors, notes, checkpoint=self._holdings.checkpoint, where=where)
        start = f"{files.PROBES}/"
        probes = {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
        self._take(held, extra, notes["progress"], (probes, notes.get("skills", {})), where=where, in_form=in_form)

    def state_dict(self) -> dict[str, Any]:
        """The same for what asks objects for their `state_dict`: {"keeper": bytes}, of a sharded model "tensors" too.

        accelerate's `register_for_checkpointing` and `torch.distributed.checkpoint` take a keeper as it is; bytes have
        any length, so that they are read into a keeper that holds nothing yet as well. Cost: a copy of all that is
        held in the host's memory; `save` and `state` make none.

        Of a sharded model "tensors" has a DTensor for each parameter that is held, "importance/NAME", "anchors/NAME"
        and so on, which share memory with what is held, and "keeper" the rest. `torch.distributed.checkpoint` writes
        every process's own, and reads them into any number of processes: into the room that
        `holdfast.integrations.sharding.room_for` makes, since it reads only what it is given room for. A keeper of
        whole layers is not laid out so: its bytes are of all in the first process alone, and `save` is for it.
        """
        if self._holdings.shards is None or self._holdings.held.layers or self._holdings.held.elsewhere:
            return {"keeper": to_bytes(*self.state())}
        tensors, notes = self._state_of(*self._holdings.spread())
        laid_out = {name: tensor for name, tensor in tensors.items() if is_sharded(tensor)}
        rest = {name: tensor for name, tensor in tensors.items() if name not in laid_out}
        return {"keeper": to_bytes(rest, {**notes, _LAID_OUT: list(laid_out)}), "tensors": laid_out}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave.

        Raises:
            FileFormatError: it has no key "keeper", its bytes are damaged, or tensors are missing that belong to it.
            NotFiniteError, ParameterMismatchError, OptionError: as `restore`.
        """
        where = f"{self.mechanism.name}.load_state_dict"
        tensors, notes = from_bytes(state_dict.get("keeper"), where=where)
        laid_out, found = notes.pop(_LAID_OUT, []), state_dict.get("tensors") or {}
        if missing := [name for name in laid_out if name not in found]:
            raise FileFormatError(
                f"{where}: {len(missing)} of the {len(laid_out)} tensors of this state were not read, such as "
                f"{missing[0]!r}. torch.distributed.checkpoint reads what it has room for: read into "
                "holdfast.integrations.sharding.room_for(keeper, checkpoint_id), and give that to load_state_dict."
            )
        self._load_state({**tensors, **{name: found[name] for name in laid_out}}, notes, in_form=bool(laid_out))

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(
            f"{self.mechanism.name}: a keeper is bound to its model and optimizers: it is not pickled, and copy.copy "
            "cannot copy it without them. Use save(folder) and load(folder, model), state_dict(), or "
            "copy.deepcopy((model, optimizer, keeper)), which copies all three."
        )

    def _own_options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in KeeperOptions.__annotations__}

    def _progress(self) -> dict[str, Any]:
        """What besides `held` decides the steps and reports to come, as JSON values."""
        steps, (pinned, ratio), own = self._attachments.steps, self._attachments.ratios, self.mechanism.progress()
        told = {"num_steps": sum(steps), "steps": steps, "pinned": pinned, "pull_ratio": ratio}
        if any(self._attachments.made_up):
            told["made_up"] = self._attachments.made_up
        check_mechanism_progress(own, taken=told, where=self.mechanism.name)
        return {**told, **own}

    def _take(
        self,
        held: Retained,
        extra: Mapping[str, TensorMap],
        progress: Mapping[str, Any],
        skills: files.SkillsState,
        *,
        where: str,
        in_form: bool = False,
    ) -> None:
        """Look at all that was read, and then hold it; nothing is changed by a refusal."""
        steps, made_up = check_progress(progress, names=self.mechanism.progress(), where=where)
        found = self._skills.from_state(*skills, where=where)
        found.bound(self.mechanism.budget)
        taken = self._holdings.checked(held, extra, where=where, in_form=in_form)
        if self.mechanism.budget is not None:
            self.mechanism.steer(found.controller.strength if found.are_bounded else None)
        self.mechanism.resume(progress, held, where=where)
        self._holdings.take(taken)
        self._skills = found
        self._attachments.count_from(steps, (progress["pinned"], progress["pull_ratio"]), made_up=made_up)
        self._attachments.watch()
