"""Published experiments: each a recipe, done in full or small, its figures beside ours."""

from holdfast.experiments.reproduce.catalog import RECIPES, recipe_named
from holdfast.experiments.reproduce.findings import Recipe
from holdfast.experiments.reproduce.lines import FULL, QUICK, Size

__all__ = ["FULL", "QUICK", "RECIPES", "Recipe", "Size", "recipe_named"]
