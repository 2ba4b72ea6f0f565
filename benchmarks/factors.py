"""The rules of `hf.kfac` beside the Fisher's own blocks, on small networks whose layers have many positions.

python -m benchmarks.factors [SEEDS]    prints the two tables of docs/strength.md, in about five minutes: the rules, and
                                        factors in blocks
"""

from __future__ import annotations

import copy
import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import holdfast as hf
from holdfast.curvature.blocks import blocks_of
from holdfast.curvature.factored import FactoredImportance
from holdfast.likelihoods.categorical import Categorical

CLASSES, WIDTH, LENGTH = 4, 6, 7
Batch = tuple[Tensor, Tensor]


class Net(nn.Module):
    """A function of named parts."""

    def __init__(self, function: Callable[..., Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


class Block(nn.Module):
    """A transformer's block, its attention of plain Linear layers."""

    def __init__(self, width: int, *, causal: bool = False) -> None:
        super().__init__()
        self.causal, self.norms = causal, nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norms[0](x)
        q, k, v = (layer(h).unflatten(-1, (2, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal).transpose(1, 2).flatten(2)
        x = x + self.o(mixed)
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


def _attention(pool: Callable[[Tensor], Tensor], *, first: nn.Module, out: int = CLASSES, causal: bool = False) -> Net:
    def forward(self: Net, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.head(pool(self.blocks(h + self.positions.weight[: h.shape[1]])))

    blocks = nn.Sequential(*(Block(8, causal=causal) for _ in range(2)))
    return Net(forward, first=first, positions=nn.Embedding(8, 8), blocks=blocks, head=nn.Linear(8, out))


def _convolutions(*last: nn.Module) -> nn.Sequential:
    first, second = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 8, 3, stride=2, padding=1)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), *last)


NETS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "MLP, no positions": (lambda: nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Linear(8, CLASSES)), "vectors"),
    "Linear on a sequence, mean": (
        lambda: Net(lambda self, x: self.b(self.a(x).tanh().mean(1)), a=nn.Linear(WIDTH, 8), b=nn.Linear(8, CLASSES)),
        "sequences",
    ),
    "attention, mean": (lambda: _attention(lambda h: h.mean(1), first=nn.Linear(WIDTH, 8)), "sequences"),
    "attention, first token": (lambda: _attention(lambda h: h[:, 0], first=nn.Linear(WIDTH, 8)), "sequences"),
    "causal LM, sum over tokens": (
        lambda: _attention(lambda h: h, first=nn.Embedding(7, 8), out=7, causal=True),
        "tokens",
    ),
    "ConvNet, global average": (
        lambda: _convolutions(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES)),
        "images",
    ),
    "ConvNet, flattened": (lambda: _convolutions(nn.Flatten(), nn.Linear(128, CLASSES)), "images"),
}


def drawn(kind: str, num: int, *, task: int) -> Batch:
    """Inputs and targets of a task that a small network learns in some hundred steps."""
    generator = torch.Generator().manual_seed(task)
    normal = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    y, means = torch.randint(0, CLASSES, (num,), generator=generator), normal(CLASSES, WIDTH)
    match kind:
        case "vectors":
            return means[y] + normal(num, WIDTH), y
        case "sequences":  # half of the positions tell the class
            tells = (torch.rand(num, LENGTH, 1, generator=generator) < 0.5).float()
            return normal(num, LENGTH, WIDTH) + tells * means[y].unsqueeze(1), y
        case "images":
            return 2 * F.avg_pool2d(normal(CLASSES, 1, 8, 8), 3, 1, 1)[y] + 0.7 * normal(num, 1, 8, 8), y
        case "tokens":  # a Markov chain
            steps, tokens = (2 * normal(7, 7)).softmax(-1), [torch.randint(0, 7, (num,), generator=generator)]
            for _ in range(8):
                tokens.append(torch.multinomial(steps[tokens[-1]], 1, generator=generator).squeeze(1))
            text = torch.stack(tokens, dim=1)
            return text[:, :-1], text[:, 1:]
    raise ValueError(kind)


