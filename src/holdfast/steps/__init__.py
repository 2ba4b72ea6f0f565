"""What an optimizer's step does: when it happens, its metric, and what it added to each weight."""

from holdfast.steps.gradients import BackwardGradients
from holdfast.steps.hooks import StepHooks, bare_optimizer, is_skipped, optimizer_around
from holdfast.steps.increments import CopiedIncrement, Increment, can_recompute, step_increments
from holdfast.steps.metric import (
    Metric,
    RootMetric,
    UserMetric,
    has_moved,
    metric_values,
    rests,
    step_metrics,
    unknown_rate,
    update_rule,
)
from holdfast.steps.own_weights import Copies, weights_of_wrapper

__all__ = [
    "BackwardGradients",
    "CopiedIncrement",
    "Copies",
    "Increment",
    "Metric",
    "RootMetric",
    "StepHooks",
    "UserMetric",
    "bare_optimizer",
    "can_recompute",
    "has_moved",
    "is_skipped",
    "metric_values",
    "optimizer_around",
    "rests",
    "step_increments",
    "step_metrics",
    "unknown_rate",
    "update_rule",
    "weights_of_wrapper",
]
