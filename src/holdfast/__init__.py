"""holdfast keeps the skills of a PyTorch model while it learns new ones.

    import holdfast as hf

    keeper = hf.EWC(model).attach(optimizer)                        # a budget by default: nothing to tune
    train(model, optimizer, task)                                   # any loop: nothing in it changes
    keeper.close()                                                  # take back what is over the budget
    keeper.retain(hf.measure(model, data, probes=held_out))         # hold what was learned; train on

Estimators: `measure`, which chooses, `fisher`, `kfac`, `mas`, `signal`, `taylor`, `SynapticIntelligence`, `uniform`;
`calibrated` finds what their forecast is worth in nats where training goes. `AnalyticHead` learns new classes from sums
of features alone.
Streams of tasks, networks, methods and whole experiments are in `holdfast.lab`, ready language models in
`holdfast.language`.
"""

from holdfast.analytic import AnalyticHead, features_of
from holdfast.calibration import calibrated
from holdfast.curvature import Curvature, Decayed, FactoredImportance, KroneckerFactors
from holdfast.errors import HoldfastError
from holdfast.importance import (
    SignalRecorder,
    SynapticIntelligence,
    fisher,
    kfac,
    mas,
    measure,
    probes_of,
    signal,
    taylor,
    uniform,
)
from holdfast.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood, Similarity
from holdfast.probes import Probes
from holdfast.records import Importance, ImportanceInfo
from holdfast.replay import Rehearsal
from holdfast.retention import EWC, WVA, Keeper, Mechanism, Report, Step
from holdfast.version import __version__

__all__ = [
    "EWC",
    "WVA",
    "AnalyticHead",
    "Bernoulli",
    "Categorical",
    "Curvature",
    "Decayed",
    "FactoredImportance",
    "Gaussian",
    "HoldfastError",
    "Importance",
    "ImportanceInfo",
    "Keeper",
    "KroneckerFactors",
    "Likelihood",
    "Mechanism",
    "Probes",
    "Rehearsal",
    "Report",
    "SignalRecorder",
    "Similarity",
    "Step",
    "SynapticIntelligence",
    "__version__",
    "calibrated",
    "features_of",
    "fisher",
    "kfac",
    "mas",
    "measure",
    "probes_of",
    "signal",
    "taylor",
    "uniform",
]
