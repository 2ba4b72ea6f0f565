"""Settings that have no effect in the combination they were given in."""

from __future__ import annotations

from collections.abc import Iterable

from holdfast.experiments.config import RunConfig
from holdfast.methods import Method, method_named

_OF_MECHANISM = {
    "strength": ("ewc", "wva"),
    "budget": ("ewc",),
    "pull": ("ewc",),
    "pull_every": ("ewc",),
    "attenuation": ("wva",),
    "attenuate": ("wva",),
    "accumulate": ("ewc", "wva"),
    "weighting": ("ewc", "wva"),
    "replay": ("dgr",),
    "generator": ("dgr",),
    "generator_units": ("dgr",),
    "generator_latent": ("dgr",),
    "generator_lr": ("dgr",),
    "new_share": ("dgr",),
    "temperature": ("dgr",),
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
    "si_gradient": ("si",),
    "importance_data": ("fisher", "mas", "signal", "taylor", "kfac"),
    "importance_examples": ("fisher", "mas", "signal", "taylor", "kfac"),
}


def idle_settings(config: RunConfig, given: Iterable[str]) -> list[str]:
    """A line for each setting of `given` that changes nothing in this run, naming what it belongs to."""
    method = method_named(config.method)
    lines = [line for name in given if (line := _belongs_elsewhere(name, method))]
    if config.iterations is not None and "epochs" in given:
        lines.append(f"--epochs has no effect beside --iterations, which is {config.iterations}.")
    return lines


def _belongs_elsewhere(name: str, method: Method) -> str | None:
    flag = "--" + name.replace("_", "-")
    mechanisms = _OF_MECHANISM.get(name)
    if mechanisms is not None and method.mechanism not in mechanisms:
        return f"{flag} has no effect with method {method.name}; it belongs to {' and '.join(mechanisms)}."
    importances = _OF_IMPORTANCE.get(name)
    if importances is not None and method.importance not in importances:
        return f"{flag} has no effect with method {method.name}; it belongs to {', '.join(importances)} importances."
    return None
