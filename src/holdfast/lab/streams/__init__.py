"""Sequences of tasks: permuted, rotated and split images, held in memory as tensors."""

from holdfast.lab.streams.catalog import STREAMS, StreamSpec, build_stream
from holdfast.lab.streams.digits import digits
from holdfast.lab.streams.examples import Examples
from holdfast.lab.streams.mnist import mnist
from holdfast.lab.streams.permuted import permuted, rotated
from holdfast.lab.streams.split import split
from holdfast.lab.streams.stream import Stream, Task

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
