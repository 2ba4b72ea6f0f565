"""Probes: inputs of an old task with the answers that the network gave then, on which a rise is measured."""

from holdfast.probes.probes import Probes

__all__ = ["Probes"]
