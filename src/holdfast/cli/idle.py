"""What was given and is to no use: settings and methods without effect, and strengths that were chosen for others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields

from holdfast.lab.config import RunConfig
from holdfast.lab.groups import setting_text
from holdfast.lab.methods import method_named
from holdfast.lab.protocols import defaults_of
from holdfast.lab.streams import STREAMS

_OF_MECHANISM = {
    "strength": ("ewc", "wva"),
    "budget": ("ewc",),
    "pull": ("ewc",),
    "pull_every": ("ewc",),
    "attenuation": ("wva",),
    "attenuate": ("wva",),
    "accumulate": ("ewc", "wva"),
    "weighting": ("ewc", "wva"),
    "buffer": ("er", "der", "agem"),
    "buffer_size": ("er", "der", "agem"),
    "der_alpha": ("der",),
    "der_beta": ("der",),
    "imm": ("imm",),
    "l2_transfer": ("imm",),
    "hat_scale": ("hat",),
    "hat_sparsity": ("hat",),
    "sfa_share": ("sfa",),
    "sfa_period": ("sfa",),
    "replay": ("dgr",),
    "generator": ("dgr",),
    "generator_units": ("dgr",),
    "generator_latent": ("dgr",),
    "generator_lr": ("dgr",),
    "new_share": ("dgr",),
    "temperature": ("lwf", "dgr"),
    "hold": ("dgr",),
    "hold_generator": ("dgr",),
    "generator_strength": ("dgr",),
}
_OF_IMPORTANCE = {
    "fisher": ("fisher", "kfac"),
    "mas_output": ("mas",),
    "mas_batched": ("mas",),
    "signal_bias": ("signal",),
    "damping": ("si",),
    "si_variant": ("si",),
    "si_gradient": ("si",),
    "importance_data": ("fisher", "mas", "signal", "taylor", "kfac"),
    "importance_examples": ("fisher", "mas", "signal", "taylor", "kfac"),
}

_OF_UNIT = {
    "fisher": ("fisher",),
    "mas": ("mas_output", "mas_batched"),
    "signal": ("signal_bias",),
    "si": ("si_variant", "damping"),
}
"""By the importance: what decides on the unit of its values, or on their size by orders."""


def idle_settings(config: RunConfig, given: Iterable[str]) -> list[str]:
    """A line for each setting of `given` that changes nothing in this run, naming what it belongs to."""
    lines = [line for name in given if (line := _belongs_elsewhere(name, config))]
    if config.iterations is not None and "epochs" in given:
        lines.append(f"--epochs has no effect beside --iterations, which is {config.iterations}.")
    if config.si_variant != "zenke" and "si_gradient" in given:
        lines.append("--si-gradient has no effect beside --si-variant kutalev, which has its own.")
    return lines


def hopeless_note(config: RunConfig) -> list[str]:
    """A line that says why holding weights does not help, where classes of different tasks are to be told apart."""
    scenario = config.scenario or STREAMS[config.stream].scenario
    if scenario != "class" or not method_named(config.method).holds_weights:
        return []
    return [
        f"{config.method} hardly helps in the class scenario: a task has no examples of older classes, so that every "
        "step pushes their outputs down, whichever weights are held; expect about the accuracy of the newest task "
        "alone. Joint training, or replay, can tell the classes apart."
    ]


def unit_note(config: RunConfig, given: Iterable[str]) -> list[str]:
    """A line that says that the protocol's strength was chosen for an importance in another unit than that here."""
    method = method_named(config.method)
    usual = {**_defaults(RunConfig), **defaults_of(config.stream, config.method)}
    named = _OF_UNIT.get(str(method.importance), ())
    other = [name for name in named if name in given and getattr(config, name) != usual[name]]
    if method.importance == "fisher" and "batched" not in (config.fisher, usual["fisher"]):
        other = []
    if not other or "strength" in given or config.strength is None:
        return []
    told = " and ".join(setting_text(name, usual[name]) for name in other)
    calibrated = ", or a --budget such as 0.05, for which the importance is calibrated" * (method.mechanism == "ewc")
    return [
        f"strength {config.strength:g} is the protocol's for {told}; with {_flags(other)} importances are in another "
        "unit, so that it may freeze the network, or hold nothing. Give a --strength, found by factors of ten on "
        f"validation data (holdfast sweep){calibrated}."
    ]


def _flags(names: Iterable[str]) -> str:
    return " and ".join("--" + name.replace("_", "-") for name in names)


def _defaults(record: type) -> dict[str, object]:
    return {entry.name: entry.default for entry in fields(record)}


def _belongs_elsewhere(name: str, config: RunConfig) -> str | None:
    method = method_named(config.method)
    flag = "--" + name.replace("_", "-")
    mechanisms = _OF_MECHANISM.get(name)
    holding = method if config.hold is None else method_named(config.hold)
    if mechanisms is not None and not {method.mechanism, holding.mechanism} & set(mechanisms):
        return f"{flag} has no effect with method {method.name}; it belongs to {' and '.join(mechanisms)}."
    importances = _OF_IMPORTANCE.get(name)
    measured = "fisher" if method.mechanism == "imm" and config.imm == "mode" else holding.importance
    if importances is not None and measured not in importances:
        return f"{flag} has no effect with method {method.name}; it belongs to {', '.join(importances)} importances."
    return None
