"""Every published experiment by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from holdfast.errors import UnknownNameError
from recipes.attenuation import attenuation, increments
from recipes.cifar_ready import cifar_ready
from recipes.curve import curve
from recipes.findings import Recipe
from recipes.full_size import full_size
from recipes.isolation import isolation
from recipes.lines import FULL, Size
from recipes.nets import nets
from recipes.promise import promise, promise_texts
from recipes.replay import controls, dgr
from recipes.rewind import rewind, rewind_encoder
from recipes.scenarios import scenarios
from recipes.strength import importances, strength
from recipes.trained import correlation, pruning
from recipes.untuned import untuned
from recipes.which_fisher import which_fisher

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
    "isolation": isolation,
    "cifar-ready": cifar_ready,
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
    """The recipe of that name, in that size; small, it has no figures of others, which are of other data.

    Raises:
        UnknownNameError: there is none; the message offers the nearest.
    """
    if name not in RECIPES:
        raise UnknownNameError("experiment", name, RECIPES)
    recipe = RECIPES[name](size)
    if size.name == "full":
        return recipe
    lines = tuple(replace(line, reference=None) for line in recipe.lines)
    return replace(recipe, title=f"{recipe.title} (small, on digits)", lines=lines)
