"""A data set: two moons, for `holdfast run permuted --data moons`."""

import torch

from holdfast import lab


@lab.register_data("moons", summary="two half circles of points")
def moons(data_dir):
    """(inputs [600, 2], classes [600]); what is to validate and to test on is held out of them."""
    angle, upper = 3.14 * torch.rand(600, generator=torch.Generator().manual_seed(0)), torch.arange(600) % 2
    sign = 2.0 * upper - 1
    return torch.stack([angle.cos() + 0.5 * sign, sign * angle.sin() - 0.25 * sign], 1), upper
