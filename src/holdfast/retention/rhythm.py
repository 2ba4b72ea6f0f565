"""How often layers are pulled where `every="auto"`: as often as costs a twentieth of a training step, counted."""

from __future__ import annotations

import math
from collections.abc import Mapping

from holdfast.curvature.form import LayerForm
from holdfast.curvature.owners import LayerElsewhere
from holdfast.curvature.protocol import Shaped

SHARE = 0.05
"""Of a training step's operations, that pulls may add on average."""

ROWS = 2048
"""Rows of inputs, examples or tokens, of the step that is counted with."""

MOST = 16
"""Steps from one pull to the next at most: between pulls weights move freely, and rest elsewhere."""


def rhythm(layers: Mapping[str, Shaped]) -> int:
    """Steps from one pull of these layers to the next, 1 to `MOST`.

    A pull of a layer [m, n] takes 10 m n (m + n) operations under Adam, and a step of its own 6 m n for each row: two
    products backward and one forward. No clock is asked: the same layers are pulled at the same steps on any machine,
    and by a run that was resumed.

    Args:
        layers: what is held of them, here or by other processes; those held in another form than a matrix's count as
            cheap.
    """
    bare = [layer.layer if isinstance(layer, LayerElsewhere) else layer for layer in layers.values()]
    sizes = [layer.matrix_shape for layer in bare if isinstance(layer, LayerForm)]
    pull = sum(10 * m * n * (m + n) for m, n in sizes)
    step = sum(6 * ROWS * m * n for m, n in sizes)
    return min(max(1, math.ceil(pull / (SHARE * step))), MOST) if sizes else 1
