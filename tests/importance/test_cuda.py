"""On a GPU the importances are those of the CPU, and its random state is left alone too."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.importance.test_fisher import ESTIMATORS, batches, classifier, close, examples

from holdfast.importance import SignalRecorder

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_gpu_finds_what_the_cpu_finds(name: str):
    model, (x, y) = classifier(), examples()
    on_gpu = copy.deepcopy(model).cuda()
    state = torch.cuda.get_rng_state()
    found = ESTIMATORS[name](on_gpu, batches(x, y, 7))  # batches are moved to the model
    assert torch.equal(torch.cuda.get_rng_state(), state)
    assert all(value.is_cuda for value in found.values())
    if name != "fisher sampled":  # other generators, other draws
        close(found.to("cpu"), ESTIMATORS[name](model, batches(x, y, 7)), rtol=1e-3)
    else:
        again = ESTIMATORS[name](on_gpu, batches(x, y, 7))
        assert all(torch.equal(found[key], again[key]) for key in found)


def test_recorder():
    model, (x, _) = classifier().cuda(), examples()
    with SignalRecorder(model, others="zero") as recorder:
        model(x.cuda())
    assert recorder.importance()["0.weight"].is_cuda
