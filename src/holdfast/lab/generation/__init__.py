"""Class after class learned by a generator of images, and how well it still draws each of them."""

from holdfast.lab.generation.config import GENERATION_METHODS, GENERATION_STREAMS, GenerationConfig
from holdfast.lab.generation.config import configure_generation as configure_generation
from holdfast.lab.generation.run import run_generation

__all__ = ["GENERATION_METHODS", "GENERATION_STREAMS", "GenerationConfig", "configure_generation", "run_generation"]
