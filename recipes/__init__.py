"""Published experiments: each a recipe, done in full or small, its figures beside ours."""

from recipes.catalog import RECIPES, recipe_named
from recipes.findings import Recipe
from recipes.lines import FULL, QUICK, Size

__all__ = ["FULL", "QUICK", "RECIPES", "Recipe", "Size", "recipe_named"]
