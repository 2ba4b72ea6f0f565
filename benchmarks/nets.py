"""The networks to measure on, besides the multilayer perceptrons: written plainly, in torch alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def convnet(num_classes: int) -> nn.Sequential:
    """Three convolutions on images [B, 3, 32, 32], two of them pooled, and two linear layers; 0.58 million weights."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 8 * 8, 128),
        nn.ReLU(),
        nn.Linear(128, num_classes),
    )


class Residual(nn.Module):
    """Two convolutions with batch norm: x -> relu(f(x) + x) (He et al. 2016, arXiv 1512.03385)."""

    def __init__(self, width: int, out: int, *, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, out, 3, stride=stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(out)
        self.second = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(out)
        self.first_relu, self.second_relu = nn.ReLU(), nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or width != out:
            self.shortcut = nn.Sequential(nn.Conv2d(width, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first_relu(self.first_norm(self.first(x)))
        return self.second_relu(self.second_norm(self.second(y)) + self.shortcut(x))


def residual_net(num_classes: int, *, widths: tuple[int, ...] = (32, 64, 128)) -> nn.Sequential:
    """One block a width on images [B, 3, 32, 32], each but the first halving them; 0.3 million weights."""
    ends = list(zip((widths[0], *widths), widths))
    return nn.Sequential(
        nn.Conv2d(3, widths[0], 3, padding=1, bias=False),
        nn.BatchNorm2d(widths[0]),
        nn.ReLU(),
        *(Residual(width, out, stride=1 if number == 0 else 2) for number, (width, out) in enumerate(ends)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(widths[-1], num_classes),
    )


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), over the positions up to each one."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part in self.qkv(self.attention_norm(x)).chunk(3, dim=-1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.mlp_norm(x))))


class GPT(nn.Module):
    """Tokens [B, T] -> logits [B, T, vocabulary]; the head's weight is the table of the tokens.

    The form of GPT-2: learned positions, norms before the layers, GELU, dropout left out.
    """

    def __init__(self, *, vocabulary: int, width: int, num_layers: int, num_heads: int, length: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, num_heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))
