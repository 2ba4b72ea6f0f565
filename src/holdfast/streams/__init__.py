"""Sequences of tasks: permuted, rotated and split images, held in memory as tensors."""
