"""From a method's name to what it is made of."""

from holdfast.methods.learner import Learner, LearnerOptions
from holdfast.methods.registry import METHODS, Method, method_named

__all__ = ["METHODS", "Learner", "LearnerOptions", "Method", "method_named"]
