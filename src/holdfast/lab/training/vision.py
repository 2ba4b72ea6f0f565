"""A vision transformer for small pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from holdfast.errors import OptionError
from holdfast.files.typed import Within
from holdfast.lab.training.nets import TransformerBlock, register_net, square_pictures


@dataclass(frozen=True, kw_only=True)
class VisionOptions:
    """Of a vision transformer.

    Attributes:
        patch: side of the squares that a picture is cut into, in pixels.
        hidden_width: numbers of a position's hidden state; a multiple of 64 has a head of attention for each 64.
        depth: transformer blocks.
    """

    patch: Annotated[int, Within(1, 1024)] = 4
    hidden_width: Annotated[int, Within(1, 8192)] = 192
    depth: Annotated[int, Within(1, 100)] = 8


@register_net("vit", label="ViT", summary="a vision transformer for small pictures", options=VisionOptions)
def build_vit(input_shape: tuple[int, ...], outputs: int, options: VisionOptions) -> nn.Module:
    """A vision transformer over square pictures."""
    channels, side = square_pictures(input_shape, "vit")
    if side % options.patch:
        raise OptionError(f"net vit: patch={options.patch}; expected a divisor of the pictures' side, {side}.")
    return VisionTransformer(
        side,
        outputs,
        channels=channels,
        patch=options.patch,
        width=options.hidden_width,
        depth=options.depth,
    )


class VisionTransformer(nn.Module):
    """Pre-norm transformer blocks over the patches of a square picture; the mean over patches.

    Args:
        side: of the pictures, in pixels.
        outputs: output columns.
        channels: of the pictures.
        patch: side of a patch, a divisor of `side`.
        width: of the hidden states.
        depth: blocks.

    Source: Dosovitskiy et al. 2021 (arXiv 2010.11929), with the mean in place of a class token. 2.4 million weights for
    32 x 32 pixels, patches of 4, width 192 and 8 blocks, whose MLPs are twice as wide.
    """

    def __init__(
        self, side: int, outputs: int, *, channels: int = 3, patch: int = 4, width: int = 192, depth: int = 8
    ) -> None:
        super().__init__()
        self.embed = nn.Conv2d(channels, width, patch, stride=patch)
        self.positions = nn.Parameter(0.02 * torch.randn((side // patch) ** 2, width))
        heads = width // 64 if width % 64 == 0 else 1
        self.blocks = nn.ModuleList(TransformerBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, outputs)

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures [B, C, side, side] -> [B, outputs]."""
        return self.head(self.features(pictures))

    def features(self, pictures: Tensor) -> Tensor:
        """[B, width]: what the head reads."""
        hidden = self.embed(pictures).flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            hidden = block(hidden)
        return self.norm(hidden).mean(1)
