"""The examples do what they say."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_generator_of_ones_own_remembers():
    found = example("own_generator").main(iterations=120)
    assert found["with replay"] > 0.8
    assert found["without"] < 0.2


@pytest.mark.parametrize("name", ["transformers_trainer", "lightning_trainer"])
@pytest.mark.filterwarnings("ignore:.*(does not have many workers|LeafSpec|attribute `.*` is an)")
def test_a_trainer_keeps_what_the_model_could_do(name):
    pytest.importorskip(name.partition("_")[0])
    found = example(name).main(steps=80)
    assert found["new skill after, plain"] < 0.5 < found["new skill before"]
    assert found["new skill after, held"] < 0.5 * found["new skill before"]
    lost = {how: found[f"old skill after, {how}"] - found["old skill before"] for how in ("plain", "held")}
    assert lost["held"] < 0.3 * lost["plain"]
