"""Sequences of tasks: permuted, rotated and split images, held in memory as tensors."""

from holdfast.streams.catalog import STREAMS, StreamSpec, build_stream
from holdfast.streams.digits import digits
from holdfast.streams.examples import Examples
from holdfast.streams.mnist import mnist
from holdfast.streams.permuted import permuted, rotated
from holdfast.streams.split import split
from holdfast.streams.stream import Stream, Task

__all__ = [
    "STREAMS",
    "Examples",
    "Stream",
    "StreamSpec",
    "Task",
    "build_stream",
    "digits",
    "mnist",
    "permuted",
    "rotated",
    "split",
]
