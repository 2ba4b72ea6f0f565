import math

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW

from holdfast.lab.training import build_optimizer, learning_rate


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("sgd", SGD, {"momentum": 0.0, "nesterov": False}),
        ("momentum", SGD, {"momentum": 0.9, "nesterov": False}),
        ("nesterov", SGD, {"momentum": 0.9, "nesterov": True}),
        ("adam", Adam, {"betas": (0.9, 0.999), "eps": 1e-8}),
        ("adamw", AdamW, {"betas": (0.9, 0.999), "eps": 1e-8}),
    ],
)
def test_optimizers_by_name(name, kind, options):
    weight = nn.Parameter(torch.zeros(2))
    optimizer = build_optimizer(name, [weight], lr=0.3, weight_decay=0.02)
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert group["params"] == [weight]
    assert {key: group[key] for key in options} == options
    assert (group["lr"], group["weight_decay"]) == (0.3, 0.02)


def test_no_decay_unless_asked():
    assert build_optimizer("adamw", [nn.Parameter(torch.zeros(2))], lr=0.3).param_groups[0]["weight_decay"] == 0


def test_courses_of_the_learning_rate():
    assert [learning_rate("constant", 0.2, step=step, num_steps=3) for step in range(3)] == [0.2] * 3
    cosine = [learning_rate("cosine", 0.2, step=step, num_steps=4) for step in range(4)]
    half = 0.1 * math.cos(math.pi / 4)
    assert cosine == pytest.approx([0.2, 0.1 + half, 0.1, 0.1 - half])
