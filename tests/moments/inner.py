"""Models whose forward pass takes gradients itself, or changes in place what no gradient needs."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

D, C = 6, 3


def network(*sizes: int) -> nn.Sequential:
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
    return nn.Sequential(*(step for layer in layers for step in (layer, nn.Tanh())))[:-1]


class Hamiltonian(nn.Module):
    """Behind trained features a field (dH/dp, -dH/dq), as Hamiltonian networks have it."""

    def __init__(self, *, guard: bool = True) -> None:
        super().__init__()
        self.features, self.energy, self.guard = nn.Linear(D, 4), network(4, 5, 1), guard

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(self.guard or torch.is_grad_enabled()):
            state = self.features(x)
            state = state if state.requires_grad else state.requires_grad_()
            (slope,) = torch.autograd.grad(self.energy(state).sum(), state, create_graph=True)
            return torch.cat([slope[:, 2:], -slope[:, :2]], dim=1)


class Residual(nn.Module):
    """u'' + u of a network u, at places that are its input (physics-informed)."""

    def __init__(self) -> None:
        super().__init__()
        self.u = network(1, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        t = x[:, :1].requires_grad_()
        u = self.u(t)
        (first,) = torch.autograd.grad(u.sum(), t, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), t, create_graph=True)
        return torch.cat([u, second + u], dim=1)


class Adapting(nn.Module):
    """Adapts a layer to each example by one step of descent before it answers (MAML)."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(D, 4), nn.Linear(4, C)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self._one(self.body(one[None])) for one in x])

    def _one(self, h: Tensor) -> Tensor:
        weight, bias = self.head.weight, self.head.bias
        loss = F.linear(h.tanh(), weight, bias).square().sum()
        fast = [
            p - 0.1 * g for p, g in zip((weight, bias), torch.autograd.grad(loss, (weight, bias), create_graph=True))
        ]
        return F.linear(h, *fast)


class AdaptingByFunc(Adapting):
    """The same by `torch.func`, all examples at once."""

    def _adapted(self, h: Tensor) -> Tensor:
        def loss(parameters: dict[str, Tensor]) -> Tensor:
            return torch.func.functional_call(self.head, parameters, (h.tanh(),)).square().sum()

        parameters = dict(self.head.named_parameters())
        slopes = torch.func.grad(loss)(parameters)
        fast = {name: p - 0.1 * slopes[name] for name, p in parameters.items()}
        return torch.func.functional_call(self.head, fast, (h,))

    def forward(self, x: Tensor) -> Tensor:
        return torch.func.vmap(self._adapted)(self.body(x))


