"""Fine-tuning over transformers' Trainer, with a keeper attached to its optimizer."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils.data import DataLoader, RandomSampler

from holdfast.curvature.factored import AnyImportance, importance_of
from holdfast.errors import EmptyDataError, OptionError
from holdfast.language.batches import Example, collate
from holdfast.language.checkpoints import last_checkpoint, seal
from holdfast.language.measuring import renamed
from holdfast.language.models import LanguageModel, transformers_library
from holdfast.language.processes import ALONE, Processes
from holdfast.language.skills import likelihood_of
from holdfast.likelihoods.categorical import IGNORED
from holdfast.memory import AnchorForm, ImportanceForm
from holdfast.probes import Probes
from holdfast.replay import Rehearsal
from holdfast.retention import EWC, WVA

HoldMethod = Literal["ewc", "wva"]
_OF_EWC = ("budget", "pull_every", "anchors", "anchor_dtype")


@dataclass(frozen=True)
class FineTuneSettings:
    """How a model is fine-tuned.

    Attributes:
        epochs: over the data.
        steps: in place of epochs, if not None.
        lr: largest learning rate; falls to zero linearly after a warm-up of a twentieth of the steps.
        head_factor: a new head learns so many times faster.
        batch_size: examples a step.
        accumulate: batches that make one step together.
        seed: of the order, of dropout and of a new head.
        save_every: steps between checkpoints, from which the same command goes on; None: no checkpoints.
        checkpointing: of activations, which are computed again in the backward pass: less memory, a third more time.
    """

    epochs: float = 1.0
    steps: int | None = None
    lr: float = 5e-5
    head_factor: float = 10.0
    batch_size: int = 16
    accumulate: int = 1
    seed: int = 0
    save_every: int | None = None
    checkpointing: bool = False


@dataclass(frozen=True)
class HoldOptions:
    """What holds a model meanwhile; see `holdfast.EWC` and `holdfast.WVA`. None leaves their default.

    Attributes:
        method: the mechanism.
        strength: of it.
        budget: in place of a strength, in nats a target; EWC alone, as the next three.
        pull_every: steps from one pull to the next.
        anchors: a checkpoint of the model's weights on disk, in place of a copy in memory.
        anchor_dtype: the form of the copy.
        importance_dtype: the form of the importance.
        offload: "cpu": both stay in the host's memory.
    """

    method: HoldMethod = "ewc"
    strength: float | None = None
    budget: float | None = None
    pull_every: int | None = None
    anchors: str | None = None
    anchor_dtype: AnchorForm | None = None
    importance_dtype: ImportanceForm | None = None
    offload: Literal["cpu"] | None = None

    @property
    def given(self) -> dict[str, Any]:
        """All but the method that is not left to its default, by name."""
        return {name: value for name, value in vars(self).items() if name != "method" and value is not None}


def flag(name: str) -> str:
    """An option as it is typed."""
    return f"--{name.replace('_', '-')}"


def keeper_of(
    model: LanguageModel,
    importance: AnyImportance,
    holding: HoldOptions,
    *,
    judge: LanguageModel | None = None,
    probes: Probes | None = None,
) -> EWC | WVA:
    """A keeper that holds what `importance` says at the model's present weights.

    A new head is free, and so is a head other than the one that the importance was measured with; that one takes no
    part in the training.

    Args:
        model: what will learn.
        importance: of `model.base`.
        holding: how it is held.
        judge: the old network's head over the same base, which `probes` are of; None: nothing is measured but by the
            probes that the importance brings along.
        probes: to measure a budget by.

    Raises:
        OptionError: an option of EWC for WVA, WVA without a strength, or options that exclude each other.
        ParameterMismatchError: names or shapes that do not match, all of them listed.

    Warns:
        UserWarning: a budget without probes over an importance that was not calibrated.
    """
    module, free = model.base, False
    measured = importance.info.details.get("head")
    other = judge is not None and judge.module is not model.module
    if model.own_part and (other or model.new_head or measured not in (None, model.head)):
        importance, free = _among(importance, model.own_part), True
    if judge is not None:
        prefix, module = judge.prefix, judge.module
        free = free or other or bool(prefix)  # a head beside the base, of which an importance says nothing
        importance = renamed(importance, lambda name: prefix + name)
    is_measured = probes is not None or importance.probes is not None
    if holding.budget is not None and not is_measured and not importance.info.is_calibrated:
        warnings.warn(
            "finetune: this importance was not calibrated. It may foresee a thousandth of the real rise of the old "
            "loss, and a budget then holds too little. Measure it with: holdfast importance --calibrate. Or give a "
            "strength.",
            stacklevel=2,
        )
    return held_by(module, importance, holding, free=free, probes=probes)


def held_by(
    module: nn.Module, importance: AnyImportance, holding: HoldOptions, *, free: bool, probes: Probes | None = None
) -> EWC | WVA:
    """A keeper over a module, whose weights the importance names.

    Args:
        module: over the weights that learn.
        importance: of them.
        holding: how it is held.
        free: whether what the importance does not name may learn freely.
        probes: of the module; None for those that the importance brings along, if any.

    Raises:
        OptionError: an option of EWC for WVA, WVA without a strength, or options that exclude each other.
    """
    given = holding.given
    if holding.method == "ewc":
        every = given.pop("pull_every", None)
        keeper = EWC(module, new_parameters="free" if free else "error", every=every, **given)
        return keeper.retain(importance, probes=probes)
    foreign = [flag(name) for name in _OF_EWC if name in given]
    if foreign or holding.strength is None:
        takes = f" and takes no {', '.join(foreign)}: it keeps no anchors" if foreign else ""
        raise OptionError(f"finetune: --method wva needs --strength{takes}.")
    return WVA(module, new_parameters="free" if free else "error", **given).retain(importance)


def _among(importance: AnyImportance, prefix: str) -> AnyImportance:
    """What is said of the parameters whose names begin so; probes are of the whole model, and left out."""
    layers = {name: layer for name, layer in importance.layers.items() if name.startswith(prefix)}
    diagonal = {name: value for name, value in importance.diagonal.items() if name.startswith(prefix)}
    return importance_of(layers, diagonal, importance.info)


def fine_tune(
    model: LanguageModel,
    data: Sequence[Example],
    settings: FineTuneSettings,
    *,
    folder: Path,
    keeper: EWC | WVA | None = None,
    rehearsal: Rehearsal | None = None,
    on_log: Callable[[Mapping[str, Any]], None] | None = None,
    on_step: Callable[[int, int], None] | None = None,
    processes: Processes = ALONE,
) -> None:
    """Train the model in place.

    Of several processes, over which the Trainer spreads it as `DistributedDataParallel`, each takes its share of every
    batch, so that the batches of a step and their order are those of one process; only dropout draws other numbers. A
    training goes on with another number of processes than it began with.

    Args:
        model: on the device where it is trained.
        data: examples with targets.
        settings: how.
        folder: where checkpoints go.
        keeper: attached meanwhile.
        rehearsal: likewise.
        on_log: called with what the Trainer logs: loss, step, with a keeper `predicted_rise` and `pull_ratio`, and with
            a rehearsal `rehearsal_loss`.
        on_step: called after every step with (steps done, steps in all).
        processes: that train together; the first writes the checkpoints.

    Raises:
        EmptyDataError: no example.
        OptionError: accelerate is not installed.
        FileFormatError: the checkpoint in `folder` is damaged.
        LostProcessError: another process is gone.
    """
    if not data:
        raise EmptyDataError("finetune: the data held no example.")
    transformers = transformers_library()
    from holdfast.integrations.transformers import HoldfastCallback, RehearsalCallback

    begin = last_checkpoint(folder, processes=processes)
    if settings.checkpointing:
        bare: Any = model.base
        getattr(bare, "activation_checkpointing_enable", bare.gradient_checkpointing_enable)()  # its older name
    try:
        arguments = _arguments(transformers, settings, folder, cpu=next(model.module.parameters()).device.type == "cpu")
    except ImportError as error:
        raise OptionError(
            'finetune: the Trainer needs accelerate: pip install "torch-holdfast[transformers]"'
        ) from error
    trainer = _trainer(transformers, processes)(
        model=model.module,
        args=arguments,
        train_dataset=list(data),
        data_collator=lambda found: share_of_batch(model, found, processes),
        compute_loss_func=lambda outputs, labels, num_items_in_batch=None: _loss(
            model, outputs, labels, num_items_in_batch
        ),
        optimizers=(AdamW(_groups(model, settings), lr=settings.lr, weight_decay=0.0), None),
        callbacks=[] if rehearsal is None else [RehearsalCallback(rehearsal)],
    )
    trainer.add_callback(
        _outward(transformers, on_log, on_step, processes)
    )  # after those that write into logs and checkpoints
    trainer.remove_callback(transformers.PrinterCallback)
    if keeper is not None:
        HoldfastCallback(keeper).attach(trainer)
    random.seed(settings.seed)
    trainer.train(resume_from_checkpoint=begin)
    model.module.eval()


def num_steps(settings: FineTuneSettings, num_examples: int) -> int:
    """Optimizer steps of a training on so many examples."""
    if settings.steps:
        return settings.steps
    an_epoch = math.ceil(math.ceil(num_examples / settings.batch_size) / settings.accumulate)
    return math.ceil(settings.epochs * max(1, an_epoch))


def _arguments(transformers: Any, settings: FineTuneSettings, folder: Path, *, cpu: bool) -> Any:
    return transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulate,
        num_train_epochs=settings.epochs,
        max_steps=settings.steps or -1,
        learning_rate=settings.lr,
        lr_scheduler_type="linear",
        warmup_steps=0.05,
        max_grad_norm=1.0,
        logging_steps=20,
        save_strategy="no" if settings.save_every is None else "steps",
        save_steps=settings.save_every or 500,
        save_total_limit=2,  # the one before is needed until the new one is sealed
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        seed=settings.seed,
        use_cpu=cpu,
    )


def share_of_batch(model: LanguageModel, found: Sequence[Example], processes: Processes) -> dict[str, Tensor]:
    """A process's share of a batch; where there is none for it an example without a target, for the model to run on."""
    own = processes.share(found)
    inputs, targets = collate(model, own or found[:1])
    return {**inputs, "labels": targets if own else torch.full_like(targets, IGNORED)}


