"""Settings compared on validation data: methods, strengths, optimizers and learning rates, over seeds."""

from holdfast.lab.sweep.carry_out import sweep
from holdfast.lab.sweep.findings import Finding, SweepFindings
from holdfast.lab.sweep.space import Space, SweepChoice

__all__ = ["Finding", "Space", "SweepChoice", "SweepFindings", "sweep"]
