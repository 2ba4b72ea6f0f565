"""From a method's name to what it is made of."""

from holdfast.methods.build import build_learner
from holdfast.methods.learner import Learner, Moment, Setting
from holdfast.methods.options import MethodOptions
from holdfast.methods.registry import METHODS, Method, method_named

__all__ = ["METHODS", "Learner", "Method", "MethodOptions", "Moment", "Setting", "build_learner", "method_named"]
