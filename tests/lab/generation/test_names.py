"""The folders of generation runs keep their names from version to version, for a killed run is found again by its."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.lab.generation import GENERATION_METHODS, GENERATION_STREAMS, GenerationConfig, configure_generation
from holdfast.lab.result import RunResult

RUNS = Path(__file__).parents[3] / "docs" / "results" / "generation" / "runs"

MORE = {
    "seed": 3,
    "num_tasks": 4,
    "iterations": 77,
    "batch_size": 32,
    "lr": 2e-4,
    "latent": 9,
    "width": 24,
    "critic_steps": 2,
    "penalty": 5,
    "images": 40,
    "precision": "bfloat16",
    "compile": True,
}
OWN = {
    "ewc-fisher": {"strength": 50, "importance_examples": 20},
    "mergan-ra": {"alignment": 0.5},
    "mergan-jtr-ra": {"alignment": 0.5},
}

HASHES = {
    ("digits-generation", "joint"): ("69766317", "325d27ae"),
    ("digits-generation", "mergan-jtr-ra"): ("8d8dfddc", "2764e1ed"),
    ("digits-generation", "mergan-jtr"): ("22bc12af", "98c0ccf2"),
    ("digits-generation", "mergan-ra"): ("7d8da08c", "498f11d5"),
    ("digits-generation", "dgr"): ("a71f4d54", "80114c7d"),
    ("digits-generation", "ewc-fisher"): ("15623129", "4ec0f3d9"),
    ("digits-generation", "none"): ("8c7d34b3", "644a7c36"),
    ("mnist-generation", "joint"): ("00ff077d", "cd4d3e10"),
    ("mnist-generation", "mergan-jtr-ra"): ("77e4af83", "e7e2bb8e"),
    ("mnist-generation", "mergan-jtr"): ("761a1d27", "fc45d761"),
    ("mnist-generation", "mergan-ra"): ("e24d061c", "65280d6e"),
    ("mnist-generation", "dgr"): ("ceb6aa3e", "aaaa6100"),
    ("mnist-generation", "ewc-fisher"): ("c7f0cd71", "a95d901f"),
    ("mnist-generation", "none"): ("d2d990e6", "22e75bda"),
}
"""Of the protocol's settings, and of others."""

COMMITTED = {
    "digits-dgr-0": "a71f4d54",
    "digits-ewc-fisher-0": "36538564",
    "digits-joint-0": "69766317",
    "digits-mergan-jtr-0": "22bc12af",
    "digits-mergan-jtr-ra-0": "8d8dfddc",
    "digits-mergan-ra-0": "7d8da08c",
    "digits-none-0": "8c7d34b3",
    "mnist-mergan-jtr-0": "7282f3a9",
    "mnist-mergan-jtr-1": "76adf444",
    "mnist-mergan-jtr-2": "1ece8b23",
    "mnist-mergan-ra-0": "1a7b5c24",
    "mnist-mergan-ra-1": "3353f213",
    "mnist-mergan-ra-2": "9c8174b2",
    "mnist-none-0": "5308bd8c",
}


@pytest.mark.parametrize("stream", [name for name, stream in GENERATION_STREAMS.items() if stream.data])
@pytest.mark.parametrize("method", GENERATION_METHODS)
def test_a_run_is_found_in_the_folder_that_earlier_versions_gave_it(stream, method):
    usual, other = HASHES[stream, method]
    assert configure_generation(stream, method).name == f"{stream}-{method}-0-{usual}"
    assert configure_generation(stream, method, **MORE, **OWN.get(method, {})).name == f"{stream}-{method}-3-{other}"


def test_committed_results_are_read():
    assert sorted(path.stem for path in RUNS.glob("*.json")) == sorted(COMMITTED)
    for name, digits in COMMITTED.items():
        told = RunResult.load(RUNS / f"{name}.json").config
        config = GenerationConfig.from_dict(told)
        assert config.name == f"{told['stream']}-{told['method']}-{told['seed']}-{digits}"
