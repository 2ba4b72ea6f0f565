"""Models of every kind of layer, each with a batch of inputs; in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.moments.calls import Call

B, T, D, C = 4, 4, 6, 3  # as many positions as examples, which fools rules that look at shapes


class Apply(nn.Module):
    """A module whose forward is a given function of it and its inputs."""

    def __init__(self, forward: Callable[..., object], **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self._forward = forward

    def forward(self, *args: Tensor, **kwargs: Tensor) -> object:
        return self._forward(self, *args, **kwargs)


@dataclass
class Answer:
    extra: Tensor
    logits: Tensor


class Doubling(nn.Linear):
    """A Linear with another forward."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input) + self.weight.sum()


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(D, 5), nn.LeakyReLU(0.2), nn.Linear(5, 4, bias=False), nn.Tanh(), nn.Linear(4, C))


def in_place() -> nn.Module:
    return nn.Sequential(
        nn.Linear(D, 5), nn.ReLU(inplace=True), nn.Linear(5, 5), nn.ReLU(inplace=True), nn.Linear(5, C)
    )


def frozen() -> nn.Module:
    model = mlp()
    model[0].requires_grad_(False)
    model[2].weight.requires_grad_(False)
    model[4].bias.requires_grad_(False)
    return model


def dict_outputs() -> nn.Module:
    def forward(self: nn.Module, x: Tensor) -> dict[str, Tensor]:
        hidden = self.a(x)
        logits = self.b(hidden.relu())
        return {"hidden": hidden, "logits": logits, "loss": logits.mean()}

    return Apply(forward, a=nn.Linear(D, 5), b=nn.Linear(5, C))


def dataclass_outputs() -> nn.Module:
    def forward(self: nn.Module, x: Tensor) -> Answer:
        hidden = self.a(x)
        return Answer(hidden, self.b(hidden.relu()))

    return Apply(forward, a=nn.Linear(D, 5), b=nn.Linear(5, C))


def functional_second_use() -> nn.Module:
    return Apply(
        lambda self, x: self.b(self.a(x).tanh() + F.linear(x, self.a.weight)), a=nn.Linear(D, 5), b=nn.Linear(5, C)
    )


def called_twice() -> nn.Module:
    return Apply(lambda self, x: self.b(self.a(self.a(x).tanh())), a=nn.Linear(D, D), b=nn.Linear(D, C))


def unused() -> nn.Module:
    return Apply(lambda self, x: self.b(x), a=nn.Linear(D, D), b=nn.Linear(D, C))


def time_first() -> nn.Module:
    return Apply(lambda self, x: self.a(x.transpose(0, 1)).tanh().transpose(0, 1).sum(1), a=nn.Linear(D, C))


def attention() -> nn.Module:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return self.head(x + self.attention(x, x, x, need_weights=False)[0])

    return Apply(forward, attention=nn.MultiheadAttention(D, 2, batch_first=True), head=nn.Linear(D, C))


def batch_first_attention() -> nn.Module:
    layer = nn.TransformerEncoderLayer(D, 2, dim_feedforward=8, batch_first=True)
    return Apply(lambda self, x: self.head(self.layer(x)), layer=layer, head=nn.Linear(D, C))


def lstm() -> nn.Module:
    return Apply(lambda self, x: self.head(self.lstm(x)[0]), lstm=nn.LSTM(D, 4, batch_first=True), head=nn.Linear(4, C))


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(D, 8), nn.LayerNorm(8), nn.ReLU(), nn.GroupNorm(2, 8), nn.Linear(8, C))


def batch_normed() -> nn.Module:
    norm = nn.BatchNorm2d(4)
    nn.init.uniform_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), norm, nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4 * 16, C))


def conv1d() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(T, 6, 3, padding=1), nn.GELU(), nn.Conv1d(6, 3, 2, stride=2), nn.Flatten(), nn.Linear(9, C)
    )


def grouped() -> nn.Module:
    conv = nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular", groups=2)
    return nn.Sequential(
        conv, nn.Softplus(), nn.Conv2d(4, 4, 2, dilation=2, bias=False), nn.Flatten(), nn.Linear(16, C)
    )


def transposed() -> nn.Module:
    return nn.Sequential(nn.ConvTranspose2d(2, 3, 2), nn.Flatten(), nn.Linear(75, C))


def tied() -> nn.Module:
    def forward(self: nn.Module, ids: Tensor) -> Tensor:
        return self.head(self.mix(self.embedding(ids)).tanh())

    model = Apply(
        forward, embedding=nn.Embedding(7, D, padding_idx=0), mix=nn.Linear(D, D), head=nn.Linear(D, 7, bias=False)
    )
    model.head.weight = model.embedding.weight
    return model


def raw_parameter() -> nn.Module:
    model = Apply(lambda self, x: self.a(x * self.scale + x @ self.shift), a=nn.Linear(D, C))
    model.scale = nn.Parameter(torch.rand(D))
    model.shift = nn.Parameter(torch.rand(D, D))
    return model


def flat() -> Tensor:
    return torch.randn(B, D)


def sequence() -> Tensor:
    return torch.randn(B, T, D)


def image() -> Tensor:
    return torch.randn(B, 2, 4, 4)


def tokens() -> Tensor:
    return torch.randint(0, 7, (B, T))


ZOO: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], str]] = {
    "mlp": (mlp, flat, "linear_sums"),
    "in-place ReLU": (in_place, flat, "linear_sums"),
    "frozen": (frozen, flat, "linear_sums"),
    "dict outputs": (dict_outputs, flat, "linear_sums"),
    "dataclass outputs": (dataclass_outputs, flat, "linear_sums"),
    "unused": (unused, flat, "linear_sums"),
    "functional second use": (functional_second_use, flat, "per_example_sums"),
    "called twice": (called_twice, flat, "per_example_sums"),
    "subclass": (lambda: nn.Sequential(nn.Linear(D, 5), Doubling(5, C)), flat, "per_example_sums"),
    "weight norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(D, C)), flat, "per_example_sums"),
    "raw parameter": (raw_parameter, flat, "per_example_sums"),
    "norms": (normed, flat, "per_example_sums"),
    "sequence": (mlp, sequence, "per_example_sums"),
    "time first": (time_first, sequence, "per_example_sums"),
    "attention": (attention, sequence, "per_example_sums"),
    "encoder layer": (batch_first_attention, sequence, "per_example_sums"),
    "conv1d": (conv1d, sequence, "per_example_sums"),
    "batch norm": (batch_normed, image, "per_example_sums"),
    "grouped circular": (grouped, image, "per_example_sums"),
    "transposed": (transposed, image, "per_example_sums"),
    "tied": (tied, tokens, "per_example_sums"),
    "lstm": (lstm, sequence, "oracle_sums"),
}


def build(name: str, *, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Call]:
    """The model in evaluation mode, and a call of B examples."""
    model, inputs, _ = ZOO[name]
    bare, x = model(), inputs()
    x = x.to(dtype) if x.is_floating_point() else x
    return bare.to(dtype).eval(), Call((x,), {}, B)
