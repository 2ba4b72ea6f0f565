"""A generator of your own in Deep Generative Replay: a small diffusion model of handwritten digits.

    python examples/own_generator.py

Two tasks of the embedded digits, 0 and 1, then 2 and 3. A solver learns one after the other; while it learns the
second, it rehearses what the diffusion model draws of the first. All that the library asks of a generator is three
methods: `optimizers`, `fit` and `sample` (`holdfast.replay.Generator`).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from holdfast.lab.streams import digits, split
from holdfast.lab.training import accuracy, mlp
from holdfast.replay import Generator, Scholar, check_alive, frozen, mixed, replay_heads, replay_loss


class Diffusion(nn.Module):
    """Denoising diffusion of 64 pixels, conditional on the class (Ho et al. 2020, arXiv 2006.11239), in 40 steps."""

    def __init__(self, num_classes: int, *, steps: int = 40, units: int = 256) -> None:
        super().__init__()
        self.num_classes, self.steps = num_classes, steps
        betas = torch.linspace(1e-3, 0.25, steps)
        self.register_buffer("beta", betas)
        self.register_buffer("kept", (1 - betas).cumprod(0))  # alpha-bar: the share of the image left at each step
        self.net = nn.Sequential(
            nn.Linear(64 + steps + num_classes, units),
            nn.SiLU(),
            nn.Linear(units, units),
            nn.SiLU(),
            nn.Linear(units, 64),
        )

    def optimizers(self) -> Sequence[Optimizer]:
        return (Adam(self.parameters(), lr=2e-3),)

    def fit(
        self,
        inputs: Tensor,
        classes: Tensor | None = None,
        *,
        weights: Tensor | None = None,
        optimizers: Sequence[Optimizer],
    ) -> Tensor:
        assert classes is not None
        x = 2 * inputs.flatten(1) - 1
        step, noise = torch.randint(self.steps, (len(x),)), torch.randn_like(x)
        kept = self.kept[step, None]
        errors = (self.noise(kept.sqrt() * x + (1 - kept).sqrt() * noise, step, classes) - noise).square().mean(1)
        loss = errors.mean() if weights is None else weights @ errors
        optimizers[0].zero_grad()
        loss.backward()
        optimizers[0].step()
        return loss.detach()

    @torch.no_grad()
    def sample(self, n: int, *, classes: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        assert classes is not None
        x = torch.randn(n, 64, generator=generator)
        for t in reversed(range(self.steps)):
            step = torch.full((n,), t)
            x = x - self.beta[t] / (1 - self.kept[t]).sqrt() * self.noise(x, step, classes)
            x = x / (1 - self.beta[t]).sqrt()
            if t:
                x = x + self.beta[t].sqrt() * torch.randn(n, 64, generator=generator)
        return ((x.clamp(-1, 1) + 1) / 2).view(n, 1, 8, 8)

    def noise(self, x: Tensor, step: Tensor, classes: Tensor) -> Tensor:
        """The noise in x [B, 64] after that many steps of it."""
        return self.net(torch.cat([x, F.one_hot(step, self.steps), F.one_hot(classes, self.num_classes)], 1))


def main(iterations: int = 600) -> dict[str, float]:
    """Learn both tasks; the accuracy on the first one in the end, with and without replay."""
    stream = split(digits(), num_tasks=2, scenario="class")
    found = {}
    for name in ("with replay", "without"):
        torch.manual_seed(0)
        solver, generator = mlp(64, (100,), 10), Diffusion(10)
        assert isinstance(generator, Generator)
        scholar: Scholar | None = None
        for t, task in enumerate(stream):
            optimizer, optimizers = Adam(solver.parameters(), lr=1e-3), generator.optimizers()
            heads = replay_heads("seen", stream.task_classes, t) if scholar else ()
            for _ in range(iterations):
                chosen = torch.randint(len(task.train), (64,))
                inputs, targets = task.train.inputs[chosen], task.train.targets[chosen]
                loss, replayed, share = F.cross_entropy(solver(inputs), targets), None, 1 / (t + 1)
                if scholar is not None and name == "with replay":
                    replay = scholar.replay(64, heads)
                    old = replay_loss(solver(replay.inputs), replay, heads, temperature=2.0)
                    loss, replayed = share * loss + (1 - share) * old, (replay.inputs, replay.classes)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                batch, classes, weights = mixed((inputs, targets), replayed, new_share=share)
                generator.fit(batch, classes, weights=weights, optimizers=optimizers)
            check_alive(generator, classes=task.classes, where=f"task {t + 1}")
            scholar = Scholar(frozen(solver), frozen(generator))
        found[name] = accuracy(solver, stream[0].test, classes=(0, 1, 2, 3))
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=600, help="of each task (default: 600)")
    for how, kept in main(parser.parse_args().iterations).items():
        print(f"digits 0 and 1 after learning 2 and 3, {how}: {kept:.1%}")
