"""Workloads of no size."""

from functools import partial

from benchmarks.nets import GPT
from benchmarks.workloads import Workload, draw_images, draw_tokens

from holdfast.lab.training import mlp

MLP = Workload("tiny-mlp", "A tiny MLP", partial(mlp, 6, (5,), 10), partial(draw_images, (6,)), target=1.2)
SIZES = {"vocabulary": 11, "width": 8, "num_layers": 1, "num_heads": 2, "length": 5}
LANGUAGE = Workload("tiny-gpt", "A tiny GPT", partial(GPT, **SIZES), partial(draw_tokens, 11, 5), exact=False)
