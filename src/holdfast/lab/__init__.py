"""Whole experiments: configured, run, resumed, compared and drawn; and what you may add to them."""

from holdfast.files.typed import Within
from holdfast.lab.config import RunConfig, configure
from holdfast.lab.frame import results, task_accuracies
from holdfast.lab.methods import (
    ClosedTask,
    Estimator,
    Learner,
    Moment,
    Setting,
    register_generator,
    register_importance,
    register_mechanism,
    register_method,
)
from holdfast.lab.recording import record
from holdfast.lab.result import RunResult, find_results
from holdfast.lab.running import run
from holdfast.lab.streams import Examples, Stream, StreamPlan, Task, load_data, register_data, register_stream
from holdfast.lab.training import register_net, task_loss

__all__ = [
    "ClosedTask",
    "Estimator",
    "Examples",
    "Learner",
    "Moment",
    "RunConfig",
    "RunResult",
    "Setting",
    "Stream",
    "StreamPlan",
    "Task",
    "Within",
    "configure",
    "find_results",
    "load_data",
    "record",
    "register_data",
    "register_generator",
    "register_importance",
    "register_mechanism",
    "register_method",
    "register_net",
    "register_stream",
    "results",
    "run",
    "task_accuracies",
    "task_loss",
]
