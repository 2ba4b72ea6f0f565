"""`python -m recipes NAME`: a published experiment, done, with its figures beside ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from holdfast.cli.console import console_for, say, warnings_told
from holdfast.errors import OptionError
from recipes import FULL, QUICK, RECIPES, Recipe, recipe_named
from recipes.carry_out import Answered, answer, known_outcomes, measure_recipe, train
from recipes.cost import remaining_cost
from recipes.options import PublishedOptions
from recipes.page import TEXTS, cells, conclusion
from recipes.store import check_results


def published_command(options: PublishedOptions) -> None:
    """Reproduce what was asked for, or show what can be."""
    console = console_for(quiet=options.quiet)
    if options.list:
        console_for().print(_names_table())
        return
    if not options.names:
        raise OptionError(f"recipes: which experiment? Give one or more of: {', '.join(RECIPES)}; or all.")
    size = QUICK if options.quick else FULL
    if options.seeds:
        size = replace(size, seeds=options.seeds)
    names = list(RECIPES) if "all" in options.names else list(dict.fromkeys(options.names))
    recipes = [recipe_named(name, size) for name in names]
    output = Path(options.output)
    results = Path(options.results or (output / "quick" if options.quick else "docs/results"))
    if not options.dry_run:
        for recipe in recipes:
            check_results(results / recipe.name)
    found = known_outcomes(recipes, output=output, results=results)
    measured = {
        recipe.name: recipe.measured_seeds(measure_recipe(recipe, results=results, kept_only=True))
        for recipe in recipes
    }
    for recipe in recipes:
        say(console, (f"{recipe.name}: {recipe.title}", "bold"), f"  ({recipe.source})")
        say(console, f"  {remaining_cost([recipe], found, measured).text(options.jobs)}")
    if len(recipes) > 1:
        say(console, f"together: {remaining_cost(recipes, found, measured).text(options.jobs)}")
    if options.dry_run:
        for config in dict.fromkeys(config for recipe in recipes for config in recipe.to_do(found)):
            say(console, f"  {config.name}")
        return
    if not options.from_results:
        with warnings_told(console):
            found = train(
                recipes,
                found,
                output=output,
                jobs=options.jobs,
                device=options.device,
                data_dir=options.data_dir,
                on_event=_Told(console),
            )
    for recipe in recipes:
        kept = measure_recipe(
            recipe, results=results, data_dir=options.data_dir, on_event=_Told(console), kept_only=options.from_results
        )
        _show(answer(recipe, found, kept, results=results, command=_command(options, recipe)), console)


def _command(options: PublishedOptions, recipe: Recipe) -> str:
    """The command that gives this answer."""
    seeds = " --seeds " + " ".join(map(str, options.seeds)) if options.seeds else ""
    return f"python -m recipes {recipe.name}{' --quick' * options.quick}{seeds}"


def _show(answered: Answered, console: Console) -> None:
    findings = answered.findings
    console.print()
    if findings.recipe.lines:
        titles, *rows = cells(findings)
        table = Table(title=findings.recipe.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
        shown = [number for number, title in enumerate(titles) if title not in ("settings", "learning %")]
        for column in shown:
            table.add_column(titles[column], justify="left" if titles[column] in TEXTS else "right")
        for row in rows:
            table.add_row(*(row[column] for column in shown))
        console.print(table)
    say(console, conclusion(findings))
    told = console_for()
    say(told, f"written to {answered.page}")
    for picture in answered.pictures:
        say(told, f"  {picture}")


class _Told:
    """A line for each run that ends."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Show an event, as `run_all` tells it."""
        name = event.get("run", "")
        if event["event"] == "done":
            say(self._console, f"{name}: {event['average_accuracy']:.1%}, {event['seconds']:.0f} s")
        elif event["event"] == "measured":
            say(self._console, f"{name}: measured under seed {event['seed']}")
        elif event["event"] == "failed":
            say(self._console, f"{name}: {event['error']}")


def _names_table() -> Table:
    table = Table(title="published experiments", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for title in ("NAME", "", "source"):
        table.add_column(title)
    for name in RECIPES:
        recipe = recipe_named(name)
        table.add_row(name, recipe.title, recipe.source)
    return table
