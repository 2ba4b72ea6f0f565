"""A story's table and picture."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from holdfast.experiments.canvas import FONT, GRID, INK, axes_at, make_folder, new_figure, write_picture
from holdfast.experiments.language.elephants.methods import HOLDING, STORY_METHODS
from holdfast.experiments.language.elephants.story import StoryResult, estimate, kept_share, old_and_new
from holdfast.experiments.reproduce.pictures import COLOURS, MARKERS, bare, head
from holdfast.files import check_files, opened, write_text

PAGE = "report.md"

TITLES = {
    "encoder": "A sentence encoder learns intents",
    "gpt": "A GPT of English learns Python",
}


def rows(answer: StoryResult) -> list[list[str]]:
    """The table: a heading, and a line a method."""
    return _encoder_rows(answer) if answer.story == "encoder" else _gpt_rows(answer)


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
    return f"seeds {central}" + (
        "" if central == rivals else f"; of the methods beside EWC, WVA and plain fine-tuning {rivals}"
    )


def conclusions(answer: StoryResult) -> list[str]:
    """What the figures say of the targets, and of the budget, by arithmetic."""
    told = []
    for method in answer.chosen:
        if method not in HOLDING:
            continue
        pairs = answer.beside_plain(method)
        lost = estimate([kept_share(answer.story, one, plain) for one, plain in pairs])
        new = estimate([_new_share(answer.story, one, plain) for one, plain in pairs])
        steps = [one if answer.story == "gpt" else one["after"][0] for one, _ in pairs]
        predicted = estimate([step["predicted_rise"] or 0.0 for step in steps])
        measured = estimate([step["measured_rise"] for step in steps])
        what = "accuracy gained" if answer.story == "encoder" else "new perplexity"
        told.append(
            f"- {STORY_METHODS[method].label}: {lost.text(scale=100)}% of plain's loss of the old skill, {what} "
            f"{new.text(scale=100)}% of plain's. Old loss: predicted rise {predicted.text(digits=4)}, measured "
            f"{measured.text(digits=4)} nats a target."
        )
    return told


def draw(answer: StoryResult, path: Path) -> Path:
    """Old skill against new, a line a method through its settings, validation data of the tuning seed."""
    width, height = 5.2, 3.8
    figure = new_figure(0.85 + width + 2.4, height + 1.25)
    axes = axes_at(figure, 0.85, 0.6, width, height)
    tuned = {trial.method for trial in answer.found if trial.tuning}
    holding = [method for method in STORY_METHODS if method in tuned and method in HOLDING]
    rivals = [method for method in STORY_METHODS if method in tuned and method not in HOLDING]
    for number, method in [*enumerate(holding), *enumerate(rivals)]:
        places = sorted(
            (trial.setting, old_and_new(answer.story, found, "validation"))
            for trial, found in answer.found.items()
            if trial.tuning and trial.method == method
        )
        old = [_shown(answer.story, value) for _, (value, _) in places]
        new = [_shown(answer.story, value) for _, (_, value) in places]
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(
            new,
            old,
            color=colour,
            marker=MARKERS[number % len(MARKERS)],
            markerfacecolor=colour if method in HOLDING else "white",
            linestyle="-" if method in HOLDING else ":",
            linewidth=2.0 if method in HOLDING else 1.2,
            markersize=6,
            label=STORY_METHODS[method].label,
        )
    if answer.story == "gpt":
        _by_factors(axes)
    axes.grid(color=GRID, linewidth=0.8, which="both")
    bare(axes, ("left", "bottom"))
    across, up = (
        ("accuracy on BANKING77", "Spearman on STS-B")
        if answer.story == "encoder"
        else (
            "perplexity of Python",
            "perplexity of English",
        )
    )
    axes.set_xlabel(across, fontsize=FONT, color=INK)
    axes.set_ylabel(up, fontsize=FONT, color=INK)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=FONT, labelcolor=INK)
    head(
        figure,
        0.85,
        height + 0.6,
        TITLES[answer.story],
        "validation data, one seed; up and right is better; filled: what holds weights",
    )
    return write_picture(figure, path)


def _by_factors(axes: Any) -> None:
    """Both axes logarithmic and downwards, with round numbers between the powers of ten."""
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.invert_xaxis()
    axes.invert_yaxis()
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7), numticks=99))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())


def _encoder_rows(answer: StoryResult) -> list[list[str]]:
    heading = ["method", "setting", "STS-B before", "after BANKING77", "after CLINC150"]
    heading += ["BANKING77", "BANKING77 after CLINC150", "CLINC150", "seconds"]
    table = [heading]
    for method in answer.chosen:
        found = answer.reported(method)
        after = [one["after"] for one in found]
        columns = [
            [one["before"]["test"]["value"] for one in found],
            [one[0]["similarity"]["test"]["value"] for one in after],
            [one[1]["similarity"]["test"]["value"] for one in after],
            [one[0]["accuracy"][0]["test"]["value"] for one in after],
            [one[1]["accuracy"][0]["test"]["value"] for one in after],
            [one[1]["accuracy"][1]["test"]["value"] for one in after],
        ]
        cells = [estimate(values).text(digits=4) for values in columns]
        table.append([STORY_METHODS[method].label, _setting(method, answer.chosen[method]), *cells, _seconds(found)])
    return table


def _gpt_rows(answer: StoryResult) -> list[list[str]]:
    table = [["method", "setting", "English before", "English after", "Python before", "Python after", "seconds"]]
    for method in answer.chosen:
        found = answer.reported(method)
        columns = [
            [one[when][language]["test"]["value"] for one in found]
            for language in ("english", "python")
            for when in ("before", "after")
        ]
        cells = [estimate(values).text(digits=2) for values in columns]
        table.append([STORY_METHODS[method].label, _setting(method, answer.chosen[method]), *cells, _seconds(found)])
    return table


def _new_share(story: str, found: dict, plain: dict) -> float:
    new, most = (old_and_new(story, one, "test")[1] for one in (found, plain))
    return new / most if story == "encoder" else math.exp(most - new)


def _setting(method: str, setting: float) -> str:
    what = STORY_METHODS[method].what
    return f"{what} {setting:g}" if what else ""


def _seconds(found: list) -> str:
    return f"{sum(one['seconds'] for one in found) / len(found):.0f}"


def _shown(story: str, value: float) -> float:
    return value if story == "encoder" else math.exp(-value)
