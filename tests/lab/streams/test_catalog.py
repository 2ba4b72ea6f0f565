import pytest
import torch

from holdfast.errors import OptionError, UnknownNameError
from holdfast.lab.streams import catalog
from holdfast.lab.streams.catalog import STREAMS, build_stream
from holdfast.lab.streams.digits import digits


@pytest.fixture(autouse=True)
def _digits_for_mnist(monkeypatch):
    """The names over MNIST are built of the embedded digits here."""
    monkeypatch.setattr(catalog, "mnist", lambda data_dir: digits())


@pytest.mark.parametrize(
    ("name", "num_tasks", "scenario"),
    [
        ("permuted-digits", 5, "domain"),
        ("rotated-digits", 5, "domain"),
        ("split-digits", 5, "task"),
        ("permuted-mnist", 10, "domain"),
        ("rotated-mnist", 10, "domain"),
        ("split-mnist", 5, "task"),
    ],
)
def test_every_name_and_its_defaults(name, num_tasks, scenario):
    stream = build_stream(name)
    assert (stream.name, len(stream), stream.scenario, stream.num_classes) == (name, num_tasks, scenario, 10)
    assert all(set(task.train.targets.tolist()) == set(task.classes) for task in stream)
    assert STREAMS[name].description


def test_the_catalog_is_covered():
    assert len(STREAMS) == 6


def test_options_are_handed_on(monkeypatch):
    asked = []
    monkeypatch.setattr(catalog, "mnist", lambda data_dir: asked.append(data_dir) or digits())
    assert len(build_stream("rotated-mnist", num_tasks=3, data_dir="somewhere")) == 3
    assert asked == ["somewhere"]
    assert build_stream("split-digits", scenario="domain").num_classes == 2
    assert build_stream("permuted-digits", scenario="class").num_classes == 50
    plain = build_stream("permuted-digits")[1].test.inputs
    assert not torch.equal(plain, build_stream("permuted-digits", seed=1)[1].test.inputs)
    assert not torch.equal(plain, build_stream("permuted-digits", fraction=0.5)[1].test.inputs)


def test_an_unknown_stream_is_offered_the_nearest():
    with pytest.raises(UnknownNameError, match="unknown stream 'permuted-mist'. Did you mean 'permuted-mnist'\\?"):
        build_stream("permuted-mist")


@pytest.mark.parametrize("name", ["split-digits", "rotated-mnist"])
def test_a_fraction_is_for_permuted_streams(name):
    message = f"{name}: fraction=0.5 has no meaning here: only permuted streams permute pixels."
    with pytest.raises(OptionError, match=message):
        build_stream(name, fraction=0.5)


def test_split_streams_end_with_the_classes():
    with pytest.raises(OptionError, match="split: num_tasks=6, expected 1 to 5."):
        build_stream("split-digits", num_tasks=6)
