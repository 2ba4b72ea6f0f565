from __future__ import annotations

from pathlib import Path

import pytest
import torch
from recipes import recipe_named
from recipes.findings import RecipeFindings
from recipes.page import conclusion
from recipes.trained import SHARES, prune
from tests.recipes.made_up import TINY
from torch import nn


def test_pruning_takes_the_least_of_every_layer():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(1.0)
    importance = {"0.weight": torch.tensor([[4.0, 1.0], [3.0, 2.0]]), "1.weight": torch.tensor([[0.0, 1.0]])}
    prune(net, importance, 0.5)
    assert net[0].weight.tolist() == [[1.0, 0.0], [1.0, 0.0]]
    assert net[1].weight.tolist() == [[0.0, 1.0]]
    assert net[0].bias.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("name", ["correlation", "pruning"])
def test_it_is_measured_concluded_and_drawn(name: str, tmp_path: Path):
    recipe = recipe_named(name, TINY)
    assert recipe.measure is not None
    measured = {seed: {"seed": seed, **recipe.measure(seed, None)} for seed in recipe.measure_seeds}
    assert recipe.measure(0, None) == {key: value for key, value in measured[0].items() if key != "seed"}
    findings = RecipeFindings(recipe, {}, measured)
    assert findings.complete
    assert conclusion(findings).endswith(".")
    for picture in recipe.draw(findings, tmp_path):
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_ranks_are_symmetric_and_an_importance_agrees_with_itself():
    recipe = recipe_named("correlation", TINY)
    assert recipe.measure is not None
    for matrix in recipe.measure(0, None)["layers"].values():
        table = torch.tensor(matrix)
        assert torch.equal(table, table.T)
        assert torch.equal(table.diagonal(), torch.ones(len(table)))


def test_nothing_removed_changes_nothing_and_importance_beats_chance():
    recipe = recipe_named("pruning", TINY)
    assert recipe.measure is not None
    curve = recipe.measure(0, None)["accuracy"]
    assert len({values[0] for values in curve.values()}) == 1
    place = SHARES.index(0.6)
    assert curve["Taylor"][place] > curve["random"][place]
