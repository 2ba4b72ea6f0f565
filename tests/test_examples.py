"""The examples do what they say."""

import importlib.util
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_a_generator_of_ones_own_remembers():
    spec = importlib.util.spec_from_file_location("own_generator", EXAMPLES / "own_generator.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    found = example.main(iterations=120)
    assert found["with replay"] > 0.8
    assert found["without"] < 0.2
