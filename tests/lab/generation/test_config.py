from dataclasses import fields, replace

import pytest

from holdfast.errors import OptionError, UnknownNameError
from holdfast.lab.generation.config import (
    GENERATION_METHODS,
    GENERATION_STREAMS,
    GenerationConfig,
    configure_generation,
)


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
    config = configure_generation("digits-generation", "none")
    others = {
        "num_tasks": 3,
        "precision": "bfloat16",
        "compile": True,
        "stream": "mnist-generation",
        "method": "joint",
    }
    for entry in fields(GenerationConfig):
        value = getattr(config, entry.name)
        changed = replace(
            config, **{entry.name: others.get(entry.name, 2 * value + 1 if entry.name not in others else 0)}
        )
        assert changed.name != config.name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"iterations": 0}, "iterations is 0; expected a whole number from 1 to 1e"),
        ({"lr": "fast"}, "lr is 'fast'; expected a number from 0 to"),
        ({"num_tasks": 11}, "num_tasks is 11; expected a whole number from 1 to 10"),
        ({"precision": "half"}, "unknown precision 'half'"),
        ({"hidden": (3,)}, "unknown setting of generation 'hidden'"),
        ({"alignment": 1.0}, "alignment has no effect with method none; it belongs to mergan-jtr-ra, mergan-ra."),
        ({"strength": 1.0}, "strength has no effect with method none; it belongs to ewc-fisher."),
    ],
)
def test_what_has_no_meaning_is_refused(settings, message):
    with pytest.raises(OptionError, match=message):
        configure_generation("digits-generation", "none", **settings)


def test_unknown_names():
    with pytest.raises(UnknownNameError, match="unknown stream 'mnist'"):
        configure_generation("mnist", "none")
    with pytest.raises(UnknownNameError, match="unknown method of generation 'mergan'. Did you mean 'mergan-ra'"):
        configure_generation("mnist-generation", "mergan")
