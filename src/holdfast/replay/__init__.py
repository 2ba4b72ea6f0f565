"""What is kept of past tasks to be learned again."""

from holdfast.replay.buffer import Buffer, Keep

__all__ = ["Buffer", "Keep"]
