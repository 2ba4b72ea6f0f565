"""A plug-in of holdfast: once installed, or named by --plugin, each of these modules adds what it registers."""

from holdfast_example import data, importance, mechanism, method, net, stream  # noqa: F401
