"""A keeper in `transformers.Trainer`, and in the trainers of TRL, which derive from it.

trainer = Trainer(model, args, train_dataset=data)
HoldfastCallback(keeper).attach(trainer)
"""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any, Self

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from holdfast.errors import StateError
from holdfast.files import read_json
from holdfast.integrations.figures import close_lesson, logged_figures, train_together
from holdfast.replay import Rehearsal
from holdfast.retention import Keeper

FOLDER = "holdfast"
"""Where in a checkpoint the keeper is, a folder for `Keeper.load`; of a callback with a name, "holdfast-" and that."""


class HoldfastCallback(TrainerCallback):
    """Holds what `keeper` retains while a `Trainer` trains.

    The keeper is attached to the torch optimizer under Accelerate's wrapper when training begins and taken off when it
    ends. So it acts on the steps that really happen, after accumulation and clipping, and not on those that a
    `GradScaler` skips. Into every checkpoint goes the folder `holdfast`, what `keeper.save` writes, and a resumed
    training goes on from it; probes are in it too. After the last step the lesson is closed (`Keeper.close`), before
    the Trainer evaluates and saves. The logs of the Trainer get `predicted_rise` (EWC) and `pull_ratio`, the length of
    the pull over that of the task's step in the last step that was measured (the keeper's `log_every`); of skills with
    probes `rise_0` and `increment_0`, and so on, in nats per target, and under a budget the `strength` in force.

    Args:
        keeper: over the model that is trained, or a part of it.
        resume_from_checkpoint: only needed where training resumes from a folder that is named neither in the
            `TrainingArguments` nor `checkpoint-<step>` in their `output_dir`: the same folder again.
        name: stands before the logged figures and in the folder's name, to tell several keepers in one `Trainer` apart.

    Cost: beside the keeper's own two passes over the weights each time the Trainer logs.
    """

    def __init__(
        self, keeper: Keeper, *, resume_from_checkpoint: str | os.PathLike[str] | None = None, name: str = ""
    ) -> None:
        self.keeper, self.name = keeper, name
        self._resume_from_checkpoint = resume_from_checkpoint

    @property
    def folder(self) -> str:
        """Of the keeper in a checkpoint."""
        return f"{FOLDER}-{self.name}" if self.name else FOLDER

    def attach(self, trainer: Trainer) -> Self:
        """Join the callbacks of `trainer`, as the first, so that all that report its logs report these figures too.

        Given as `Trainer(callbacks=[...])` it holds as well, but comes after what `report_to` names (TensorBoard,
        Weights & Biases), and the figures stand in the Trainer's history and progress alone.

        Raises:
            StateError: another keeper's callback of the same name is there; each would write over the other's folder.
        """
        others = [c for c in trainer.callback_handler.callbacks if isinstance(c, HoldfastCallback)]
        if any(other.name == self.name for other in others):
            raise StateError(
                f"HoldfastCallback: this {type(trainer).__name__} has one named {self.name!r} already. Give each "
                'a name of its own, such as HoldfastCallback(keeper, name="head").'
            )
        trainer.callback_handler.callbacks.insert(0, self)
        return self

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Attach the keeper; where training resumes, as it was in the checkpoint.

        Raises:
            StateError: training resumes from a checkpoint that cannot be found.
            FileFormatError: the checkpoint, or the keeper in it, is damaged.
        """
        self.keeper.detach()  # of an attempt with a larger batch that ran out of memory
        if state.global_step > 0:
            self._resume(args, state)
        train_together(self.keeper, num_processes=args.world_size)
        self.keeper.attach(kwargs["optimizer"])

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the lesson, where training ended early, and leave the optimizer as it was."""
        if state.global_step < state.max_steps:
            close_lesson(self.keeper)
        self.keeper.detach()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Close the lesson after its last step, before the Trainer evaluates and saves."""
        if state.global_step >= state.max_steps:
            close_lesson(self.keeper)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the keeper into the checkpoint that was just written."""
        if isinstance(self.keeper, Keeper) and (args.should_save or self.keeper.is_sharded):
            self.keeper.save(_checkpoint(args, state) / self.folder, probes=True)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Put the keeper's figures beside the loss."""
        if logs is None or "loss" not in logs:
            return
        known = logged_figures(self.keeper, name=self.name)
        logs.update(known)
        state.log_history[-1].update(known)

    def _resume(self, args: TrainingArguments, state: TrainerState) -> None:
        named = [self._resume_from_checkpoint, args.resume_from_checkpoint, _checkpoint(args, state)]
        candidates = [Path(folder) for folder in named if folder is not None]
        found = next((folder for folder in candidates if _wrote(folder, state)), None)
        if found is None:
            raise StateError(
                f"HoldfastCallback: training resumes at step {state.global_step}, and none of "
                f"{', '.join(map(str, candidates))} is the checkpoint it resumes from. "
                "Pass HoldfastCallback(keeper, resume_from_checkpoint=...), the folder that train() was given."
            )
        if os.path.lexists(found / self.folder):
            self.keeper.restore(found / self.folder)
        else:
            warnings.warn(
                f"HoldfastCallback: {found} was written without a keeper; it is held from here on what this keeper "
                f"retains ({self.keeper.held.num_tasks} tasks).",
                stacklevel=2,
            )


class RehearsalCallback(TrainerCallback):
    """Rehearses the past while a `Trainer` trains: `Trainer(callbacks=[RehearsalCallback(rehearsal)])`.

    The rehearsal is attached when training begins and taken off when it ends. A resumed training takes the batches that
    it would have taken. Under `bf16=True` the past runs in bfloat16 too. The logs get `rehearsal_loss`, that of the
    last rehearsed batch in nats per target.

    Args:
        rehearsal: over the model that is trained.
    """

    def __init__(self, rehearsal: Rehearsal) -> None:
        self.rehearsal = rehearsal

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Attach the rehearsal, at the step at which training begins."""
        self.rehearsal.detach()  # of an attempt with a larger batch that ran out of memory
        self.rehearsal.num_steps = state.global_step
        train_together(self.rehearsal, num_processes=args.world_size)
        if args.bf16 and self.rehearsal.autocast is None:
            self.rehearsal.autocast = torch.bfloat16
        self.rehearsal.attach(kwargs["optimizer"])

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the optimizer as it was."""
        self.rehearsal.detach()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Put the loss of the past beside that of the new task."""
        if logs is not None and "loss" in logs and self.rehearsal.last_loss is not None:
            known = {"rehearsal_loss": self.rehearsal.last_loss}
            logs.update(known)
            state.log_history[-1].update(known)


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    assert args.output_dir is not None
    return Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


def _wrote(folder: Path, state: TrainerState) -> bool:
    """Whether this checkpoint is the one that `state` was read from."""
    path = folder / TRAINER_STATE_NAME
    if not path.is_file():
        return False
    saved = read_json(path)
    same_logs = json.dumps(saved.get("log_history")) == json.dumps(state.log_history)
    return saved.get("global_step") == state.global_step and same_logs
