"""From a method's name to the learner that carries it out."""

from __future__ import annotations

from typing import assert_never

from torch import nn

from holdfast.lab.methods.agem import AveragedGem
from holdfast.lab.methods.der import DarkExperienceReplay
from holdfast.lab.methods.dgr import DGR
from holdfast.lab.methods.er import ExperienceReplay
from holdfast.lab.methods.frozen import Frozen
from holdfast.lab.methods.hat import HardAttention
from holdfast.lab.methods.holding import KeeperLearner
from holdfast.lab.methods.imm import MomentMatching
from holdfast.lab.methods.learner import Learner, Setting
from holdfast.lab.methods.lwf import LearningWithoutForgetting
from holdfast.lab.methods.options import MethodOptions
from holdfast.lab.methods.past_data import Cumulative, Joint
from holdfast.lab.methods.registry import Method
from holdfast.lab.methods.sfa import SequentialAveraging


def build_learner(method: Method, model: nn.Module, *, options: MethodOptions, setting: Setting) -> Learner:
    """The learner of a method, on a model.

    Raises:
        OptionError: options that the method cannot work under.
    """
    match method.mechanism:
        case "none":
            return Learner(model)
        case "frozen":
            return Frozen(model)
        case "cumulative":
            return Cumulative(model)
        case "joint":
            return Joint(model)
        case "er":
            return ExperienceReplay(model, options)
        case "der":
            return DarkExperienceReplay(model, options)
        case "agem":
            return AveragedGem(model, options)
        case "lwf":
            return LearningWithoutForgetting(model, options, setting)
        case "imm":
            return MomentMatching(model, options)
        case "sfa":
            return SequentialAveraging(model, options, setting)
        case "hat":
            return HardAttention(model, options, setting)
        case "dgr":
            return DGR(method, model, options, setting, distilled=method.name == "dgr-distilled")
        case "ewc" | "wva":
            return KeeperLearner(method, model, options)
        case _:
            assert_never(method.mechanism)
