"""Published experiments: each a recipe, done in full or small, its figures beside ours."""

from holdfast.lab.reproduce.catalog import RECIPES, recipe_named
from holdfast.lab.reproduce.findings import Recipe
from holdfast.lab.reproduce.lines import FULL, QUICK, Size

__all__ = ["FULL", "QUICK", "RECIPES", "Recipe", "Size", "recipe_named"]
