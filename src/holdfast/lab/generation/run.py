"""One generation run: class after class learned to be drawn, in a folder, resumable at any iteration."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from holdfast.errors import CollapseError, NotFiniteError, OptionError
from holdfast.files import read_state, write_state
from holdfast.files.optimizers import load_optimizer_states, optimizer_states
from holdfast.lab.checkpoint import RunProgress, fitting
from holdfast.lab.engine import EventCallback, RunEngine, carry_out, seed_of
from holdfast.lab.folder import RunFolder
from holdfast.lab.generation.config import GenerationConfig
from holdfast.lab.generation.judge import judge_of, num_epochs
from holdfast.lab.generation.measures import asked_accuracy, frechet_distance_of, real_of, reverse_accuracy
from holdfast.lab.generation.methods import build_drawing
from holdfast.lab.generation.registry import GENERATION_METHODS, DrawingPlan
from holdfast.lab.provenance import data_of
from holdfast.lab.result import RunResult
from holdfast.lab.streams import Examples
from holdfast.replay import check_alive
from holdfast.tensors import prefixed, under

CHECKPOINT_SECONDS = 10.0
"""A checkpoint is written when so long has gone by since the last one."""

REPORTS = 40
"""A task tells of itself so many times."""

SHOWN = 8
"""Images of each class that are kept after each task, for pictures."""

_WARM = 20
"""Iterations before a generator is expected to draw different images."""


@dataclass
class GenerationProgress(RunProgress):
    """How far a generation run has come; `epoch` counts iterations.

    Attributes, beside those of `RunProgress`:
        frechet: Fréchet distance over the classes so far, after each task.
        reverse: reverse accuracy after the last task; None before.
    """

    frechet: list[float] = field(default_factory=list)
    reverse: float | None = None


def run_generation(
    config: GenerationConfig,
    *,
    output: str | os.PathLike[str] = "runs",
    device: str = "cpu",
    data_dir: str | os.PathLike[str] | None = None,
    on_event: EventCallback | None = None,
) -> RunResult:
    """Learn to draw one class after the other, in the folder `output`/`config.name`.

    Killed at any moment, the same call goes on where it was and on the CPU, with as many threads, ends with the same
    bits; a finished run is read back. After every task the images of each class are shown to a judge, a classifier
    trained on real images, which is trained once for each `output` and kept in `output`/judges.

    Args:
        config: every setting; see `configure_generation`.
        output: parent of the run's folder.
        device: as torch names it.
        data_dir: where MNIST is; see `holdfast.lab.streams.mnist`.
        on_event: called with each event, as written to `metrics.jsonl`: "start", "epoch" (of iterations), "task",
            "done".

    Returns:
        What `result.json` holds. `accuracy_matrix`: row t: share of the images asked to be of each class that the
        judge sees so, after task t; `average_accuracy`: A1, A2, ... of Wu et al. 2018; `validation_accuracy`: the same
        of other latents. `generation` has the Fréchet distances, the reverse accuracy and the judge's own accuracy on
        real test images.

    Raises:
        NotFiniteError, CollapseError: the generator diverged or collapsed; the last checkpoint is from before.
        OptionError: a device that cannot be used.
        OutputError, RunMismatchError, FileFormatError, DataFileError: as for `holdfast.lab.running.run`.
    """
    return carry_out(ActiveGeneration, config, output=output, device=device, data_dir=data_dir, on_event=on_event)


def samples_path(folder: Path) -> Path:
    """Where a run keeps the images that it drew after each task, for pictures."""
    return folder / "samples.safetensors"


class ActiveGeneration(RunEngine[GenerationProgress]):
    """Classes learned to be drawn with a method; the arguments are those of `RunEngine`."""

    def __init__(
        self,
        config: GenerationConfig,
        folder: RunFolder,
        *,
        device: str,
        data_dir: str | os.PathLike[str] | None,
        on_event: EventCallback | None,
    ) -> None:
        super().__init__(
            config, folder, progress=GenerationProgress(), device=device, data_dir=data_dir, on_event=on_event
        )
        self.config: GenerationConfig = config
        (self.images,) = data_of(config, data_dir=data_dir)
        self.classes = tuple(classes[0] for classes in self.stream.task_classes)
        self.test = self.images.test.to(self.device)
        few = (self.test.targets.bincount(minlength=len(self.images.classes)) < 2).nonzero().flatten().tolist()
        if few:
            raise OptionError(
                f"{config.stream}: {len(self.test)} test images, of classes {few} fewer than two; drawn ones are "
                "compared with them. Give more data."
            )
        plan = DrawingPlan(config, config.seed, self.stream.input_shape, len(self.images.classes), self.device)
        self.drawing = build_drawing(config.method, plan, config.options)
        self.shown: list[Tensor] = []

    def finish(self) -> RunResult:
        """Learn what is left to learn, once there is a judge."""
        name = "-".join(filter(None, (self.images.name, self.config.fingerprint)))
        self.judge, self.judged = judge_of(
            self.images, name=name, device=self.device, folder=self.folder.path.parent / "judges"
        )
        return super().finish()

    def baseline(self) -> list[float]:
        """Of the untrained generator."""
        return asked_accuracy(self.judge, self._drawn(0))

    def learn(self, t: int) -> None:
        """Train on class t from the iteration where it stands, and measure."""
        config, progress = self.config, self.progress
        train = self._training_examples(t)
        every = max(1, config.iterations // REPORTS)
        if progress.epoch == 0:
            self.drawing.open_task(self.stream.task_classes[t])
        began = time.perf_counter()
        while progress.epoch < config.iterations:
            torch.manual_seed(seed_of(config.seed, 1, t, progress.epoch))
            chosen = torch.randint(len(train), (config.critic_steps * config.batch_size,)).to(self.device)
            distance = self.drawing.fit(train.at(chosen), train.targets[chosen])
            progress.epoch += 1
            if progress.epoch % every == 0 or progress.epoch == config.iterations:
                began = self._report(t, distance, began)
        self._close(t)

    def _report(self, t: int, distance: Tensor, began: float) -> float:
        """Tell how far a task has come; write a checkpoint if it is time. Returns the time now."""
        progress, now = self.progress, time.perf_counter()
        value = float(distance)
        if value != value or abs(value) == float("inf"):
            raise NotFiniteError(
                f"{self.config.name}: the critic's loss is {value} at iteration {progress.epoch} of task {t + 1}: the "
                "GAN has diverged. Lower --lr, or start with another --seed; the last checkpoint is from before."
            )
        progress.seconds_training += now - began
        self.tell(
            {
                "event": "epoch",
                "unit": "iteration",
                "task": t,
                "epoch": progress.epoch,
                "epochs": self.config.iterations,
                "loss": value,
                "seconds": now - began,
            }
        )
        if progress.epoch < self.config.iterations:
            self.save(at_least=CHECKPOINT_SECONDS)
        return time.perf_counter()

    def _close(self, t: int) -> None:
        progress, began = self.progress, time.perf_counter()
        try:
            self.drawing.close_task(t)
        except (CollapseError, NotFiniteError) as error:
            raise type(error)(f"{self.config.name}, task {t + 1}: {error}") from error
        drawn = self._drawn(0)
        learned = list(self.classes[: t + 1])
        real = real_of(self.test, learned).inputs
        progress.frechet.append(frechet_distance_of(self.judge, drawn[: t + 1].flatten(0, 1), real))
        self.shown.append(self.drawing.draw(SHOWN, self.classes, seed=seed_of(self.config.seed, 3)).cpu())
        if t + 1 == len(self.stream):
            progress.reverse = self._reverse(drawn)
        seconds = time.perf_counter() - began
        test, validation = asked_accuracy(self.judge, drawn), asked_accuracy(self.judge, self._drawn(1)[: t + 1])
        self.closed(test, validation, seconds=seconds, frechet=progress.frechet[-1])
        write_state(samples_path(self.folder.path), {"samples": torch.stack(self.shown)}, {"classes": self.classes})
        self.save()

    def _reverse(self, drawn: Tensor) -> float:
        epochs, num_classes = num_epochs(self.images), len(self.images.classes)
        test = real_of(self.test, self.classes)
        return reverse_accuracy(drawn, test, epochs=epochs, num_classes=num_classes, seed=self.config.seed)

    def _drawn(self, part: int) -> Tensor:
        """Images of every class: part 0 to report, 1 of other latents, on which settings may be chosen."""
        return self.drawing.draw(self.config.images, self.classes, seed=seed_of(self.config.seed, 2, part))

    def _training_examples(self, t: int) -> Examples:
        first = 0 if GENERATION_METHODS.named(self.config.method).past_data else t
        return real_of(self.images.train, self.classes[first : t + 1]).to(self.device)

    def write_checkpoint(self) -> None:
        """Of generator, critic and what holds them.

        Raises:
            CollapseError: the generator has collapsed; the checkpoint before stays.
        """
        if self.progress.epoch >= _WARM:
            where = f"{self.config.name}, task {self.progress.task + 1}"
            check_alive(self.drawing.gan, classes=(self.progress.task,), where=where)
        tensors, notes = self.drawing.state()
        found, told = optimizer_states(self.drawing.all_optimizers)
        tensors = prefixed("drawing", tensors) | found
        if self.shown:
            tensors["shown"] = torch.stack(self.shown)
        content = {"progress": asdict(self.progress), "drawing": notes, "optimizers": told}
        write_state(self.folder.checkpoint, tensors, content)

    def read_checkpoint(self) -> GenerationProgress:
        """Put everything where it was."""
        tensors, notes = read_state(self.folder.checkpoint)
        with fitting(self.folder.checkpoint):
            self.drawing.load_state(under("drawing", tensors), notes["drawing"])
            load_optimizer_states(self.drawing.all_optimizers, tensors, notes["optimizers"])
            self.shown = list(tensors["shown"]) if "shown" in tensors else []
            return GenerationProgress(**notes["progress"])

    def found(self) -> dict[str, Any]:
        """What generation alone has."""
        return {
            "generation": {
                "frechet_distance": self.progress.frechet,
                "reverse_accuracy": self.progress.reverse,
                "judge_accuracy": self.judged,
            }
        }
