"""What the batches, the outputs and the output columns of a model mean."""

from holdfast.likelihoods.draws import Draws
from holdfast.likelihoods.likelihood import (
    Bernoulli,
    Categorical,
    CountsTargets,
    Gaussian,
    Likelihood,
    Similarity,
    num_targets,
)
from holdfast.likelihoods.masks import Mask, Scenario, active_classes, predict

__all__ = [
    "Bernoulli",
    "Categorical",
    "CountsTargets",
    "Draws",
    "Gaussian",
    "Likelihood",
    "Mask",
    "Scenario",
    "Similarity",
    "active_classes",
    "num_targets",
    "predict",
]
