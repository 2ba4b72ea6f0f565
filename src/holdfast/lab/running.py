"""One run: a stream learned task by task, in a folder, resumable at any moment."""

from __future__ import annotations

import os
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from holdfast.errors import OptionError
from holdfast.lab import checkpoint
from holdfast.lab.checkpoint import RunProgress
from holdfast.lab.config import RunConfig
from holdfast.lab.engine import EventCallback, RunEngine, carry_out, seed_of
from holdfast.lab.folder import RunFolder
from holdfast.lab.foreign import in_a_line, is_foreign
from holdfast.lab.methods import Moment, Setting, build_learner, method_named
from holdfast.lab.registry import own_settings
from holdfast.lab.result import RunResult
from holdfast.lab.streams import Examples
from holdfast.lab.streams.stream import Stream
from holdfast.lab.training import (
    NETS,
    accuracy,
    augmented,
    build_net,
    build_optimizer,
    learning_rate,
    num_epochs,
    train_epoch,
)
from holdfast.likelihoods import Gaussian
from holdfast.likelihoods.masks import Mask, active_classes

CHECKPOINT_SECONDS = 5.0
"""Between tasks a checkpoint is written after every epoch that ends so long after the last one."""


def run(
    config: RunConfig,
    *,
    output: str | os.PathLike[str] = "runs",
    device: str = "cpu",
    data_dir: str | os.PathLike[str] | None = None,
    on_event: EventCallback | None = None,
) -> RunResult:
    """Learn a stream with one method, in the folder `output`/`config.name`.

    Killed at any moment, the same call goes on where it was and on the CPU, with as many threads
    (`torch.get_num_threads`), ends with the same bits; a finished run is read back without training. One that another
    process is at work on is waited for.

    Args:
        config: every setting; see `configure`.
        output: parent of the run's folder.
        device: as torch names it.
        data_dir: where MNIST is; see `holdfast.lab.streams.mnist`.
        on_event: called with each event, as written to `metrics.jsonl`: "start", "epoch", "task", "done"; and with
            "busy" where another process is at work on this run.

    Returns:
        What `result.json` holds.

    Raises:
        OptionError: options that have no meaning together, or a device that cannot be used; nothing is written then.
        OutputError: the folder cannot be written.
        RunMismatchError: the folder belongs to another configuration, or was begun with other data or plug-ins.
        FileFormatError: a file in the folder is damaged.
        DataFileError: the data are missing or damaged.
        NotFiniteError: training diverged.
    """
    if not isinstance(config, RunConfig):
        raise OptionError(
            f"run: {config!r:.80}; expected a RunConfig, as holdfast.lab.configure(stream, method) makes it."
        )
    return carry_out(ActiveRun, config, output=output, device=device, data_dir=data_dir, on_event=on_event)