class Settling(nn.Module):
    """A hidden state that settles by `.backward()`, beside a convolution that has no part in it."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.pull, self.head = nn.Conv1d(4, 2, 3), nn.Linear(8, 8), nn.Linear(8, C)

    def forward(self, x: Tensor) -> Tensor:
        h = self.trunk(x).flatten(1)
        with torch.enable_grad():
            state = h.detach().requires_grad_()
            self.pull(state).square().sum().backward()
        assert state.grad is not None
        return self.head(h - 0.1 * state.grad) + self.pull(h)[:, :C]


class Checkpointed(nn.Module):
    """Its forces are computed again in the backward pass."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.first, self.reentrant = nn.Linear(D, D), reentrant
        self.energy, self.last = network(D, 5, 1), nn.Linear(D, C)

    def _forces(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            state = x if x.requires_grad else x.detach().requires_grad_()
            return state + torch.autograd.grad(self.energy(state).sum(), state, create_graph=True)[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.last(checkpoint(self._forces, self.first(x), use_reentrant=self.reentrant))


class ByTransform(nn.Module):
    """What a transform of a network says of each input, beside the network itself."""

    def __init__(self, transform: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.outer, self._transform = network(D, 5, C), nn.Linear(D, C), transform

    def forward(self, x: Tensor) -> Tensor:
        return self._transform(self.inner, x) + self.outer(x).tanh()


def pushed(network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return torch.func.jvp(network, (x,), (torch.ones_like(x),))[1]


def jacobian(network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return torch.func.vmap(torch.func.jacrev(network))(x).sum(dim=2)


def curvature(network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return torch.func.vmap(torch.func.hessian(lambda one: network(one).sum()))(x)[:, :C].sum(dim=2)


def mapped(network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return torch.func.vmap(network)(x)


def dual(network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(network(forward_ad.make_dual(x, torch.ones_like(x)))).tangent


def functional(network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    def each(x: Tensor) -> Tensor:
        return network(x).sum(dim=0)

    return torch.autograd.functional.jacobian(each, x, create_graph=True, vectorize=True).sum(dim=2).T


class Spike(torch.autograd.Function):
    """A step with the slope of a fast sigmoid."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).to(x)

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return g / (1 + 10 * x.abs()) ** 2


class Spiking(nn.Module):
    """Leaky neurons over the positions of a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.synapse, self.readout = nn.Linear(D, 5), nn.Linear(5, C)
        self.leak = nn.Parameter(torch.rand(5))

    def forward(self, x: Tensor) -> Tensor:
        potential, spikes = x.new_zeros(len(x), 5), []
        for current in self.synapse(x).unbind(1):
            potential = potential * self.leak + current
            spikes.append(Spike.apply(potential - 0.1))
            potential = potential - spikes[-1].detach()
        return self.readout(torch.stack(spikes, dim=1)).sum(dim=1) + self.readout(potential)


class Tuned(nn.Module):
    """Residual blocks that add in place; of each only some parameters are trained."""

    def __init__(self, block: Callable[[], nn.Module], *, only: str, size: int = D) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([block(), block()])
        self.head = nn.Linear(size, C)
        for name, parameter in self.blocks.named_parameters():
            parameter.requires_grad_(only in name)

    def forward(self, x: Tensor) -> Tensor:
        h = 1.0 * x
        for block in self.blocks:
            h += block(h)
        return self.head(h.flatten(1) if x.ndim == 3 else h)


def biases() -> nn.Module:
    return Tuned(lambda: nn.Sequential(nn.Linear(D, 5), nn.ReLU(inplace=True), nn.Linear(5, D)), only="bias")


def norm_bias() -> nn.Module:
    def block() -> nn.Module:
        return nn.Sequential(nn.Linear(D, D), nn.LayerNorm(D), nn.Tanh())

    return Tuned(block, only="1.bias", size=4 * D)


def shifts() -> nn.Module:
    class Shift(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.by = nn.Parameter(torch.rand(D))

        def forward(self, x: Tensor) -> Tensor:
            return x - self.by

    return Tuned(lambda: nn.Sequential(Shift(), nn.Sigmoid()), only="by")


def within_checkpoints() -> nn.Module:
    """Everything that is trained lies inside reentrant checkpoints, as LoRA has it."""
    model = Within()
    model.head.requires_grad_(False)
    return model


class Within(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, C)
        self.scale = nn.Parameter(torch.rand(D) + 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.requires_grad_()
        x = checkpoint(lambda x: self.a(x).tanh() / self.scale, x, use_reentrant=True)
        return self.head(checkpoint(lambda x: self.b(x).tanh(), x, use_reentrant=True))


ENERGY = ("energy.0.weight", "energy.0.bias", "energy.2.weight")
TRANSFORMED = ("inner.0.weight", "inner.0.bias", "inner.2.weight")
NETWORK = (*TRANSFORMED, "inner.2.bias")
HEAD = ("head.weight", "head.bias")

INNER: dict[str, tuple[Callable[[], nn.Module], str, tuple[str, ...], str]] = {
    "hamiltonian": (Hamiltonian, "flat", ENERGY, "oracle_sums"),
    "hamiltonian without a guard": (lambda: Hamiltonian(guard=False), "flat", ENERGY, "oracle_sums"),
    "second derivatives": (Residual, "flat", tuple(name.replace("inner", "u") for name in NETWORK), "oracle_sums"),
    "adapting": (Adapting, "flat", HEAD, "per_example_sums"),
    "adapting by torch.func": (AdaptingByFunc, "flat", HEAD, "per_example_sums"),
    "settling": (Settling, "sequence", ("pull.weight", "pull.bias"), "oracle_sums"),
    "checkpointed forces": (lambda: Checkpointed(reentrant=False), "flat", ENERGY, "oracle_sums"),
    "reentrant forces": (lambda: Checkpointed(reentrant=True), "flat", ENERGY, "oracle_sums"),
    **{
        function.__name__: (lambda function=function: ByTransform(function), "flat", TRANSFORMED, "per_example_sums")
        for function in (pushed, jacobian, curvature, dual)
    },
    "mapped": (lambda: ByTransform(mapped), "flat", NETWORK, "per_example_sums"),
    "functional": (lambda: ByTransform(functional), "flat", TRANSFORMED, "oracle_sums"),
    "within reentrant checkpoints": (within_checkpoints, "flat", ("scale",), "oracle_sums"),
    "spiking": (Spiking, "sequence", (), ""),
    "biases": (biases, "flat", (), ""),
    "norm bias": (norm_bias, "sequence", (), ""),
    "shifts": (shifts, "flat", (), ""),
}
"""Name -> model, kind of input, parameters that the engine misses, and their route."""
