"""Models of every kind of layer, each with a batch of inputs; in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tests.moments.inner import INNER
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

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
    model = Apply(lambda self, x: self.a(x * self.scale + x @ self.shift - self.back), a=nn.Linear(D, C))
    model.scale = nn.Parameter(torch.rand(D))
    model.shift = nn.Parameter(torch.rand(D, D))
    model.back = nn.Parameter(torch.rand(D))
    return model


def uncovered_raw_parameter() -> nn.Module:
    model = Apply(lambda self, x: self.a(x / self.scale + self.b(x)), a=nn.Linear(D, C), b=nn.Linear(D, D))
    model.scale = nn.Parameter(torch.rand(D) + 1)
    return model


def tied_by_function() -> nn.Module:
    def forward(self: nn.Module, ids: Tensor) -> Tensor:
        return F.linear(self.mix(self.embedding(ids)).tanh(), self.embedding.weight, self.bias)

    model = Apply(forward, embedding=nn.Embedding(7, D), mix=nn.Linear(D, D))
    model.bias = nn.Parameter(torch.rand(7))
    return model


def tied_by_matmul() -> nn.Module:
    def forward(self: nn.Module, ids: Tensor) -> Tensor:
        return self.embedding(ids).tanh() @ self.embedding.weight.T

    return Apply(forward, embedding=nn.Embedding(7, D))


def gpt(positions: Callable[[int], Tensor] = torch.arange) -> nn.Module:
    def forward(self: nn.Module, ids: Tensor) -> dict[str, Tensor]:
        x = self.tokens(ids) + self.positions(positions(ids.shape[1]))
        q, k, v = self.qkv(self.norm(x)).view(len(ids), -1, 3, 2, D // 2).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return {"logits": self.head(self.last(x))}

    modules = {"norm": nn.LayerNorm(D), "last": nn.RMSNorm(D), "qkv": nn.Linear(D, 3 * D), "out": nn.Linear(D, D)}
    model = Apply(forward, tokens=nn.Embedding(7, D), positions=nn.Embedding(9, D), head=nn.Linear(D, 7), **modules)
    model.head.weight = model.tokens.weight
    return model


def class_token() -> nn.Module:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.positions
        return self.head(self.mix(x).tanh().mean(1) * self.token.repeat(len(x), 1, 1)[:, 0])

    model = Apply(forward, mix=nn.Linear(D, D), head=nn.Linear(D, C))
    model.token = nn.Parameter(torch.randn(1, 1, D))
    model.positions = nn.Parameter(torch.randn(1, T + 1, D))
    return model


def packed() -> nn.Module:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        up, down = self.both.split(D)
        flat = torch.addmm(self.bias[:D], x.flatten(0, 1), up).tanh()
        return (flat @ down[:, :C] + self.bias[None, -C:]).view(*x.shape[:2], C)

    model = Apply(forward)
    model.both = nn.Parameter(torch.randn(2 * D, D))
    model.bias = nn.Parameter(torch.randn(2 * D))
    return model


def overlapping() -> nn.Module:
    model = Apply(lambda self, x: F.linear(x, self.w[:C]) + F.linear(x, self.w[1:]).tanh() + self.w[0, :C])
    model.w = nn.Parameter(torch.randn(C + 1, D))
    return model


def cross_attention() -> nn.Module:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        return self.head(self.attention(x, x[:2], x[:2])[0].transpose(0, 1))

    return Apply(forward, attention=nn.MultiheadAttention(D, 2), head=nn.Linear(D, C))


def checkpointed(reentrant: bool) -> nn.Module:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        for block in (self.a, self.b, self.a):
            x = checkpoint(block, x, use_reentrant=reentrant)
        return self.head(x)

    def block() -> nn.Module:
        return nn.Sequential(nn.Linear(D, 5), nn.ReLU(inplace=True), nn.LayerNorm(5), nn.Linear(5, D))

    # a reentrant checkpoint has gradients only where its input has one
    first = Apply(lambda self, x: self.first(x) if reentrant else x, first=nn.Linear(D, D))
    return nn.Sequential(first, Apply(forward, a=block(), b=block(), head=nn.Linear(D, C)))


def convolutions(kind: str) -> nn.Module:
    dims = int(kind[-2])
    conv = {
        "Conv1d": nn.Conv1d(4, 6, 2, stride=2, dilation=2, padding=3, groups=2, padding_mode="reflect"),
        "Conv2d": nn.Conv2d(2, 4, (2, 3), padding="same", dilation=(2, 2)),
        "Conv3d": nn.Conv3d(2, 4, 2, stride=(1, 2, 1), padding="valid", bias=False),
        "ConvTranspose1d": nn.ConvTranspose1d(4, 6, 3, stride=2, output_padding=1, groups=2),
        "ConvTranspose3d": nn.ConvTranspose3d(2, 2, 2, stride=2, dilation=2, padding=1),
    }[kind]
    norm = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.BatchNorm3d}[dims](conv.in_channels, affine=True)
    return nn.Sequential(norm, conv, nn.ReLU(inplace=True), nn.Flatten(), nn.LazyLinear(C))


def shared_convolution() -> nn.Module:
    return Apply(lambda self, x: self.a(self.a(x).relu()).relu(), a=nn.Conv2d(2, 2, 3, padding=1))


def several_axes() -> nn.Module:
    return Apply(lambda self, x: self.b(self.a(x).relu()), a=nn.Linear(4, 5), b=nn.Linear(5, C))


def uneven_use() -> nn.Module:
    return Apply(lambda self, x: torch.stack([self.a(one[None])[0] for one in x]), a=nn.Linear(D, C))


def frames() -> nn.Module:
    """A convolution over the frames of each example, as of a video."""

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        h = F.softplus(self.conv(x.flatten(0, 1).unsqueeze(1)))
        return self.head(h.unflatten(0, x.shape[:2]).mean(1).flatten(1))

    return Apply(forward, conv=nn.Conv2d(1, 2, 3), head=nn.Linear(8, C))


def flat() -> Tensor:
    return torch.randn(B, D)


def sequence() -> Tensor:
    return torch.randn(B, T, D)


def image() -> Tensor:
    return torch.randn(B, 2, 4, 4)


def tokens() -> Tensor:
    return torch.randint(0, 7, (B, T))


def volume() -> Tensor:
    return torch.randn(B, 2, 3, 4, 3)


NOTHING: tuple[str, ...] = ()
LSTM = tuple(f"lstm.{kind}_{gate}_l0" for kind in ("weight", "bias") for gate in ("ih", "hh"))
WEIGHT_NORM = ("bias", "parametrizations.weight.original0", "parametrizations.weight.original1")

ZOO: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], tuple[str, ...], str]] = {
    "mlp": (mlp, flat, NOTHING, ""),
    "in-place ReLU": (in_place, flat, NOTHING, ""),
    "in-place ReLU of a sequence": (in_place, sequence, NOTHING, ""),
    "frozen": (frozen, flat, NOTHING, ""),
    "dict outputs": (dict_outputs, flat, NOTHING, ""),
    "dataclass outputs": (dataclass_outputs, flat, NOTHING, ""),
    "unused": (unused, flat, NOTHING, ""),
    "functional second use": (functional_second_use, flat, NOTHING, ""),
    "called twice": (called_twice, flat, NOTHING, ""),
    "called twice on sequences": (called_twice, sequence, NOTHING, ""),
    "subclass": (lambda: nn.Sequential(nn.Linear(D, 5), Doubling(5, C)), flat, ("1.weight",), "per_example_sums"),
    "weight norm": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(D, C)),
        flat,
        WEIGHT_NORM,
        "per_example_sums",
    ),
    "raw parameter": (raw_parameter, flat, NOTHING, ""),
    "uncovered raw parameter": (uncovered_raw_parameter, sequence, ("scale",), "per_example_sums"),
    "packed": (packed, sequence, NOTHING, ""),
    "overlapping": (overlapping, sequence, NOTHING, ""),
    "class token": (class_token, sequence, NOTHING, ""),
    "norms": (normed, flat, NOTHING, ""),
    "sequence": (mlp, sequence, NOTHING, ""),
    "several axes": (several_axes, image, NOTHING, ""),
    "time first": (time_first, sequence, NOTHING, ""),
    "attention": (attention, sequence, NOTHING, ""),
    "cross attention": (cross_attention, sequence, NOTHING, ""),
    "encoder layer": (batch_first_attention, sequence, NOTHING, ""),
    "conv1d": (conv1d, sequence, NOTHING, ""),
    "batch norm": (batch_normed, image, NOTHING, ""),
    "grouped circular": (grouped, image, NOTHING, ""),
    "transposed": (transposed, image, NOTHING, ""),
    "Conv1d": (lambda: convolutions("Conv1d"), sequence, NOTHING, ""),
    "Conv2d": (lambda: convolutions("Conv2d"), image, NOTHING, ""),
    "Conv3d": (lambda: convolutions("Conv3d"), volume, NOTHING, ""),
    "ConvTranspose1d": (lambda: convolutions("ConvTranspose1d"), sequence, NOTHING, ""),
    "ConvTranspose3d": (lambda: convolutions("ConvTranspose3d"), volume, NOTHING, ""),
    "frames": (frames, image, NOTHING, ""),
    "shared convolution": (shared_convolution, image, NOTHING, ""),
    "tied": (tied, tokens, NOTHING, ""),
    "tied by function": (tied_by_function, tokens, NOTHING, ""),
    "tied by matmul": (tied_by_matmul, tokens, NOTHING, ""),
    "gpt": (gpt, tokens, NOTHING, ""),
    "gpt, positions with an axis": (lambda: gpt(lambda n: torch.arange(n)[None]), tokens, NOTHING, ""),
    "gpt, equal positions": (lambda: gpt(lambda n: torch.zeros(n, dtype=torch.long)), tokens, NOTHING, ""),
    "checkpoints": (lambda: checkpointed(False), sequence, NOTHING, ""),
    "reentrant checkpoints": (lambda: checkpointed(True), sequence, NOTHING, ""),
    "one example at a time": (uneven_use, flat, NOTHING, ""),
    "lstm": (lstm, sequence, LSTM, "oracle_sums"),
}


ZOO |= {
    name: (model, {"flat": flat, "sequence": sequence}[inputs], missed, route)
    for name, (model, inputs, missed, route) in INNER.items()
}


def build(name: str, *, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Call]:
    """The model in evaluation mode, and a call of B examples."""
    model, inputs, *_ = ZOO[name]
    bare, x = model(), inputs()
    x = x.to(dtype) if x.is_floating_point() else x
    bare = bare.to(dtype).eval()
    bare(x)  # gives lazy modules their shape
    return bare, Call((x,), {}, B)