class ActiveRun(RunEngine[RunProgress]):
    """A stream learned with a method.

    Args:
        config: every setting.
        folder: where it stands.
        device: as torch names it.
        data_dir: where MNIST is.
        on_event: called with each event.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        *,
        device: str,
        data_dir: str | os.PathLike[str] | None,
        on_event: EventCallback | None,
    ) -> None:
        super().__init__(config, folder, progress=RunProgress(), device=device, data_dir=data_dir, on_event=on_event)
        self.config: RunConfig = config
        self.method = method_named(config.method)
        net = build_net(
            config.net,
            self.stream.input_shape,
            self.stream.num_classes,
            seed=seed_of(config.seed),
            **own_settings(NETS.named(config.net), config.options),
        )
        _check_net(config.net, net, self.stream)
        setting = Setting.of(self.stream, mask=config.mask, past=self._train, seed=config.seed)
        self.mask: Mask = setting.mask
        self.learner = build_learner(self.method, net.to(self.device), setting, config.options)
        self.model: nn.Module = self.learner.model
        self._augment = augmented(config.augment, self.stream.input_shape)
        self.optimizer = self._new_optimizer()
        kept = [(task.validation.to(self.device), task.test.to(self.device)) for task in self.stream]
        self.validation, self.test = zip(*kept)  # training examples are built again when they are needed
        if self.test[0].targets.is_floating_point():
            self._check_regression()
            self.learner.likelihood = Gaussian()

    def baseline(self) -> list[float]:
        """Of the untrained network."""
        return [self._accuracy(examples, j, j) for j, examples in enumerate(self.test)]

    def read_checkpoint(self) -> RunProgress:
        """Of model, optimizer and learner."""
        return checkpoint.load(self.folder.checkpoint, model=self.model, optimizer=self.optimizer, learner=self.learner)

    def write_checkpoint(self) -> None:
        """Likewise."""
        checkpoint.save(
            self.folder.checkpoint, self.progress, model=self.model, optimizer=self.optimizer, learner=self.learner
        )

    def learn(self, t: int) -> None:
        """Train on task t from the epoch where it stands, close it and test on all."""
        config, progress = self.config, self.progress
        train = self._training_examples(t)
        epochs = num_epochs(len(train), config.batch_size, epochs=config.epochs, iterations=config.iterations)
        epochs = epochs if self.learner.trains(t) else 0
        steps_an_epoch = -(-len(train) // config.batch_size)
        num_steps = config.iterations or epochs * steps_an_epoch
        columns = self._columns(t)
        if progress.epoch == 0:
            self.learner.open_task(t, train)
        while progress.epoch < epochs:
            began = time.perf_counter()
            done = progress.epoch * steps_an_epoch
            epoch_steps = min(steps_an_epoch, num_steps - done)

            def before_step(step: int, done: int = done, epoch_steps: int = epoch_steps) -> None:
                self._set_rate(done + step, num_steps)
                self.learner.before_step(Moment(done + step, num_steps, step, epoch_steps))

            loss = train_epoch(
                self.model,
                self.optimizer,
                train,
                batch_size=config.batch_size,
                seed=seed_of(config.seed, t, progress.epoch),
                columns=columns,
                num_steps=epoch_steps,
                before_step=before_step,
                loss=self.learner.loss,
                after_step=self.learner.after_step,
                clip=config.clip,
                augment=self._augment,
                steadier=self.learner.steadier,
            )
            seconds = time.perf_counter() - began
            progress.epoch += 1
            progress.seconds_training += seconds
            epoch = {"task": t, "epoch": progress.epoch, "epochs": epochs, "loss": loss, "seconds": seconds}
            self.tell({"event": "epoch", **epoch})
            if progress.epoch < epochs:
                self.save(at_least=CHECKPOINT_SECONDS)
        began = time.perf_counter()
        self.learner.after_training(t, train)
        progress.seconds_training += time.perf_counter() - began
        self._close(t)

    def _close(self, t: int) -> None:
        """Measure what task t needs, test on all tasks, and write a checkpoint."""
        progress = self.progress
        began = time.perf_counter()
        progress.keeper = self.learner.report()
        examples = self.validation[t] if self.config.importance_data == "validation" else self._train(t)
        if self.config.importance_examples is not None:
            examples = examples.take(self.config.importance_examples)
        self.learner.close_task(examples, classes=active_classes(self.mask, self.stream.task_classes, t), task=t)
        seconds = time.perf_counter() - began
        test = [self._accuracy(examples, t, j) for j, examples in enumerate(self.test)]
        validation = [self._accuracy(examples, t, j) for j, examples in enumerate(self.validation[: t + 1])]
        self.closed(test, validation, seconds=seconds)
        if self.config.fresh_optimizer:
            self.optimizer = self._new_optimizer()
        self.save()

    def _new_optimizer(self) -> Optimizer:
        config = self.config
        optimizer = build_optimizer(
            config.optimizer, self.model.parameters(), lr=config.lr, weight_decay=config.weight_decay
        )
        self.learner.attach(optimizer)
        return optimizer

    def _set_rate(self, step: int, num_steps: int) -> None:
        if self.config.schedule != "constant":
            rate = learning_rate(self.config.schedule, self.config.lr, step=step, num_steps=num_steps)
            for group in self.optimizer.param_groups:
                group["lr"] = rate

    def _train(self, t: int) -> Examples:
        """The training examples of task t."""
        return self.stream[t].train.to(self.device)

    def _training_examples(self, t: int) -> Examples:
        """What task t is trained on."""
        if not self.learner.needs_past_data:
            return self._train(t)
        parts = [self._train(k) for k in range(t + 1)]
        return Examples.joined(parts)

    def _columns(self, t: int) -> Tensor | None:
        """Row c: the columns in the loss of an example of class c; for earlier ones too where the loss meets them."""
        if self.mask == "all":
            return None
        table = torch.zeros(self.stream.num_classes, self.stream.num_classes, dtype=torch.bool, device=self.device)
        meets_past = self.learner.needs_past_data or self.learner.replays
        for k in range(t + 1) if meets_past else (t,):
            active = active_classes(self.mask, self.stream.task_classes, k if self.mask == "task" else t)
            for own in self.stream.task_classes[k]:
                table[own, list(active or ())] = True
        return table

    def _check_regression(self) -> None:
        if self.mask != "all" or self.method.classes_only:
            raise OptionError(
                f"{self.config.stream}, {self.config.method}: the targets are numbers; expected scenario domain, and "
                "a method that does without classes."
            )

    def _accuracy(self, examples: Examples, t: int, j: int) -> float:
        """Accuracy on task j after task t, among the classes that the scenario leaves open."""
        classes = None
        if self.stream.scenario != "domain":
            mask: Mask = "task" if self.stream.scenario == "task" else "seen"
            classes = active_classes(mask, self.stream.task_classes, max(t, j) if mask == "seen" else j)
        with self.learner.evaluating(j):
            return accuracy(self.model, examples, classes=classes)

    def found(self) -> dict[str, Any]:
        """What it takes in memory beside model and optimizer, with the data of earlier tasks where they are needed."""
        held = sum(tensor.nbytes for tensor in self.learner.state()[0].values())
        if self.learner.needs_past_data:
            held += sum(self._train(t).nbytes for t in range(len(self.stream) - 1))
        num_parameters = sum(weight.numel() for weight in self.model.parameters())
        return {"num_parameters": num_parameters, "held_bytes": held}


@torch.no_grad()
def _check_net(name: str, net: nn.Module, stream: Stream) -> None:
    """Raise `OptionError` unless a network gives an output column for each of the stream's."""
    inputs = stream[0].train.take(2).inputs
    if not any(True for _ in net.parameters()):
        raise OptionError(f"net {name}: it has no parameters; expected some to train.")
    try:
        with torch.random.fork_rng(devices=[]):
            outputs = net.eval()(inputs)
    except Exception as error:
        if is_foreign(error):
            raise
        raise OptionError(
            f"net {name}: with inputs of shape {list(inputs.shape)}, {inputs.dtype}, {in_a_line(error)}"
        ) from error
    finally:
        net.train()
    if not isinstance(outputs, Tensor) or outputs.shape != (len(inputs), stream.num_classes):
        told = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise OptionError(f"net {name}: its outputs are {told}; expected [{len(inputs)}, {stream.num_classes}].")
