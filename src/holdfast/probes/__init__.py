"""Probes: inputs of an old task with the answers that the network gave then, on which a rise is measured."""

from holdfast.probes.probes import Probes
from holdfast.probes.similarity import Similarity

__all__ = ["Probes", "Similarity"]
