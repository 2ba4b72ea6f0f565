"""Every published experiment by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from holdfast.errors import UnknownNameError
from holdfast.lab.reproduce.attenuation import attenuation, increments
from holdfast.lab.reproduce.curve import curve
from holdfast.lab.reproduce.findings import Recipe
from holdfast.lab.reproduce.full_size import full_size
from holdfast.lab.reproduce.lines import FULL, Size
from holdfast.lab.reproduce.nets import nets
from holdfast.lab.reproduce.promise import promise, promise_texts
from holdfast.lab.reproduce.replay import controls, dgr
from holdfast.lab.reproduce.rewind import rewind, rewind_encoder
from holdfast.lab.reproduce.scenarios import scenarios
from holdfast.lab.reproduce.strength import importances, strength
from holdfast.lab.reproduce.trained import correlation, pruning
from holdfast.lab.reproduce.untuned import untuned
from holdfast.lab.reproduce.which_fisher import which_fisher

RECIPES: dict[str, Callable[[Size], Recipe]] = {
    "curve": curve,
    "increments": increments,
    "attenuation": attenuation,
    "strength": strength,
    "importances": importances,
    "correlation": correlation,
    "pruning": pruning,
    "nets": nets,
    "which-fisher": which_fisher,
    "scenarios": scenarios,
    "full-size": full_size,
    "dgr": dgr,
    "dgr-controls": controls,
    "promise": promise,
    "promise-texts": promise_texts,
    "untuned": untuned,
    "rewind": rewind,
    "rewind-encoder": rewind_encoder,
}
"""Name -> the function that returns the recipe in a size."""


def recipe_named(name: str, size: Size = FULL) -> Recipe:
    """The recipe of that name, in that size.

    Raises:
        UnknownNameError: there is none; the message offers the nearest.
    """
    if name not in RECIPES:
        raise UnknownNameError("experiment", name, RECIPES)
    recipe = RECIPES[name](size)
    return recipe if size.name == "full" else replace(recipe, title=f"{recipe.title} (small, on digits)")
