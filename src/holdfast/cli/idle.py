"""What was given and is to no use: settings without effect, and strengths that were chosen for others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields

from holdfast.lab.config import RunConfig
from holdfast.lab.groups import setting_text
from holdfast.lab.methods import method_named
from holdfast.lab.protocols import defaults_of
from holdfast.lab.streams import STREAMS

_OF_TRAINING = (
    *("optimizer", "lr", "weight_decay", "schedule", "fresh_optimizer", "epochs", "iterations", "batch_size", "clip"),
    "mask",
)
"""Settings that only a method that trains has a use for."""


def idle_settings(config: RunConfig, given: Iterable[str]) -> list[str]:
    """A line for each setting of `given` that another one leaves without effect."""
    lines = []
    if config.iterations is not None and "epochs" in given:
        lines.append(f"--epochs has no effect beside --iterations, which is {config.iterations}.")
    if config.si_variant == "kutalev" and "si_gradient" in given:
        lines.append("--si-gradient has no effect beside --si-variant kutalev, which has its own.")
    if config.imm == "mean" and "fisher" in given:
        lines.append("--fisher has no effect beside --imm mean, which measures none.")
    if config.adapt is False:
        idle = [name for name in _OF_TRAINING if name in given]
        lines += [
            f"{_flags([name])} has no effect with {config.method}, which trains nothing; or give --adapt."
            for name in idle
        ]
    return lines


def hopeless_note(config: RunConfig) -> list[str]:
    """A line that says why holding weights does not help, where classes of different tasks are to be told apart."""
    scenario = config.scenario or STREAMS[config.stream].scenario
    if scenario != "class" or not method_named(config.method).holds_weights:
        return []
    return [
        f"{config.method} hardly helps in the class scenario: a task has no examples of older classes, so that every "
        "step pushes their outputs down, whichever weights are held; expect about the accuracy of the newest task "
        "alone. Joint training, replay, or a head that is solved (slda, ranpac) can tell the classes apart."
    ]


def unit_note(config: RunConfig, given: Iterable[str]) -> list[str]:
    """A line that says that the protocol's strength was chosen for an importance in another unit than that here."""
    method = method_named(config.method)
    usual = {**config.defaults(), **defaults_of(config.stream, config.method)}
    units = {own.name: own.metadata["unit"] for own in fields(method.options) if "unit" in own.metadata}
    other = [name for name in units if units[name](getattr(config, name)) != units[name](usual[name]) and name in given]
    if not method.holds_weights or not other or "strength" in given or config.strength is None:
        return []
    named = [name for name in units if name in given and getattr(config, name) != usual[name]]
    told = " and ".join(setting_text(name, usual[name]) for name in named)
    calibrated = ", or a --budget such as 0.05, for which the importance is calibrated" * ("budget" in config.options)
    return [
        f"strength {config.strength:g} is the protocol's for {told}; with {_flags(named)} importances are in another "
        "unit, so that it may freeze the network, or hold nothing. Give a --strength, found by factors of ten on "
        f"validation data (holdfast sweep){calibrated}."
    ]


def _flags(names: Iterable[str]) -> str:
    return " and ".join("--" + name.replace("_", "-") for name in names)