def train(model: nn.Module, batch: Batch, steps: int, *, optimizer: torch.optim.Optimizer) -> None:
    x, y = batch
    for _ in range(steps):
        some = torch.randint(0, len(x), (32,))
        optimizer.zero_grad()
        F.cross_entropy(model(x[some]).flatten(0, -2), y[some].flatten()).backward()
        optimizer.step()


def matrix(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> Tensor:
    """[out, in (+1)]."""
    flat = weight.flatten(1)
    return flat if bias is None else torch.cat([flat, bias.unsqueeze(1)], dim=1)


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """Weight -> Linear or convolution layer."""
    plain = (nn.Linear, nn.Conv1d, nn.Conv2d)
    return {f"{name}.weight": module for name, module in model.named_modules() if isinstance(module, plain)}


def blocks(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Weight -> M [R, out, in (+1)] with the layer's block of the exact Fisher F = sum_r vec(M_r) vec(M_r)^T.

    One ordinary gradient of the weights for each example, output position and class.
    """
    layers, found = layers_of(model), {}
    parameters = [p for layer in layers.values() for p in layer.parameters()]
    for one in x.split(1):
        positions = model(one).flatten(0, -2).log_softmax(-1)
        for position in positions:
            for log_p in position:
                gradients = torch.autograd.grad(log_p, parameters, retain_graph=True, materialize_grads=True)
                rest, factor = iter(gradients), (log_p.detach().exp() / (len(x) * len(positions))).sqrt()
                for name, layer in layers.items():
                    M = matrix(layer, next(rest), None if layer.bias is None else next(rest))
                    found.setdefault(name, []).append(factor * M)
    return {name: torch.stack(rows) for name, rows in found.items()}


@dataclass
class Errors:
    """How far factors are from the Fisher's blocks.

    Attributes:
        trace: of A (x) G over that of the block, a number a layer.
        diagonal: norm of the diagonal's error over the norm of the diagonal, a number a layer.
        random, learned: factor >= 1 between d^T (A (x) G) d and d^T F d, a number for each layer and displacement.
    """

    trace: list[float]
    diagonal: list[float]
    random: list[float]
    learned: list[float]


def errors(
    found: FactoredImportance,
    exact: dict[str, Tensor],
    random: list[dict[str, Tensor]],
    learned: list[dict[str, Tensor]],
) -> Errors:
    """Of all layers of `exact`; displacements are matrices [out, in (+1)] by weight."""
    result = Errors([], [], [], [])
    for name, M in exact.items():
        A, G = (torch.block_diag(*blocks_of(part.double())) for part in found[name].tensors().values())
        own, diagonal = torch.outer(G.diagonal(), A.diagonal()), M.square().sum(0)
        result.trace.append(float(own.sum() / diagonal.sum()))
        result.diagonal.append(float((own - diagonal).norm() / diagonal.norm()))
        for displacements, factors in ((random, result.random), (learned, result.learned)):
            for each in displacements:
                d = each[name]
                log = ((d * (G @ d @ A)).sum() / (M * d).sum((1, 2)).square().sum()).clamp(1e-12).log()
                factors.append(float(log.abs().exp()))
    return result


def trained(name: str, *, seed: int, num: int = 32) -> tuple[nn.Module, Tensor, Tensor, list[dict[str, Tensor]]]:
    """A trained network in float64, inputs and targets of its task, and displacements along five ways to learn another.

    The ways are 1, 10 and 50 steps of SGD, and 10 and 50 of Adam.
    """
    torch.manual_seed(seed)
    make, kind = NETS[name]
    model, batch = make(), drawn(kind, 256, task=seed)
    train(model, batch, 300, optimizer=torch.optim.Adam(model.parameters(), lr=3e-3))
    learned = []
    for steps, optimizer, lr in (
        (1, "SGD", 0.05),
        (10, "SGD", 0.05),
        (50, "SGD", 0.05),
        (10, "Adam", 3e-3),
        (50, "Adam", 3e-3),
    ):
        other = copy.deepcopy(model)
        train(
            other,
            drawn(kind, 256, task=1000 + seed),
            steps,
            optimizer=getattr(torch.optim, optimizer)(other.parameters(), lr=lr),
        )
        before, after = layers_of(model), layers_of(other)
        learned.append(
            {
                key: (matrix(after[key], after[key].weight, after[key].bias) - matrix(layer, layer.weight, layer.bias))
                .detach()
                .double()
                for key, layer in before.items()
            }
        )
    x, y = batch[0][:num], batch[1][:num]
    return model.double(), x.double() if x.is_floating_point() else x, y, learned


RULES = ("expand", "reduce", "matched", "auto")


def nearer(a: FactoredImportance, b: FactoredImportance, exact: dict[str, Tensor]) -> FactoredImportance:
    """For each layer the factors whose trace is nearer to the block's, brought to that trace."""
    chosen = {}
    for name, M in exact.items():
        trace = float(M.square().sum())
        best = min((a[name], b[name]), key=lambda f: abs(math.log(max(f.trace(), 1e-30) / trace)))
        chosen[name] = replace(best, outputs=best.outputs * (trace / best.trace()))
    return FactoredImportance(chosen, a.diagonal, a.info)


def measured(name: str, *, seed: int, num: int = 32) -> dict[str, Errors]:
    """Rule -> errors of the layers that have positions, where there are any."""
    model, x, y, learned = trained(name, seed=seed, num=num)
    loss = Categorical(causal=False, class_axis=-1 if y.ndim > 1 else None)
    found = {rule: hf.kfac(model, [(x, y)], factors=rule, loss=loss) for rule in RULES}  # pyright: ignore[reportArgumentType]
    exact = blocks(model, x)
    found["nearer, scaled"] = nearer(found["expand"], found["reduce"], exact)
    random = [{key: torch.randn_like(M[0]) for key, M in exact.items()} for _ in range(20)]
    shared = str(found["auto"].info.details.get("matched", "")).split(", ")
    chosen = {key: M for key, M in exact.items() if shared == [""] or key in shared}
    return {rule: errors(each, chosen, random, learned) for rule, each in found.items()}


def table(seeds: int = 3) -> str:
    """The rows of docs/strength.md."""
    lines = ["| network | rule | trace | diagonal off by | random | learned |", "| --- | --- | --- | --- | --- | --- |"]
    for name in NETS:
        runs = [measured(name, seed=seed) for seed in range(seeds)]
        for rule in runs[0]:
            if rule == "matched" and name != next(iter(NETS)):
                continue  # all layers compared have positions: the same as "auto"
            trace, diagonal, random, learned = (
                [value for run in runs for value in getattr(run[rule], part)]
                for part in ("trace", "diagonal", "random", "learned")
            )
            lines.append(
                f"| {name} | {rule} | {min(trace):.2g} to {max(trace):.2g} | {100 * statistics.mean(diagonal):.0f}% "
                f"| {statistics.median(random):.2f} | {statistics.median(learned):.2f} |"
            )
    return "\n".join(lines)


def table_of_blocks(seeds: int = 3) -> str:
    """Of factors in blocks of some sizes, the median over layers, ways to learn and seeds."""
    sizes = (None, 32, 16, 8, 4, 1)
    heads = ("whole", *(f"of {size}" for size in sizes[1:]))
    lines = [f"| network | {' | '.join(heads)} |", "| --- " * (1 + len(sizes)) + "|"]
    for name in NETS:
        found: list[list[float]] = [[] for _ in sizes]
        for seed in range(seeds):
            model, x, y, learned = trained(name, seed=seed)
            loss, exact = Categorical(causal=False, class_axis=-1 if y.ndim > 1 else None), blocks(model, x)
            for size, factors in zip(sizes, found):
                factors += errors(hf.kfac(model, [(x, y)], loss=loss, max_size=size), exact, [], learned).learned
        lines.append(f"| {name} | {' | '.join(f'{statistics.median(factors):.2f}' for factors in found)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    given = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    print(table(given), table_of_blocks(given), sep="\n\n")
