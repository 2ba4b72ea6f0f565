"""A residual network for small pictures."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.files.typed import Within
from holdfast.lab.training.nets import register_net, square_pictures


@dataclass(frozen=True, kw_only=True)
class ResidualOptions:
    """Of a residual network.

    Attributes:
        width: channels of the first stage; each of the two others has twice as many as the one before.
        stage_blocks: residual blocks a stage, of two convolutions each: 3 make a ResNet-20.
    """

    width: Annotated[int, Within(1, 4096)] = 16
    stage_blocks: Annotated[int, Within(1, 100)] = 3


@register_net(
    "resnet", label="ResNet", summary="residual blocks in three stages, for small pictures", options=ResidualOptions
)
def build_resnet(input_shape: tuple[int, ...], outputs: int, options: ResidualOptions) -> nn.Module:
    """A residual network over square pictures."""
    channels, _ = square_pictures(input_shape, "resnet")
    return ResNet(outputs, channels=channels, width=options.width, stage_blocks=options.stage_blocks)


class ResNet(nn.Module):
    """3x3 convolutions with batch norm in three stages of 1, 2 and 4 times `width` channels, the mean over all places.

    Args:
        outputs: output columns.
        channels: of the pictures.
        width: of the first stage.
        stage_blocks: a stage.

    Source: He et al. 2016 (arXiv 1512.03385), section 4.2: 6 n + 2 layers, 0.27 million weights for n = 3 and width 16.
    Departure: where the size changes the short way is a 1x1 convolution with batch norm (their option B), so that no
    channel is padded.
    """

    def __init__(self, outputs: int, *, channels: int = 3, width: int = 16, stage_blocks: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        widths = [width, *(width * 2**stage for stage in range(3) for _ in range(stage_blocks))]
        self.blocks = nn.ModuleList(
            ResidualBlock(before, after, stride=1 if before == after else 2) for before, after in pairwise(widths)
        )
        self.head = nn.Linear(4 * width, outputs)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures [B, C, H, W] -> [B, outputs]."""
        return self.head(self.features(pictures))

    def features(self, pictures: Tensor) -> Tensor:
        """[B, 4 width]: what the head reads."""
        hidden = F.relu(self.norm(self.stem(pictures)))
        for block in self.blocks:
            hidden = block(hidden)
        return hidden.mean((2, 3))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a short way.

    Args:
        before: channels of its input.
        after: of its output.
        stride: of the first convolution.
    """

    def __init__(self, before: int, after: int, *, stride: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.second = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(after) for _ in range(2))
        self.short: nn.Module = nn.Identity()
        if before != after or stride > 1:
            self.short = nn.Sequential(nn.Conv2d(before, after, 1, stride=stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, before, H, W] -> [B, after, H / stride, W / stride]."""
        inner = F.relu(self.norms[0](self.first(hidden)))
        return F.relu(self.norms[1](self.second(inner)) + self.short(hidden))
