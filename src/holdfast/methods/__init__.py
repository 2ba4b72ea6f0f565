"""From a method's name to what it is made of."""

from holdfast.methods.registry import METHODS, Method, method_named

__all__ = ["METHODS", "Method", "method_named"]
