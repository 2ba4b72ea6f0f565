"""Class after class learned by a generator of images, and how well it still draws each of them."""

from holdfast.lab.generation.config import GenerationConfig, configure_generation
from holdfast.lab.generation.methods import Drawing
from holdfast.lab.generation.registry import (
    GENERATION_METHODS,
    GENERATION_STREAMS,
    DrawingPlan,
    register_generation_method,
    register_generation_stream,
)
from holdfast.lab.generation.run import run_generation

__all__ = [
    "GENERATION_METHODS",
    "GENERATION_STREAMS",
    "Drawing",
    "DrawingPlan",
    "GenerationConfig",
    "configure_generation",
    "register_generation_method",
    "register_generation_stream",
    "run_generation",
]
