"""A network: one layer."""

from math import prod

from torch import nn

from holdfast import lab


@lab.register_net("linear", label="linear", summary="one layer, no hidden units")
def linear(input_shape, outputs):
    """Logits straight from the inputs."""
    return nn.Sequential(nn.Flatten(), nn.Linear(prod(input_shape), outputs))