def _trainer(transformers: Any, processes: Processes) -> type[Any]:
    """The Trainer; for several processes one that hands whole batches to each, whose collator then takes its share.

    What accelerate would do in its place, a batch to each process in turn, repeats examples where they do not come out
    even, and orders them otherwise than one process does.
    """
    if processes.count == 1:
        return transformers.Trainer
    from accelerate.data_loader import prepare_data_loader

    class WholeBatchesTrainer(transformers.Trainer):
        """A Trainer whose batches are not spread over processes."""

        def get_train_dataloader(self) -> Any:
            batches = DataLoader(
                self.train_dataset,
                batch_size=self.args.per_device_train_batch_size,
                sampler=RandomSampler(self.train_dataset),
                collate_fn=self.data_collator,
            )
            alone = {"num_processes": 1, "process_index": 0, "put_on_device": True, "use_seedable_sampler": True}
            return prepare_data_loader(batches, self.args.device, **alone)

    return WholeBatchesTrainer


def _loss(model: LanguageModel, outputs: Any, labels: Tensor, count: Tensor | None) -> Tensor:
    """Mean over the targets of all batches that make a step, those of other processes too."""
    losses = likelihood_of(model.task).nll(outputs, ({}, labels))
    if labels.is_floating_point():
        losses = losses.masked_fill((labels == IGNORED).flatten(1).all(dim=1), 0.0)
    return losses.sum() / ((labels != IGNORED).sum() if count is None else count)


