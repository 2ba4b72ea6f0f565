"""The answer to a published question, as a page of Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from holdfast.lab.config import RunConfig
from holdfast.lab.groups import differing, setting_text
from recipes.findings import Answer, Recipe, RecipeFindings, final
from recipes.verdict import LEGEND, PROGRAM_NOTE

SMALL_NOTE = "This is the small version, on other data: it neither confirms nor refutes what is in print."
TEXTS = ("method", "settings", "verdict")
"""Titles of the columns that hold no numbers."""
NOT_YET = "Not all runs are done: no conclusion yet."


def page(
    findings: RecipeFindings, pictures: Sequence[Path], *, command: str, date: str, versions: Mapping[str, str]
) -> str:
    """The page: question, claim, table, conclusion, pictures, and how all was made."""
    recipe = findings.recipe
    parts = [
        f"# {recipe.title}",
        _asked(recipe),
        recipe.table(findings) if recipe.table else table(findings) if recipe.lines else "",
        f"**Conclusion.** {conclusion(findings)}",
        *(f"![{recipe.title}]({picture.name})" for picture in pictures),
        *_legends(recipe),
        recipe.notes,
        _made(findings, command=command, date=date, versions=versions),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _legends(recipe: Recipe) -> list[str]:
    kinds = {line.reference.kind for line in recipe.lines if line.reference is not None}
    return [text for kind, text in {"printed": LEGEND, "program": PROGRAM_NOTE}.items() if kind in kinds]


def _asked(recipe: Recipe) -> str:
    claimed = f" Their answer: {recipe.claim}" if recipe.claim else ""
    return f"{recipe.question}\n\nSource: {recipe.source}.{claimed}"


def conclusion(findings: RecipeFindings) -> str:
    """The recipe's paragraph, once everything is done."""
    if not findings.complete:
        return NOT_YET
    told = findings.recipe.conclude(findings)
    return told if findings.recipe.size.name == "full" else f"{told} {SMALL_NOTE}"


def table(findings: RecipeFindings) -> str:
    """A Markdown table, a row an answer."""
    return markdown(cells(findings))


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table of texts, the first row its titles."""
    titles, *rows = lines
    sides = [":--" if title in TEXTS else "--:" for title in titles]
    return "\n".join(
        ["| " + " | ".join(titles) + " |", "|" + "|".join(sides) + "|"]
        + ["| " + " | ".join(row) + " |" for row in rows]
    )


def cells(findings: RecipeFindings) -> list[list[str]]:
    """The table's texts, the first row its titles: a column for each kind of reference, and verdicts where one is."""
    references = {answer.line.reference.column: "" for answer in findings.answers if answer.line.reference is not None}
    ends = [_end(answer) for answer in findings.answers]
    titles = ["method", "settings", "accuracy %", *references]
    titles += ["validation %", "learning %", "seeds"] + ["verdict"] * any(ends)
    told = settings_of(findings.answers)
    rows = []
    for answer, settings, end in zip(findings.answers, told, ends, strict=True):
        reference = answer.line.reference
        theirs = references if reference is None else {**references, reference.column: reference.text}
        mark = " (end of the grid)" if answer.at_edge else ""
        figures = ["", "", ""]
        if answer.results:
            values = (final, lambda result: result.validation_accuracy[-1], lambda result: result.learning_accuracy)
            figures = [answer.of(value).text(scale=100) for value in values]
        rows.append(
            [
                answer.line.label,
                settings + mark,
                figures[0],
                *theirs.values(),
                figures[1],
                figures[2],
                f"{len(answer.outcomes)}" + ("" if answer.complete else f" of {len(answer.line.seeds)}"),
            ]
            + [end] * any(ends)
        )
    return [titles, *rows]


def _end(answer: Answer) -> str:
    """How it came out."""
    if answer.num_diverged:
        return f"{answer.num_diverged} of {len(answer.outcomes)} diverged"
    return answer.verdict or ""


def settings_of(answers: Sequence[Answer]) -> list[str]:
    """What was chosen: strength and learning rate, and of the settings that differ those that are not usual."""
    known = [answer.config.to_dict() for answer in answers if answer.config is not None]
    names = [name for name in differing(known) if name not in ("stream", "method", "seed", "scenario")]
    texts = []
    for answer in answers:
        told = []
        usual = {} if answer.config is None else answer.config.defaults()
        own = {} if answer.config is None else answer.config.to_dict()
        for name in names:
            value = own.get(name)
            if value is not None and (name == "lr" or value != usual.get(name)):
                told.append(setting_text(name, value))
        texts.append(", ".join(told))
    return texts


def _made(findings: RecipeFindings, *, command: str, date: str, versions: Mapping[str, str]) -> str:
    done = findings.outcomes
    hours = sum(outcome.result.seconds for outcome in done if outcome.result is not None) / 3600
    told = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    runs = f"{len(done)} runs, {hours:.1f} hours of one core. " if done else ""
    tuned = [line for line in findings.recipe.lines if len(line.candidates) > 1]
    chosen = ""
    if tuned:
        names = {name for line in tuned for name in _tuned(line.candidates)}
        what = "strengths" if names == {"strength"} else "settings"
        chosen = (
            f"Chosen on validation data: the {what} of {'; '.join(line.label for line in tuned)}. Candidates: "
            f"{'; '.join(_candidates(line.candidates) for line in tuned)}. "
        )
        same = [line.label for line in tuned if set(line.trial_seeds) & set(line.seeds)]
        if same:
            chosen += f"Chosen under the reported seeds themselves: {'; '.join(same)}. "
    return f"{chosen}{runs}Made by `{command}` on {date}, with {told}. Every run: [results.json](results.json)."


def _tuned(configs: Sequence[RunConfig]) -> list[str]:
    return differing([config.to_dict() for config in configs])


def _candidates(configs: Sequence[RunConfig]) -> str:
    if _tuned(configs) == ["strength"]:
        return ", ".join(f"{config.strength:g}" for config in configs)
    return " and ".join(
        f"{name} {', '.join(f'{getattr(config, name):g}' for config in configs)}" for name in _tuned(configs)
    )
