"""A chain of layers whose hidden units are gated by the task: the network of hard attention to the task."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from holdfast.errors import OptionError

_PLAIN = (nn.Flatten, nn.Unflatten, nn.ReLU, nn.LeakyReLU, nn.Dropout, nn.MaxPool2d, nn.AvgPool2d, nn.Identity)


class Gated(nn.Module):
    """A network in which each task multiplies the units of every hidden layer by gates of its own.

        a = sigmoid(s e),   h' = a h

    with e an embedding of the task for the layer, one number a unit (a channel, of convolutions). The gates stand
    before the activation, which for ReLU and leaky ReLU is the same as behind it: a >= 0.

    Args:
        net: a chain of Linear and Conv2d layers and layers without weights; the last one answers and has no gates.
        num_tasks: how many tasks there will be.
        seed: of the embeddings, drawn from a standard normal; the global random state is left alone.

    Attributes:
        task: whose gates are in use.
        scale: s.

    Raises:
        OptionError: the network is no such chain.
    """

    def __init__(self, net: nn.Module, num_tasks: int, *, seed: int) -> None:
        super().__init__()
        self.net = chain_of(net, method="hat")
        self.task, self.scale = 0, 1.0
        generator = torch.Generator().manual_seed(seed)
        device = next(net.parameters()).device
        self.embeddings = nn.ModuleList(
            nn.ParameterList(
                nn.Parameter(torch.randn(len(layer.weight), generator=generator).to(device)) for layer in self.hidden
            )
            for _ in range(num_tasks)
        )

    @property
    def hidden(self) -> list[nn.Linear | nn.Conv2d]:
        """The layers that are gated: all with weights but the last."""
        return [module for module in self.net if isinstance(module, nn.Linear | nn.Conv2d)][:-1]

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs [B, ...] -> outputs [B, C] under the gates of `task`."""
        gates: dict[nn.Module, Tensor] = dict(zip(self.hidden, self.gates()))
        outputs = inputs
        for module in self.net:
            outputs = module(outputs)
            if module in gates:
                gate = gates[module]
                outputs = outputs * (gate[:, None, None] if isinstance(module, nn.Conv2d) else gate)
        return outputs

    def own(self, task: int | None = None) -> list[Tensor]:
        """The embeddings of a task, one [units] for each hidden layer; None: of the task at hand."""
        return list(self.embeddings[self.task if task is None else task])  # pyright: ignore[reportArgumentType]

    def gates(self, scale: float | None = None) -> list[Tensor]:
        """Those of the task at hand, in 0..1, at a scale; None: at the one in use."""
        return [torch.sigmoid((self.scale if scale is None else scale) * e) for e in self.own()]


def free(net: Gated, taken: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """What share of its gradient each weight and bias of the hidden layers keeps.

        1 - min(a_i, a_j) for the weight from unit j to unit i;   1 - a_i for the bias of i

    The inputs of the network count as taken: a_j = 1 in the first layer.

    Args:
        net: the gated network.
        taken: for each hidden layer the most that its units have been open in any earlier task, [units].

    Returns:
        Each parameter, with a factor of a shape that spreads to the parameter's.
    """
    found: list[tuple[Tensor, Tensor]] = []
    below: Tensor | None = None
    for layer, own in zip(net.hidden, taken):
        through = own[:, None]
        if below is not None:
            # behind a Flatten every channel is a run of neighbouring inputs
            through = torch.minimum(through, below.repeat_interleave(layer.weight.shape[1] // len(below)))
        found.append((layer.weight, 1 - through.reshape(through.shape + (1,) * (layer.weight.dim() - 2))))
        if layer.bias is not None:
            found.append((layer.bias, 1 - own))
        below = own
    return found


def chain_of(net: nn.Module, *, method: str) -> nn.Sequential:
    """The network, which is a chain of Linear and Conv2d layers and layers without weights.

    Raises:
        OptionError: it is not.
    """
    known = (*_PLAIN, nn.Linear, nn.Conv2d)
    if isinstance(net, nn.Sequential):
        strange = {type(module).__name__ for module in net if not isinstance(module, known)}
        strange |= {"grouped Conv2d" for module in net if isinstance(module, nn.Conv2d) and module.groups > 1}
    else:
        strange = {type(net).__name__}
    if strange:
        raise OptionError(
            f"{method}: the network has {', '.join(sorted(strange))}; expected an nn.Sequential of Linear and Conv2d "
            "layers with ReLU, pooling or dropout between them. Choose net mlp or convolution."
        )
    assert isinstance(net, nn.Sequential)
    return net
