"""What an optimizer's step does: when it happens, its metric, and what it added to each weight."""

from holdfast.steps.hooks import StepHooks, bare_optimizer
from holdfast.steps.increments import can_recompute, increments
from holdfast.steps.metric import UserMetric, step_metric, update_rule

__all__ = ["StepHooks", "UserMetric", "bare_optimizer", "can_recompute", "increments", "step_metric", "update_rule"]
