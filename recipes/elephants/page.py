"""A story's table and picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from holdfast.files import check_files, opened, write_text
from holdfast.lab.canvas import FONT, GRID, INK, axes_at, make_folder, new_figure, write_picture
from recipes.elephants.methods import CENTRAL, HOLDING, STORY_METHODS
from recipes.elephants.story import (
    NEEDED,
    DataPart,
    StoryResult,
    estimate,
    learned_share,
    lost,
    lost_share,
)
from recipes.elephants.trial import StoryTrial, TrialResult
from recipes.pictures import COLOURS, MARKERS, bare, head

PAGE = "report.md"

TITLES = {
    "encoder": "A sentence encoder learns intents",
    "gpt": "A GPT of English learns Python",
}


OLD = {"encoder": "STS-B", "gpt": "English"}
NEW = {"encoder": "BANKING77", "gpt": "Python"}


def rows(answer: StoryResult) -> list[list[str]]:
    """The table: a heading, and a line a method."""
    story, digits = answer.story, 4 if answer.story == "encoder" else 1
    old, new, lost_in = OLD[story], NEW[story], "Spearman" if story == "encoder" else "nats"
    table = [["method", "setting", f"{old} before", f"{old} after", f"lost, {lost_in}", "of plain's loss, %"]]
    table[0] += [new, "of plain's, %", "seconds"]
    for method in answer.chosen:
        found, pairs = answer.reported(method), answer.beside_plain(method)
        figures = [
            estimate([one["before"]["old"]["test"]["value"] for one in found]).text(digits=digits),
            estimate([one["after"]["old"]["test"]["value"] for one in found]).text(digits=digits),
            estimate([lost(story, one, "test") for one in found]).text(digits=3),
            estimate([lost_share(story, one, plain) for one, plain in pairs]).text(scale=100),
            estimate([one["after"]["new"]["test"]["value"] for one in found]).text(digits=digits),
            estimate([learned_share(story, one, plain) for one, plain in pairs]).text(scale=100),
        ]
        table.append([STORY_METHODS[method].label, _setting(answer.chosen[method]), *figures, _seconds(found)])
    return table


def check_page(story: str, folder: Path) -> None:
    """Raise `OutputError` where somebody else's files have the names of a story's page and picture."""
    page, picture = folder / PAGE, folder / f"{story}.png"

    def is_ours(path: Path) -> bool:
        """Known by the page; the picture by the page beside it."""
        if path == picture and not page.is_file():
            return False
        with opened(page) as file:
            return file.readline().decode(errors="replace").rstrip("\n") == f"# {TITLES[story]}"

    check_files([page, picture], is_ours=is_ours)


def write_page(answer: StoryResult, folder: Path, *, command: str) -> tuple[Path, Path]:
    """Write `report.md` and the picture; returns their paths.

    Raises:
        OutputError: files that holdfast did not write have these names, or they cannot be written.
    """
    check_page(answer.story, folder)
    make_folder(folder)
    picture = folder / f"{answer.story}.png"
    heading, *lines = rows(answer)
    table = ["| " + " | ".join(heading) + " |", "|" + " --- |" * len(heading)]
    table += ["| " + " | ".join(line) + " |" for line in lines]
    versions = next(iter(answer.found.values()))["versions"]
    text = "\n".join(
        [
            f"# {TITLES[answer.story]}",
            "",
            f"`{command}`, size {answer.size}, {_seeds_of(answer)}. Settings were chosen on "
            "validation data under another seed; figures are of test data, mean and 95% interval over seeds.",
            "",
            *table,
            "",
            *conclusions(answer),
            "",
            f"![Old skill against new]({picture.name})",
            "",
            "Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".",
            "",
        ]
    )
    write_text(folder / PAGE, text)  # first, for the picture is known by it
    return folder / PAGE, draw(answer, picture)


def _seeds_of(answer: StoryResult) -> str:
    central, rivals = (", ".join(map(str, seeds)) for seeds in (answer.seeds, answer.rival_seeds))
    return f"seeds {central}" + ("" if central == rivals else f"; of all but {', '.join(CENTRAL)} {rivals}")


def conclusions(answer: StoryResult) -> list[str]:
    """What the figures say of the targets, by arithmetic."""
    story, told = answer.story, []
    asked, least = ("at most a tenth of plain's loss at 98% of its accuracy", 0.1)
    if story == "gpt":
        asked, least = "at most 15% of plain's rise at 1% of new perplexity more", 0.15
    for method in [method for method in answer.chosen if method in CENTRAL and method != "plain"]:
        pairs = answer.beside_plain(method)
        left = estimate([lost_share(story, one, plain) for one, plain in pairs])
        new = estimate([learned_share(story, one, plain) for one, plain in pairs])
        enough = new.mean >= NEEDED[story] if story == "encoder" else new.mean <= NEEDED[story]
        stands = "it does" if left.mean <= least and enough else "it does not"
        what = "accuracy" if story == "encoder" else "perplexity"
        told.append(
            f"- {STORY_METHODS[method].label[:1].upper()}{STORY_METHODS[method].label[1:]}: "
            f"{left.text(scale=100)}% of what plain training loses, at {new.text(scale=100)}% of its {what} "
            f"(asked for: {asked}; {stands})."
        )
    return told


def draw(answer: StoryResult, path: Path) -> Path:
    """What the old skill lost against the new one: reported methods with intervals, and each setting that was tried."""
    width, height = 5.6, 4.4
    legend = 0.6 + 0.085 * max(len(STORY_METHODS[method].label) for method in answer.chosen)
    figure = new_figure(0.85 + width + legend, height + 1.25)
    axes = axes_at(figure, 0.85, 0.6, width, height)
    story = answer.story
    for number, method in enumerate(answer.chosen):
        colour = COLOURS[number % len(COLOURS)]
        marker = MARKERS[(number + number // len(COLOURS)) % len(MARKERS)]  # no two have both in common
        tried = sorted(
            (trial.value or 0.0, trial.lr, lost(story, found, "validation"), _shown_new(found, "validation"))
            for trial, found in answer.found.items()
            if trial.tuning and trial.method == method
        )
        line = ":" if method not in HOLDING else "-"
        axes.plot([t[3] for t in tried], [t[2] for t in tried], line, color=colour, linewidth=1.0, alpha=0.6)
        found = answer.reported(method)
        old = estimate([lost(story, one, "test") for one in found])
        new = estimate([_shown_new(one, "test") for one in found])
        axes.errorbar(
            new.mean,
            old.mean,
            xerr=new.half_width,
            yerr=old.half_width,
            color=colour,
            marker=marker,
            markersize=8,
            markerfacecolor=colour if method in HOLDING else "white",
            linewidth=0,
            elinewidth=1.0,
            label=STORY_METHODS[method].label,
        )
    if story == "gpt":
        _by_factors(axes)
    axes.grid(color=GRID, linewidth=0.8, which="both")
    bare(axes, ("left", "bottom"))
    across, up = (
        ("accuracy on BANKING77", "lost of Spearman's correlation on STS-B")
        if story == "encoder"
        else ("perplexity of Python", "rise of the loss on English, nats a token")
    )
    axes.invert_yaxis()
    axes.set_xlabel(across, fontsize=FONT, color=INK)
    axes.set_ylabel(up, fontsize=FONT, color=INK)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=FONT, labelcolor=INK)
    head(
        figure,
        0.85,
        height + 0.6,
        TITLES[story],
        "up and right is better; markers: test data; lines: every setting that was tried, validation data, one seed",
    )
    return write_picture(figure, path)


def _shown_new(found: TrialResult, part: DataPart) -> float:
    return found["after"]["new"][part]["value"]


def _by_factors(axes: Any) -> None:
    """The perplexity logarithmic and falling, with round numbers between the powers of ten."""
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_xscale("log")
    axes.invert_xaxis()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 2.5, 3, 4, 5, 7), numticks=99))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())


def _setting(trial: StoryTrial) -> str:
    method = STORY_METHODS[trial.method]
    rate = f"rate x {trial.lr:g}"
    return rate if trial.value is None else f"{method.what} {trial.value:g}, {rate}"


def _seconds(found: list) -> str:
    return f"{sum(one['seconds'] for one in found) / len(found):.0f}"
