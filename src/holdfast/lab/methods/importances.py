"""The importances that methods hold weights by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from holdfast.curvature.factored import AnyImportance
from holdfast.files.typed import Within
from holdfast.importance import fisher, kfac, mas, signal, taylor
from holdfast.importance.path import SynapticIntelligence
from holdfast.lab.methods.columns import importance_of_columns
from holdfast.lab.methods.estimator import ClosedTask, Estimator
from holdfast.lab.methods.pairs import register_importance
from holdfast.lab.methods.registry import COLOURS
from holdfast.records import Importance
from holdfast.tensors import prefixed, under


@dataclass(frozen=True, kw_only=True)
class FisherOptions:
    """Of the Fisher information.

    Attributes:
        fisher: kind of Fisher: "exact", "sampled", "empirical" or "batched".
    """

    fisher: Literal["exact", "sampled", "empirical", "batched"] = field(
        default="exact", metadata={"unit": lambda kind: kind == "batched"}
    )


@register_importance(
    "fisher", label="Fisher", source="Fisher information", options=FisherOptions, style={"color": COLOURS["fisher"]}
)
def measured_fisher(model: nn.Module, task: ClosedTask, options: FisherOptions) -> Importance:
    """The diagonal Fisher information; "batched" in batches of 128, as in van de Ven's comparison (2502.11756)."""
    data = task.examples.batches(128) if options.fisher == "batched" else task.examples
    return fisher(model, data, kind=options.fisher, loss=task.loss, seed=task.seed)


@dataclass(frozen=True, kw_only=True)
class MasOptions:
    """Of memory aware synapses.

    Attributes:
        mas_output: MAS of the "logits" or the "softmax".
        mas_batched: MAS from the gradient over the whole set at once.
    """

    mas_output: Literal["logits", "softmax"] = field(default="logits", metadata={"unit": str})
    mas_batched: bool = field(default=False, metadata={"unit": bool})


@register_importance(
    "mas", label="MAS", source="memory aware synapses", options=MasOptions, style={"color": COLOURS["mas"]}
)
def measured_mas(model: nn.Module, task: ClosedTask, options: MasOptions) -> AnyImportance:
    """Memory aware synapses."""
    output, batched = options.mas_output, options.mas_batched
    return mas(model, task.examples, output=output, classes=task.classes, batched=batched)


@dataclass(frozen=True, kw_only=True)
class PathOptions:
    """Of synaptic intelligence.

    Attributes:
        damping: of SI.
        si_variant: SI as its authors have it ("zenke"), or with sums that go on over tasks and the gradient on the same
            batch after the step ("kutalev").
        si_gradient: SI of "zenke" takes the gradient "before" or "after" each step.
    """

    damping: Annotated[float, Within(1e-12, float("inf"))] = field(default=0.1, metadata={"unit": float})
    si_variant: Literal["zenke", "kutalev"] = field(default="zenke", metadata={"unit": str})
    si_gradient: Literal["before", "after"] = "before"


@register_importance(
    "si",
    label="SI",
    source="the path integral of synaptic intelligence",
    options=PathOptions,
    on_examples=False,
    style={"color": COLOURS["si"]},
)
class PathEstimator(Estimator):
    """Synaptic intelligence: the path integral of the loss over training.

    Attributes:
        path: that is being summed up.
    """

    def __init__(self, model: nn.Module, options: PathOptions) -> None:
        super().__init__(model)
        self.path = SynapticIntelligence(
            model,
            damping=options.damping,
            variant=options.si_variant,
            gradient=None if options.si_gradient == "before" else options.si_gradient,  # which "kutalev" refuses
        )

    def attach(self, optimizer: Optimizer) -> None:
        """Sum up this optimizer's steps from now on."""
        self.path.detach().attach(optimizer)

    def after_step(self, loss: Callable[[], Tensor]) -> None:
        """Take the gradient where the variant takes it after the step."""
        if self.path.variant == "kutalev":
            self.path.after_step(loss)

    def importance(self, task: ClosedTask) -> AnyImportance:
        """Of the path so far."""
        return self.path.importance(num_examples=len(task.examples))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Of the path."""
        state = self.path.state_dict()
        return prefixed("path", state["tensors"]), {"path": state["num_steps"]}

    def load_state(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.path.load_state_dict({"num_steps": notes["path"], "tensors": under("path", tensors)})


@dataclass(frozen=True, kw_only=True)
class SignalOptions:
    """Of the total absolute signal.

    Attributes:
        signal_bias: importance of biases: mean absolute "output" of the layer, or "activation".
    """

    signal_bias: Literal["output", "activation"] = field(default="output", metadata={"unit": str})


@register_importance(
    "signal",
    label="signal",
    source="the total absolute signal through a connection",
    options=SignalOptions,
    style={"color": COLOURS["signal"]},
)
def measured_signal(model: nn.Module, task: ClosedTask, options: SignalOptions) -> AnyImportance:
    """The total absolute signal through each connection."""
    return importance_of_columns(signal(model, task.examples, bias=options.signal_bias), task.classes)


@register_importance(
    "taylor", label="Taylor", source="the first-order Taylor importance", style={"color": COLOURS["taylor"]}
)
def measured_taylor(model: nn.Module, task: ClosedTask) -> AnyImportance:
    """The first-order Taylor importance."""
    return taylor(model, task.examples, loss=task.loss)


@dataclass(frozen=True, kw_only=True)
class KfacOptions:
    """Of Kronecker factors.

    Attributes:
        fisher: kind of Fisher: "exact", "sampled" or "empirical".
    """

    fisher: Literal["exact", "sampled", "empirical"] = "exact"


@register_importance(
    "kfac",
    label="K-FAC",
    source="Kronecker-factored Fisher information",
    options=KfacOptions,
    factored=True,
    style={"color": COLOURS["kfac"]},
)
def measured_kfac(model: nn.Module, task: ClosedTask, options: KfacOptions) -> AnyImportance:
    """The Kronecker-factored Fisher information."""
    return kfac(model, task.examples, kind=options.fisher, loss=task.loss, seed=task.seed)
