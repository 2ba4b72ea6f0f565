"""From a method's name to the learner that carries it out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from holdfast.errors import OptionError
from holdfast.lab.methods.learner import Learner, Setting
from holdfast.lab.methods.registry import MethodEntry
from holdfast.lab.registry import chosen


def build_learner(method: MethodEntry, model: nn.Module, setting: Setting, settings: Mapping[str, Any]) -> Learner:
    """The learner of a method, on a model.

    Args:
        method: which.
        model: to be trained.
        setting: of the stream.
        settings: values of the method's options, and of those that they name; others are passed over.

    Raises:
        OptionError: options that the method cannot work under, or what it makes is no `Learner`.
    """
    choice = chosen(method, settings)
    learner = choice(model, replace(setting, parts=choice.parts))
    if not isinstance(learner, Learner):
        raise OptionError(
            f"method {method.name}: made a {type(learner).__name__}; expected a subclass of holdfast.lab.Learner."
        )
    return learner
