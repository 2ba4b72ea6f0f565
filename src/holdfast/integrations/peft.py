"""Old skills held while LoRA adapters learn: the importance of the base weights on the product s B A.

The mathematics is in `holdfast.curvature.adapters`, and where an importance belongs in `peft_layers`. What learns
beside the adapters (`modules_to_save`, biases, norms) and has an importance is held as `EWC` holds it: all that was
measured and is trained is held, or refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self, Unpack

import torch
from torch import Tensor, nn

from holdfast.curvature import Measured
from holdfast.curvature.adapters import check_low_rank
from holdfast.errors import OptionError
from holdfast.integrations.peft_layers import base_weights, lora_adapters, on_adapters
from holdfast.probes import Probes
from holdfast.retention import EWC
from holdfast.retention.elastic import Elastic
from holdfast.retention.keeper import Keeper
from holdfast.retention.mechanism import Mechanism
from holdfast.retention.options import KeeperOptions
from holdfast.retention.task import as_importance
from holdfast.steps import UserMetric
from holdfast.tensors import TensorMap, is_sharded, trainable_parameters

__all__ = ["LoraEWC", "base_weights"]


@dataclass
class LowRank(Elastic):
    """The elastic pull, on the products of adapters too; `LoraEWC` says what the options mean."""

    name: ClassVar[str] = "LoraEWC"

    adapter: str = "default"


class LoraEWC(EWC):
    """Elastic weight consolidation of a base model whose LoRA adapters learn (see this module).

    The base model is untouched, in full precision or quantised. Where its importance is zero the adapter is free, and
    so is a trained parameter that no importance covers, such as a new head. The predicted rise is of the sum W + s B A.

    Args:
        model: a PEFT model with LoRA on linear layers, embeddings or convolutions, however it was started.
        importance: of a first task, to be retained at once.
        strength: lambda, 0..inf, 1.0 by default; with Fisher importances N_old/N_new is the Laplace value.
        budget: as for `EWC`, where no adapter learns: their products go along no directions that a budget needs.
        pull: as for `EWC`.
        every: steps from one pull to the next, as for `EWC`.
        adapter: name of the adapter that learns.
        metric: M of a factor's step, for optimizers other than SGD and Adam, as for `EWC`.
        options: those of every keeper (see `Keeper`), but accumulate="per_task" and anchors on disk;
            new_parameters="free" is the default here.

    Raises:
        OptionError: an option out of its range.
        ParameterMismatchError: the model has no adapter of this name.
        UnsupportedLayerError: the product of an adapter is not all it adds (DoRA, biases of its own), or it is on
            another kind of layer. What `retain` raises.

    Cost: memory of the importances of the adapted weights and one layer's temporaries; each pull as many operations as
    a forward pass of r (r + 1) tokens through the adapted layers, and a system of r unknowns for every row and column.
    """

    mechanism: LowRank  # pyright: ignore[reportIncompatibleVariableOverride]
    _kind: ClassVar[type[Mechanism] | None] = LowRank

    def __init__(
        self,
        model: nn.Module,
        importance: Mapping[str, Tensor] | Measured | None = None,
        *,
        strength: float | None = None,
        budget: float | None = None,
        pull: Literal["implicit", "gradient", "penalty"] = "implicit",
        every: int | Literal["auto"] = 1,
        adapter: str = "default",
        metric: UserMetric | None = None,
        **options: Unpack[KeeperOptions],
    ) -> None:
        check_low_rank(options.get("accumulate", "sum"), where="LoraEWC")
        lora_adapters(model, adapter)  # raises
        options = {"new_parameters": "free", **options}
        if strength is None and budget is None:
            strength = 1.0
        Keeper.__init__(self, model, LowRank(strength, budget, pull, every, metric, adapter), **options)
        if importance is not None:
            self.retain(importance)

    @torch.no_grad()
    def retain(
        self,
        importance: Mapping[str, Tensor] | Measured,
        *,
        probes: Probes | None = None,
        budget: float | None = None,
        anchors: TensorMap | None = None,
    ) -> Self:
        """Close a task: merge its importance into what is held, and hold to today's weights and products.

        Args:
            importance: of the base model's weights, under their names there, measured before the adapters were added or
                loaded; of a later task under those of the model with adapters, measured within `base_weights`. Of
                Kronecker factors the diagonal is taken.
            probes: as for `EWC.retain`, and the budget too.
            budget: of this task alone.
            anchors: None; load the adapters' weights of that time instead.

        Raises:
            ParameterMismatchError: adapted weights without an importance or of another shape, or trained parameters
                that change what was measured and cannot be held (other adapters, single tokens).
            UnsupportedLayerError: a weight tied to another that does not learn with it, measured as one.
            NotFiniteError, OptionError: as `EWC.retain`; the latter also where the model is sharded.

        Nothing is changed when it raises.
        """
        if anchors is not None:
            raise OptionError(
                f"{self.name}.retain: it holds to products of adapters, so that anchors= cannot be given. Load the "
                "adapters as they were when the task was closed, and retain then."
            )
        if any(map(is_sharded, trainable_parameters(self.model).values())):
            raise OptionError(
                f"{self.name}.retain: the model is sharded, and it holds products of adapters, which need whole "
                "factors. Train under DistributedDataParallel, or hold the factors weight by weight: "
                "hf.EWC(model).retain(hf.fisher(model, data))."
            )
        given = as_importance(importance, where=f"{self.name}.retain").to_diagonal()
        held = on_adapters(self.model, self.mechanism.adapter, given)
        return super().retain(held, probes=given.probes if probes is None else probes, budget=budget)
