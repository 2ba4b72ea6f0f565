"""Everything that decides the figures of a generation run, and what its streams and methods are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Literal

from holdfast.choices import check_choice, check_choices
from holdfast.errors import OptionError, UnknownNameError
from holdfast.lab.config import settings_hash
from holdfast.replay.wgan import Precision


@dataclass(frozen=True)
class GenerationStream:
    """Images whose classes come one after the other.

    Attributes:
        description: one line for people.
        images: where they come from.
        defaults: the protocol's settings.
    """

    description: str
    images: Literal["digits", "mnist"]
    defaults: Mapping[str, Any]

    def __post_init__(self) -> None:
        check_choices(self)


@dataclass(frozen=True)
class GenerationMethod:
    """One way to learn to draw class after class.

    Attributes:
        label: as tables show it.
        summary: one line for people.
        retraining: joint retraining with replay.
        alignment: replay alignment.
        past_data: whether the real data of all classes so far are there.
        ewc: whether EWC holds the generator, by its Fisher information.
        scholar: Deep Generative Replay: a generator without classes, and a solver that knows them.
    """

    label: str
    summary: str
    retraining: bool = False
    alignment: bool = False
    past_data: bool = False
    ewc: bool = False
    scholar: bool = False


GENERATION_METHODS: dict[str, GenerationMethod] = {
    "joint": GenerationMethod(
        "joint", "goes on training on the real data of all classes so far (the ceiling)", past_data=True
    ),
    "mergan-jtr-ra": GenerationMethod("MeRGAN JTR+RA", "both of the next two", retraining=True, alignment=True),
    "mergan-jtr": GenerationMethod("MeRGAN JTR", "joint retraining with replayed images", retraining=True),
    "mergan-ra": GenerationMethod(
        "MeRGAN RA", "aligns its images of past classes with its frozen self's", alignment=True
    ),
    "dgr": GenerationMethod("DGR", "replays a generator without classes; its solver tells the classes", scholar=True),
    "ewc-fisher": GenerationMethod(
        "EWC Fisher", "pulls the generator's weights elastically to their anchors", ewc=True
    ),
    "none": GenerationMethod("plain", "plain fine-tuning: nothing holds the old classes (the floor)"),
}
"""Every method of generation by name, from the ceiling to the floor."""

# Wu et al. 2018 (arXiv 1809.02058); the alignment's weight in our convention, see `holdfast.replay.wgan`
_MNIST = {"iterations": 4000, "lr": 1e-4, "latent": 128, "width": 32}
# ours: minutes on one core
_DIGITS = {"iterations": 200, "lr": 1e-3, "latent": 16, "width": 16, "images": 300, "alignment": 0.3}

GENERATION_STREAMS: dict[str, GenerationStream] = {
    "digits-generation": GenerationStream("embedded 8x8 digits to draw, a class a task", "digits", _DIGITS),
    "mnist-generation": GenerationStream("MNIST to draw, a class a task", "mnist", _MNIST),
}


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """One generation run: a stream, a method, a seed, and every setting. Make one with `configure_generation`.

    Attributes:
        stream: name of the stream.
        method: name of the method.
        seed: of the initial weights, the order of the images and all latents.
        num_tasks: the first so many classes; left out, all ten.
        iterations: of the generator, a task.
        batch_size: images a step of generator and critic.
        lr: of Adam with betas (0, 0.9), new at each task.
        latent: length of z.
        width: channels at the fine end of generator and critic.
        critic_steps: the critic's steps before each of the generator's.
        penalty: weight of the gradient penalty.
        alignment: weight of replay alignment; see `holdfast.replay.wgan` for its scale.
        strength: of EWC.
        importance_examples: latents that the Fisher information is measured on, each task.
        images: of each class, drawn for each measurement.
        precision: "float32", or "bfloat16" for autocast.
        compile: whether torch.compile has the networks.
    """

    stream: str
    method: str
    seed: int = 0
    num_tasks: int | None = None
    iterations: int = 4000
    batch_size: int = 64
    lr: float = 1e-4
    latent: int = 128
    width: int = 32
    critic_steps: int = 5
    penalty: float = 10.0
    alignment: float = 0.03
    strength: float = 1e3
    importance_examples: int = 1000
    images: int = 1000
    precision: Precision = "float32"
    compile: bool = False

    def __post_init__(self) -> None:
        check_choice("stream", self.stream, GENERATION_STREAMS)
        check_choice("method", self.method, GENERATION_METHODS)
        check_choices(self)
        for name, kind, low, high in _RANGES:
            value = getattr(self, name)
            if value is None and name == "num_tasks":
                continue
            if not (isinstance(value, int | kind) and low <= value <= high):
                number = "whole number" if kind is int else "number"
                raise OptionError(f"{name} is {value!r}; expected a {number} from {low:g} to {high:g}.")
            object.__setattr__(self, name, kind(value))

    @property
    def hash(self) -> str:
        """Eight hexadecimal digits that stand for every setting that is not its field's default."""
        return settings_hash(self.to_dict(), self.defaults())

    @property
    def name(self) -> str:
        """Name of the run's folder: stream-method-seed-hash."""
        return f"{self.stream}-{self.method}-{self.seed}-{self.hash}"

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    def defaults(self) -> dict[str, Any]:
        """Setting -> its default; of stream and method there is none."""
        return {own.name: own.default for own in fields(self) if own.default is not MISSING}


_RANGES = (
    ("seed", int, 0, 2**31 - 1),
    ("num_tasks", int, 1, 10),
    ("iterations", int, 1, 10**9),
    ("batch_size", int, 2, 10**6),
    ("lr", float, 0, 1e6),
    ("latent", int, 1, 10**6),
    ("width", int, 1, 10**4),
    ("critic_steps", int, 1, 1000),
    ("penalty", float, 0, 1e9),
    ("alignment", float, 0, 1e9),
    ("strength", float, 0, float("inf")),
    ("importance_examples", int, 1, 10**9),
    ("images", int, 2, 10**6),
)

_OF_METHOD = {"alignment": "alignment", "strength": "ewc", "importance_examples": "ewc"}


def configure_generation(stream: str, method: str, **settings: Any) -> GenerationConfig:
    """A generation run's configuration: the protocol of the stream, and yours above it.

    Args:
        stream: name of the stream.
        method: name of the method.
        settings: any field of `GenerationConfig`; None leaves the protocol's value.

    Raises:
        UnknownNameError: an unknown stream, method or setting; the message offers the nearest.
        OptionError: a value out of its range, or a setting that the method has no use for.
    """
    if stream not in GENERATION_STREAMS:
        raise UnknownNameError("stream", stream, GENERATION_STREAMS)
    if method not in GENERATION_METHODS:
        raise UnknownNameError("method of generation", method, GENERATION_METHODS)
    given = {name: value for name, value in settings.items() if value is not None}
    known = {entry.name for entry in fields(GenerationConfig)}
    for name in given:
        if name not in known:
            raise UnknownNameError("setting of generation", name, known)
        if name in _OF_METHOD and not getattr(GENERATION_METHODS[method], _OF_METHOD[name]):
            fitting = [each for each, told in GENERATION_METHODS.items() if getattr(told, _OF_METHOD[name])]
            raise OptionError(f"{name} has no effect with method {method}; it belongs to {', '.join(fitting)}.")
    return GenerationConfig(**{**GENERATION_STREAMS[stream].defaults, **given, "stream": stream, "method": method})
