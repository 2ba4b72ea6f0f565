"""A story carried out: settings chosen on validation data, the chosen ones under several seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from holdfast.errors import UnknownNameError
from holdfast.lab.canvas import make_folder
from holdfast.lab.tables import Estimate
from recipes.elephants.encoder import Encoder
from recipes.elephants.gpt import Gpt
from recipes.elephants.methods import CENTRAL, STORY_METHODS, StoryMethod, trial_settings
from recipes.elephants.trial import MessageCallback, StoryTrial, TrialResult, do_all, known_trials

TUNING_SEED = 9

NEEDED = {"encoder": 0.98, "gpt": 1.01}
"""A setting will do with so much of plain's accuracy, or with at most so many times plain's perplexity."""

DataPart = Literal["validation", "test"]


@dataclass(frozen=True)
class StoryResult:
    """What a story found.

    Attributes:
        story: its name.
        size: in which it was done.
        found: everything that is known, tuning too.
        chosen: method -> the trial whose settings were chosen on validation data.
        seeds: of what is reported.
        rival_seeds: likewise, of the methods that are not `CENTRAL`.
    """

    story: str
    size: str
    found: Mapping[StoryTrial, TrialResult]
    chosen: Mapping[str, StoryTrial]
    seeds: tuple[int, ...]
    rival_seeds: tuple[int, ...]

    def reported(self, method: str) -> list[TrialResult]:
        """The reported trials of a method, by seed."""
        seeds = self.seeds if method in CENTRAL else self.rival_seeds
        return [self.found[trial] for trial in reported(self.chosen[method], seeds)]

    def beside_plain(self, method: str) -> list[tuple[TrialResult, TrialResult]]:
        """The reported trials of a method, each with plain fine-tuning's of the same seed."""
        plain = {found["trial"]["seed"]: found for found in self.reported("plain")}
        found = self.reported(method)
        return [(one, plain[one["trial"]["seed"]]) for one in found if one["trial"]["seed"] in plain]


def carry_out(
    name: str,
    *,
    work: Path,
    data_dir: Path,
    size: str = "full",
    seeds: Sequence[int] = (0, 1, 2),
    rival_seeds: Sequence[int] | None = None,
    methods: Sequence[str] | None = None,
    device: str | torch.device = "cpu",
    on_message: MessageCallback = lambda _: None,
) -> StoryResult:
    """Do what is missing of a story: plain training first, whose learning rate the others begin from.

    Args:
        name: "encoder" or "gpt".
        work: folder of its trials.
        data_dir: with text/.
        size: "full", "quick", or of gpt "large".
        seeds: of what is reported.
        rival_seeds: likewise, of the methods that are not `CENTRAL`; None: the same.
        methods: names of `STORY_METHODS`; plain is always among them; None: all.
        device: of gpt.
        on_message: called with a line now and then.

    Raises:
        UnknownNameError: no such method.
        RunMismatchError: the folder's trials were done with other settings.
    """
    for method in methods or ():
        if method not in STORY_METHODS:
            raise UnknownNameError("method", method, STORY_METHODS)
    needed = {"plain", *(methods or STORY_METHODS)}
    asked = [method for method in STORY_METHODS.values() if method.name in needed and method.settings_for(name)]
    folder = work / name / size
    make_folder(folder)
    teller = Encoder(data_dir, folder, size) if name == "encoder" else Gpt(data_dir, folder, size, device)
    settings = teller.settings
    found = known_trials(folder, settings)

    def do(trials: Sequence[StoryTrial]) -> None:
        found.update(do_all(trials, teller.do, folder, settings=settings, on_message=on_message))

    rivals = seeds if rival_seeds is None else rival_seeds
    chosen: dict[str, StoryTrial] = {}
    for some in (asked[:1], asked[1:]):
        plain = chosen["plain"].lr if chosen else None
        trials = {method.name: tuning(name, method, size, plain) for method in some}
        do([trial for each in trials.values() for trial in each])
        chosen |= {method: choose(name, each, found, chosen.get("plain")) for method, each in trials.items()}
        do([t for m in some for t in reported(chosen[m.name], seeds if m.name in CENTRAL else rivals)])
    return StoryResult(name, size, found, chosen, tuple(seeds), tuple(rivals))


def tuning(story: str, method: StoryMethod, size: str, plain: float | None) -> list[StoryTrial]:
    """The trials by which a setting is chosen; of those with nothing to set too, for the picture.

    Args:
        story: its name.
        method: whose.
        size: of the story.
        plain: the learning rate of plain training, as a factor of that of the pace; None for plain training itself.
    """
    return [
        StoryTrial(story, method.name, lr, value, TUNING_SEED, size, tuning=True)
        for lr, value in trial_settings(method, story, plain)
    ]


def reported(chosen: StoryTrial, seeds: Sequence[int]) -> list[StoryTrial]:
    """The trials that are reported of a chosen one."""
    return [StoryTrial(chosen.story, chosen.method, chosen.lr, chosen.value, seed, chosen.size) for seed in seeds]


def choose(
    story: str, trials: Sequence[StoryTrial], found: Mapping[StoryTrial, TrialResult], plain: StoryTrial | None
) -> StoryTrial:
    """The trial that keeps the most among those that learn enough, on validation data; of plain, what learns the most.

    Enough is `NEEDED`; where none does, the one that learns the most.
    """
    enough = [] if plain is None else [t for t in trials if _learns_enough(story, found[t], found[plain])]
    if enough:
        return min(enough, key=lambda trial: lost(story, found[trial], "validation"))
    return max(trials, key=lambda trial: learned(story, found[trial], "validation"))


def learned(story: str, found: TrialResult, part: DataPart) -> float:
    """The new skill, the larger the better: accuracy, or minus the logarithm of the perplexity."""
    value = found["after"]["new"][part]["value"]
    return value if story == "encoder" else -math.log(value)


def lost(story: str, found: TrialResult, part: DataPart) -> float:
    """What the old skill lost: of Spearman's correlation, or nats a token."""
    before, after = (found[when]["old"][part] for when in ("before", "after"))
    return before["value"] - after["value"] if story == "encoder" else after["loss"] - before["loss"]


def lost_share(story: str, found: TrialResult, plain: TrialResult, part: DataPart = "test") -> float:
    """What was lost over what plain training loses: 0 nothing, 1 as much."""
    by_plain = lost(story, plain, part)
    return lost(story, found, part) / by_plain if by_plain else math.nan


def learned_share(story: str, found: TrialResult, plain: TrialResult, part: DataPart = "test") -> float:
    """The new accuracy over plain's, or the new perplexity over plain's."""
    own, most = (learned(story, one, part) for one in (found, plain))
    return own / most if story == "encoder" else math.exp(most - own)


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and interval over seeds."""
    return Estimate.of(list(values))


def _learns_enough(story: str, found: TrialResult, plain: TrialResult) -> bool:
    share = learned_share(story, found, plain, "validation")
    return share >= NEEDED["encoder"] if story == "encoder" else share <= NEEDED["gpt"]
