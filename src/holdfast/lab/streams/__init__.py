"""Sequences of tasks: permuted, rotated and split images, held in memory as tensors."""

from holdfast.lab.streams.catalog import (
    STREAMS,
    StreamEntry,
    StreamPlan,
    build_stream,
    given_data,
    register_stream,
)
from holdfast.lab.streams.digits import digits
from holdfast.lab.streams.examples import Examples
from holdfast.lab.streams.mnist import mnist
from holdfast.lab.streams.permuted import permuted, rotated
from holdfast.lab.streams.pictures import PictureSettings
from holdfast.lab.streams.sequence import sequence
from holdfast.lab.streams.sources import as_task, fingerprint, load_data, register_data
from holdfast.lab.streams.split import split
from holdfast.lab.streams.stream import Stream, Task

__all__ = [
    "STREAMS",
    "Examples",
    "PictureSettings",
    "Stream",
    "StreamEntry",
    "StreamPlan",
    "Task",
    "as_task",
    "build_stream",
    "digits",
    "fingerprint",
    "given_data",
    "load_data",
    "mnist",
    "permuted",
    "register_data",
    "register_stream",
    "rotated",
    "sequence",
    "split",
]
