"""Settings compared on validation data: methods, strengths, optimizers and learning rates, over seeds."""

from holdfast.experiments.sweep.carry_out import sweep
from holdfast.experiments.sweep.findings import Finding, SweepFindings
from holdfast.experiments.sweep.space import Choice, Space

__all__ = ["Choice", "Finding", "Space", "SweepFindings", "sweep"]
