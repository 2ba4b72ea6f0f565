"""What every test starts from: one thread, a fixed seed, a clean environment, the same drawn examples."""

from __future__ import annotations

import gc
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch; programs started by a test inherit it

from collections.abc import Iterator

import hypothesis
import pytest
import torch
from tests.browser import chromium
from tests.lab_registries import kept

torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ.setdefault(
        "TRITON_INTERPRET", "1"
    )  # before triton, which torch._dynamo imports: CUDA kernels on the CPU


def _seed(number: int) -> None:
    """As `torch.manual_seed`, which without a device writes down the whole stack, three times, to be seeded later."""
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(number)


class _TorchGenerator:
    """torch's global generator as hypothesis wants to see one: it seeds it before each example."""

    seed = staticmethod(_seed)
    getstate = staticmethod(torch.get_rng_state)
    setstate = staticmethod(torch.set_rng_state)


_torch_generator = _TorchGenerator()  # hypothesis keeps only a weak reference
hypothesis.register_random(_torch_generator)
hypothesis.settings.register_profile("holdfast", derandomize=True, deadline=None, max_examples=25)
hypothesis.settings.load_profile("holdfast")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(3600))
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))
    if chromium() is None:
        for item in items:
            if item.get_closest_marker("browser"):
                item.add_marker(pytest.mark.skip(reason="no Chromium; on Debian: apt-get install chromium"))


def pytest_collection_finish() -> None:
    """The modules of all tests, some millions of objects, stay until the end: no collection of garbage visits them."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    _seed(0)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of ours but HOLDFAST_DATA, which says where real data are and changes no result."""
    for name in list(os.environ):
        if name.startswith("HOLDFAST_") and name != "HOLDFAST_DATA":
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def lab_registries() -> Iterator[None]:
    with kept():
        yield
