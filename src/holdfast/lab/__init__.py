"""Whole experiments: configured, run, resumed, compared and drawn."""

from holdfast.lab.config import RunConfig, configure
from holdfast.lab.frame import results, task_accuracies
from holdfast.lab.results import RunResult, find_results

__all__ = ["RunConfig", "RunResult", "configure", "find_results", "results", "task_accuracies"]