def _groups(model: LanguageModel, settings: FineTuneSettings) -> list[dict[str, Any]]:
    """The parameters to train; those of a new head with its own learning rate."""
    own = {id(parameter) for name, parameter in model.base.named_parameters() if name.startswith(model.own_part)}
    trained = [p for p in model.module.parameters() if p.requires_grad]
    head = [p for p in trained if id(p) not in own] if model.new_head else []
    fresh = {id(p) for p in head}
    groups = [{"params": [p for p in trained if id(p) not in fresh]}]
    return groups + ([{"params": head, "lr": settings.lr * settings.head_factor}] if head else [])


def _outward(
    transformers: Any,
    on_log: Callable[[Mapping[str, Any]], None] | None,
    on_step: Callable[[int, int], None] | None,
    processes: Processes,
) -> Any:
    class Outward(transformers.TrainerCallback):
        """Hands steps and logs on, and seals a checkpoint when all is in it, the keeper and the rehearsal too."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            if not processes.is_first:
                torch.manual_seed(args.seed + processes.rank)  # of dropout, by which replicas are to differ

        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            if on_step is not None:
                on_step(state.global_step, state.max_steps)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **given: Any) -> None:
            if on_log is not None and logs and "loss" in logs:
                on_log({"step": state.global_step, "steps": state.max_steps, **logs})

        def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            processes.wait()  # each writes its random state
            if processes.is_first:
                seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    return Outward()
