"""A story carried out: settings chosen on validation data, the chosen ones under several seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from holdfast.errors import UnknownNameError
from holdfast.experiments.canvas import make_folder
from holdfast.experiments.language.elephants.encoder import Encoder
from holdfast.experiments.language.elephants.gpt import Gpt
from holdfast.experiments.language.elephants.methods import STORY_METHODS, StoryMethod
from holdfast.experiments.language.elephants.trial import MessageCallback, StoryTrial, TrialResult, do_all, known_trials
from holdfast.experiments.tables import Estimate

TUNING_SEED = 9

CENTRAL = ("plain", "ewc", "ewc-kfac", "ewc-budget", "wva")
"""The methods that the story is about; the others may be reported under fewer seeds."""

NEEDED = {"encoder": 0.97, "gpt": 1.05}
"""A setting will do with so much of plain's gain of accuracy, or with at most so many times plain's perplexity."""


@dataclass(frozen=True)
class StoryResult:
    """What a story found.

    Attributes:
        story: its name.
        size: in which it was done.
        found: everything that is known, tuning too.
        chosen: method -> the setting chosen on validation data.
        seeds: of what is reported.
        rival_seeds: likewise, of the methods that are not `CENTRAL`.
    """

    story: str
    size: str
    found: Mapping[StoryTrial, TrialResult]
    chosen: Mapping[str, float]
    seeds: tuple[int, ...]
    rival_seeds: tuple[int, ...]

    def reported(self, method: str) -> list[TrialResult]:
        """The reported trials of a method, by seed."""
        seeds = self.seeds if method in CENTRAL else self.rival_seeds
        return [self.found[trial] for trial in reported(self.story, method, self.chosen[method], self.size, seeds)]

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
    """Do what is missing of a story.

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
    needed = {"plain", *(methods or STORY_METHODS), *(STORY_METHODS[method].like for method in methods or ())}
    asked = [method for method in STORY_METHODS.values() if method.name in needed and name in method.stories]
    folder = work / name / size
    make_folder(folder)
    teller = Encoder(data_dir, folder, size) if name == "encoder" else Gpt(data_dir, folder, size, device)
    settings = teller.settings
    found = known_trials(folder, settings)
    trials = [trial for method in asked for trial in tuning(name, method, size)]
    found |= do_all(trials, teller.do, folder, settings=settings, on_message=on_message)
    chosen = {method.name: choose_setting(name, method, size, found) for method in asked}
    rivals = seeds if rival_seeds is None else rival_seeds
    wanted = [
        trial
        for method in asked
        for trial in reported(name, method.name, chosen[method.name], size, seeds if method.name in CENTRAL else rivals)
    ]
    found |= do_all(wanted, teller.do, folder, settings=settings, on_message=on_message)
    return StoryResult(name, size, found, chosen, tuple(seeds), tuple(rivals))


def tuning(story: str, method: StoryMethod, size: str) -> list[StoryTrial]:
    """The trials by which a setting is chosen; of plain and the untuned ones too, for the curve."""
    return [
        StoryTrial(story, method.name, setting, TUNING_SEED, size, tuning=True)
        for setting in method.settings_for(story)
    ]


def reported(story: str, method: str, setting: float, size: str, seeds: Sequence[int]) -> list[StoryTrial]:
    """The trials that are reported."""
    return [StoryTrial(story, method, setting, seed, size) for seed in seeds]


def choose_setting(story: str, method: StoryMethod, size: str, found: Mapping[StoryTrial, TrialResult]) -> float:
    """The setting that keeps the most among those that learn enough, on validation data.

    Enough is `NEEDED`; where none does, the one that learns the most.
    """
    if method.like:
        return choose_setting(story, STORY_METHODS[method.like], size, found)
    settings = method.settings_for(story)
    if len(settings) == 1:
        return settings[0]
    plain = found[tuning(story, STORY_METHODS["plain"], size)[0]]
    trials = tuning(story, method, size)
    enough = [trial for trial in trials if _learns_enough(story, found[trial], plain)]
    if enough:
        return max(enough, key=lambda trial: old_and_new(story, found[trial], "validation")[0]).setting
    return max(trials, key=lambda trial: old_and_new(story, found[trial], "validation")[1]).setting


def old_and_new(story: str, found: TrialResult, part: str) -> tuple[float, float]:
    """Old and new skill after the first task, the larger the better: Spearman and accuracy, or minus log perplexity.

    Args:
        story: which.
        found: of a trial.
        part: "validation" or "test".
    """
    if story == "encoder":
        step = found["after"][0]
        return step["similarity"][part]["value"], step["accuracy"][0][part]["value"]
    after = found["after"]
    return -math.log(after["english"][part]["value"]), -math.log(after["python"][part]["value"])


def _learns_enough(story: str, found: TrialResult, plain: TrialResult) -> bool:
    new, most = (old_and_new(story, one, "validation")[1] for one in (found, plain))
    return new >= NEEDED["encoder"] * most if story == "encoder" else new >= most - math.log(NEEDED["gpt"])


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and interval over seeds."""
    return Estimate.of(list(values))


def kept_share(story: str, found: TrialResult, plain: TrialResult, part: str = "test") -> float:
    """What of plain's loss of the old skill is left: 0 nothing is lost, 1 as much as plain loses.

    Of similarity the fall of Spearman's correlation, of English the rise of the perplexity.
    """
    lost, lost_by_plain = (_lost(story, one, part) for one in (found, plain))
    return lost / lost_by_plain if lost_by_plain else math.nan


def _lost(story: str, found: TrialResult, part: str) -> float:
    if story == "encoder":
        return found["before"][part]["value"] - found["after"][0]["similarity"][part]["value"]
    return found["after"]["english"][part]["value"] - found["before"]["english"][part]["value"]
