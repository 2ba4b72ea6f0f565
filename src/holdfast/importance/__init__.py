"""How much each weight matters for a learned skill: estimators from model and data to `Importance`."""

from holdfast.importance.choosing import measure
from holdfast.importance.fisher import fisher
from holdfast.importance.kfac import kfac
from holdfast.importance.mas import mas
from holdfast.importance.path import SynapticIntelligence
from holdfast.importance.probing import probes_of
from holdfast.importance.signal import signal
from holdfast.importance.signal_recorder import SignalRecorder
from holdfast.importance.taylor import taylor
from holdfast.importance.uniform import uniform

__all__ = [
    "SignalRecorder",
    "SynapticIntelligence",
    "fisher",
    "kfac",
    "mas",
    "measure",
    "probes_of",
    "signal",
    "taylor",
    "uniform",
]
