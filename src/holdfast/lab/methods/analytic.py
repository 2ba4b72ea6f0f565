"""New classes without old data: heads that are solved from sums, on features that stay as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from holdfast.analytic import AnalyticHead, features_of
from holdfast.analytic.features import given_to, head_of
from holdfast.files.typed import Within
from holdfast.lab.methods.learner import Learner, Setting
from holdfast.lab.methods.registry import COLOURS, register_method
from holdfast.lab.streams import Examples
from holdfast.tensors import wide_dtype


@dataclass(frozen=True, kw_only=True)
class BackboneOptions:
    """Of the network that gives the features.

    Attributes:
        adapt: whether it is trained on the first task, as it would be without a method, and stays so from then on; else
            it stays as it is from the start.
    """

    adapt: bool = False


@dataclass(frozen=True, kw_only=True)
class DiscriminantOptions(BackboneOptions):
    """Of streaming linear discriminant analysis.

    Attributes:
        shrinkage: epsilon, the part of the covariance that is replaced by a multiple of the identity.
    """

    shrinkage: Annotated[float, Within(0, 1)] = 1e-4


@dataclass(frozen=True, kw_only=True)
class RandomFeatureOptions(BackboneOptions):
    """Of ridge regression on random features.

    Attributes:
        projection: how many random features; 0: the network's own.
        ridge: lambda, the penalty on squared weights; None: by generalised cross-validation.
    """

    projection: Annotated[int, Within(0, 10**6)] = 1000
    ridge: Annotated[float, Within(1e-12, 1e12)] | None = None


class Answering(nn.Module):
    """A network whose own head answers until an analytic one has classes, which then answers in its place.

    Args:
        net: from inputs [B, ...] to logits, a column a class.
        head: on what the network's head is given.
        num_columns: of the logits.
    """

    def __init__(self, net: nn.Module, head: AnalyticHead, *, num_columns: int) -> None:
        super().__init__()
        self.net, self.analytic, self.num_columns = net, head, num_columns
        self._own_head = [head_of(net)]  # in a list: a module of the network, and no second one of this

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs [B, ...] -> scores [B, num_columns], -inf for classes that were never seen."""
        if not self.analytic.classes:
            return self.net(inputs)
        features = given_to(self._own_head[0], self.net, inputs)
        shape, dtype = (len(features), self.num_columns), wide_dtype(features)
        found = torch.full(shape, -torch.inf, dtype=dtype, device=features.device)
        found[:, list(self.analytic.classes)] = self.analytic.scores(features)
        return found


class AnalyticLearner(Learner):
    """A head of sums on the network's features, what its own last layer is given, and no training after that.

    Every task's examples are gone through once, and are not needed again. The features are those of the network as it
    is: of one without weights of its own (`--net`), random ones. With `adapt` the network is trained on the first task,
    its own head with it, and the analytic head stands on what came of that; nothing holds it while it is trained, as
    there is nothing before.

    In the scenarios "task" and "domain" it is the same head: asked among the classes of a task alone, or learning the
    same classes from task to task.

    Raises:
        StateError, BatchError: the network gives its last layer something else than [B, d].

    Cost: a forward pass over the task, and what `AnalyticHead` says.
    """

    answering: Answering

    def __init__(self, model: nn.Module, setting: Setting, options: BackboneOptions, head: AnalyticHead) -> None:
        num_columns = 1 + max(column for classes in setting.task_classes for column in classes)
        self.answering = Answering(model, head.to(_with_float64(model)), num_columns=num_columns)
        super().__init__(self.answering, setting)
        self._adapt = options.adapt

    @property
    def head(self) -> AnalyticHead:
        """That of today."""
        return self.answering.analytic

    def trains(self, task: int) -> bool:
        """The first task, where the network is adapted to it."""
        return self._adapt and task == 0

    def after_training(self, task: int, examples: Examples) -> None:
        """Add up the task's features."""
        for features, labels in features_of(self.answering.net, examples):
            self.head.fit(features, labels)

    def report(self) -> str:
        """What the head stands on, and what was chosen for it."""
        solution, width = self.head.solution, self.head.options.projection or self.head.width
        chosen = [f"ridge {solution.ridge:.3g}"] if solution.ridge is not None else []
        chosen += [f"shrinkage {solution.shrinkage:g}"] if solution.shrinkage is not None else []
        counted = f"{len(self.head.classes)} classes of {sum(self.head.counts.values())} examples in {width} features"
        return ", ".join([f"{self.head.options.kind}: {counted}", *chosen])

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The sums."""
        return self.head.state()

    def load_state(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        device = self.head.device
        self.answering.analytic = AnalyticHead.from_state(tensors, notes, where="the head's sums", device=device)


@register_method(
    "class-means",
    label="class means",
    summary="keeps the mean of each class's features, and trains no weight",
    options=BackboneOptions,
    style={"color": COLOURS["sums"], "linestyle": (0, (1, 1.4)), "marker": "o"},
    classes_only=True,
)
class ClassMeans(AnalyticLearner):
    """The class whose mean is nearest; see `holdfast.analytic.means`."""

    def __init__(self, model: nn.Module, setting: Setting, options: BackboneOptions) -> None:
        super().__init__(model, setting, options, AnalyticHead("means"))


@register_method(
    "slda",
    label="SLDA",
    summary="keeps class means and a covariance of features, and trains no weight",
    options=DiscriminantOptions,
    style={"color": COLOURS["sums"], "linestyle": (0, (4, 1.5)), "marker": "s"},
    classes_only=True,
)
class StreamingDiscriminant(AnalyticLearner):
    """Streaming linear discriminant analysis; see `holdfast.analytic.slda` for source and departures."""

    def __init__(self, model: nn.Module, setting: Setting, options: DiscriminantOptions) -> None:
        super().__init__(model, setting, options, AnalyticHead("slda", shrinkage=options.shrinkage))


@register_method(
    "ranpac",
    label="RanPAC",
    summary="keeps second moments of random features, and solves a ridge regression",
    options=RandomFeatureOptions,
    style={"color": COLOURS["sums"], "linestyle": "-", "marker": "D"},
    classes_only=True,
)
class RandomFeatures(AnalyticLearner):
    """Ridge regression on random features of the network's; see `holdfast.analytic.ridge` and `projection`.

    Without a projection it is ACIL's regression on the features themselves. Departure from RanPAC: the first task
    trains the whole network or nothing of it, and no adapters.
    """

    def __init__(self, model: nn.Module, setting: Setting, options: RandomFeatureOptions) -> None:
        ridge = "gcv" if options.ridge is None else options.ridge
        head = AnalyticHead("ridge", projection=options.projection or None, seed=setting.seed, ridge=ridge)
        super().__init__(model, setting, options, head)


def _with_float64(model: nn.Module) -> torch.device:
    """The model's device, or the CPU where that has no float64."""
    device = next(model.parameters()).device
    return torch.device("cpu") if device.type == "mps" else device
