"""Holding what was learned: importances change the optimizer's step."""

from holdfast.retention.ewc import EWC
from holdfast.retention.keeper import Keeper
from holdfast.retention.mechanism import Mechanism
from holdfast.retention.report import Report
from holdfast.retention.step import Step
from holdfast.retention.wva import WVA

__all__ = ["EWC", "WVA", "Keeper", "Mechanism", "Report", "Step"]
