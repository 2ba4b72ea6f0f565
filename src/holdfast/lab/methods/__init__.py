"""Ways to learn task after task: each registers itself, from the ceiling to the floor."""

from holdfast.lab.methods import past_data, dgr, er, der, agem, lwf, lfl, mechanisms, imm, sfa, hat  # noqa: F401, I001
from holdfast.lab.methods import progressive, packnet, pathnet, analytic, frozen  # noqa: F401
from holdfast.lab.methods.build import build_learner
from holdfast.lab.methods.estimator import ClosedTask, Estimator
from holdfast.lab.methods.pairs import register_importance, register_mechanism
from holdfast.lab.methods.learner import Learner, Moment, Setting
from holdfast.lab.methods.registry import IMPORTANCES, MECHANISMS, METHODS, method_named, register_method
from holdfast.lab.methods.dgr import GENERATORS, register_generator

__all__ = [
    "GENERATORS",
    "IMPORTANCES",
    "MECHANISMS",
    "METHODS",
    "ClosedTask",
    "Estimator",
    "Learner",
    "Moment",
    "Setting",
    "build_learner",
    "method_named",
    "register_generator",
    "register_importance",
    "register_mechanism",
    "register_method",
]
