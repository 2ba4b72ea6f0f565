"""A plug-in: the network `efficientnet-lite0`, which was trained by others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import nn

from holdfast.errors import OptionError
from holdfast.files.typed import Within
from holdfast.lab.training.nets import register_net
from recipes.backbone import EfficientNetLite0


@dataclass(frozen=True, kw_only=True)
class ReadyOptions:
    """Of a ready network.

    Attributes:
        enlarged: pictures are scaled to so many pixels a side before they are looked at.
        train_from: the blocks of layers from this one on are trained, of 16; 16: the head alone, 0: all.
    """

    enlarged: Annotated[int, Within(32, 1024)] = 96
    train_from: Annotated[int, Within(0, 16)] = 0


@register_net(
    "efficientnet-lite0",
    label="EfficientNet-Lite0",
    summary="trained on ImageNet; 3.4 million weights, with a new head",
    options=ReadyOptions,
)
def build_efficientnet_lite0(input_shape: tuple[int, ...], outputs: int, options: ReadyOptions) -> nn.Module:
    """The ready network with a new head."""
    if len(input_shape) != 3 or input_shape[0] not in (1, 3):
        raise OptionError(f"net efficientnet-lite0: inputs of shape {list(input_shape)}; expected [1 or 3, H, W].")
    return EfficientNetLite0(outputs, enlarged=options.enlarged, train_from=options.train_from)
