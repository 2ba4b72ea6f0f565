"""Whole experiments: configured, run, resumed, compared and drawn."""

from holdfast.experiments.config import RunConfig, configure
from holdfast.experiments.results import RunResult, find_results

__all__ = ["RunConfig", "RunResult", "configure", "find_results"]
