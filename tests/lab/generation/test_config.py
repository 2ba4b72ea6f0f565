import copy
from dataclasses import fields

import pytest

from holdfast.errors import OptionError, UnknownNameError
from holdfast.lab.configured import OF_PICTURES
from holdfast.lab.generation.config import GenerationConfig, GenerationSettings, configure_generation
from holdfast.lab.generation.registry import GENERATION_METHODS, GENERATION_STREAMS


@pytest.mark.parametrize("stream", GENERATION_STREAMS)
@pytest.mark.parametrize("method", GENERATION_METHODS)
def test_every_stream_has_every_method(stream, method):
    config = configure_generation(stream, method, seed=3)
    assert config.name == f"{stream}-{method}-3-{config.hash}"


def test_the_protocol_of_mnist_is_the_published_one():
    config = configure_generation("mnist-generation", "mergan-ra")
    assert (config.iterations, config.batch_size, config.lr, config.latent) == (4000, 64, 1e-4, 128)
    assert (config.critic_steps, config.penalty, config.width) == (5, 10.0, 32)


def test_every_setting_counts():
    others = {
        "num_tasks": 3,
        "precision": "bfloat16",
        "compile": True,
        "stream": "mnist-generation",
        "method": "joint",
        "data": "mnist",
    }
    for method in ("none", "mergan-ra", "ewc-fisher"):
        config = configure_generation("digits-generation", method)
        for name, value in config.to_dict().items():
            changed = {**config.to_dict(), name: others[name] if name in others else 2 * value + 1}
            assert GenerationConfig.from_dict(changed).name != config.name


@pytest.mark.parametrize(
    ("method", "own"),
    [
        ("none", set()),
        ("mergan-jtr", set()),
        ("dgr", set()),
        ("mergan-ra", {"alignment"}),
        ("mergan-jtr-ra", {"alignment"}),
        ("ewc-fisher", {"strength", "importance_examples"}),
    ],
)
def test_a_run_has_the_settings_of_its_method_alone(method, own):
    config = configure_generation("mnist-generation", method)
    assert set(config.to_dict()) == {entry.name for entry in fields(GenerationSettings)} - OF_PICTURES | own
    assert config.alignment == (0.03 if "alignment" in own else None)
    assert GenerationConfig.from_dict({**config.to_dict(), "alignment": 0.03, "strength": 1e3}) == config
    assert copy.deepcopy(config) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"iterations": 0}, "iterations is 0; expected a whole number from 1 to 1e"),
        ({"lr": "fast"}, "lr is 'fast'; expected a number from 0 to"),
        ({"num_tasks": 0}, "num_tasks is 0; expected a whole number from 1 to 1000"),
        ({"precision": "half"}, "unknown precision 'half'"),
        ({"hidden": (3,)}, "unknown setting 'hidden'"),
        (
            {"alignment": 1.0},
            "alignment has no effect with stream digits-generation and none; it belongs to mergan-jtr-ra, mergan-ra.",
        ),
        ({"strength": 1.0}, "strength has no effect with stream digits-generation and none; it belongs to ewc-fisher."),
    ],
)
def test_what_has_no_meaning_is_refused(settings, message):
    with pytest.raises(OptionError, match=message):
        configure_generation("digits-generation", "none", **settings)


def test_more_classes_than_there_are():
    with pytest.raises(OptionError, match="num_tasks=11, expected 1 to 10"):
        configure_generation("digits-generation", "none", num_tasks=11).build_stream()


def test_unknown_names():
    with pytest.raises(UnknownNameError, match="unknown stream 'mnist'"):
        configure_generation("mnist", "none")
    with pytest.raises(UnknownNameError, match="unknown method of generation 'mergan'. Did you mean 'mergan-ra'"):
        configure_generation("mnist-generation", "mergan")
