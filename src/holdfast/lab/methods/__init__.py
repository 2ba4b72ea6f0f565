"""From a method's name to what it is made of."""

from holdfast.lab.methods.build import build_learner
from holdfast.lab.methods.learner import Learner, Moment, Setting
from holdfast.lab.methods.options import MethodOptions
from holdfast.lab.methods.registry import METHODS, Method, method_named

__all__ = ["METHODS", "Learner", "Method", "MethodOptions", "Moment", "Setting", "build_learner", "method_named"]
