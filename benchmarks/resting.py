"""Where the elastic pull rests, and after how many steps: Kronecker layers under Adam's metric, `every`, and clipping.

The exact step is a dense solve; layers, metrics and gradients are random, in float64.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from benchmarks.tables import Part
from holdfast.curvature.implicit import layer_pull
from holdfast.curvature.kronecker import KroneckerCurvature

OUT, N = 12, 20
CLOSE = 0.01
MOST = 5000
"""Steps, after which it counts as not reached."""

Pull = Callable[[Tensor, Tensor | None], Tensor]
"""(theta' - anchor, the pull before) -> the pull."""


def measure(*, quick: bool = False, workloads: Sequence[str] | None = None) -> Iterator[Part]:
    """Three tables; nothing where certain workloads are asked for."""
    if workloads:
        return
    yield metrics(seeds=1 if quick else 5, conditions=(1e2,) if quick else (1e2, 1e4, 1e6))
    yield rhythm()
    yield clipping()


def metrics(*, seeds: int, conditions: Sequence[float]) -> Part:
    """Steps to within 1% by the condition of M and the strength."""
    rows = []
    for condition in conditions:
        for force in (1e4, 1e6):
            found = [_steps(seed, condition, force) for seed in range(seeds)]
            rows.append(
                {
                    "condition of M": f"{condition:.0e}",
                    "strength S / M": f"{force / 1e4:.0e} to {force:.0e}",
                    **{column: statistics.median(row[column] for row in found) for column in found[0]},
                }
            )
    note = (
        f"Layers [{OUT}, {N}] with curvatures that decay over four decades in a random basis, M log-uniform weight by "
        f"weight; medians over {seeds} seeds; {MOST}: not reached. *Task*: a constant gradient, from the anchor, to "
        "within 1% of the fixed point (root of the foreseen rise). *theta' still*: to within 1% of the exact step, in "
        "the norm of what it minimises. A pull costs 2.5 products with the basis; *majorised*, its first line alone, "
        "costs one and is not stable where M changes."
    )
    return Part("metrics", "Steps to within 1%, under a metric for each weight", [note], rows)


def _steps(seed: int, condition: float, force: float) -> dict[str, int]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs_basis, outputs_basis = (torch.linalg.qr(normal(k, k))[0] for k in (N, OUT))
    decays = (torch.arange(1, k + 1, dtype=torch.float64) ** -1.5 for k in (OUT, N))
    spectrum = torch.outer(*decays).clamp(min=1e-4)
    layer = KroneckerCurvature(inputs_basis, outputs_basis, spectrum, shape=(OUT, N), bias=None)
    drawn = torch.rand(OUT, N, generator=generator, dtype=torch.float64)
    M, gradient, start = condition ** (drawn - 0.5), normal(OUT, N), normal(OUT, N)
    U = torch.kron(layer.outputs_basis, layer.inputs_basis)
    K = force * (U * layer.spectrum.flatten()) @ U.T
    A = torch.diag(M.flatten()) + K
    rests = -torch.linalg.solve(K, gradient.flatten()).reshape(OUT, N)

    def ours(d: Tensor, before: Tensor | None) -> Tensor:
        return layer_pull(d, layer, force, metric=M, before=before)[0]

    def exact(d: Tensor, before: Tensor | None) -> Tensor:
        return -torch.linalg.solve(A, K @ d.flatten()).reshape(OUT, N)

    def majorised(d: Tensor, before: Tensor | None) -> Tensor:
        T = M.max()
        carried = torch.zeros_like(d) if before is None else (1 - M / T) * before
        share = force * layer.spectrum / (force * layer.spectrum + T)
        return carried - layer.matrix(share * layer.coordinates(d + carried))

    def off(d: Tensor, there: Tensor, norm: Tensor) -> bool:
        far, whole = (float(x.flatten() @ norm @ x.flatten()) for x in (d - there, there))
        return far > CLOSE**2 * whole

    def with_task(pull: Pull) -> int:
        d, p, count = torch.zeros_like(M), None, 0
        while off(d, rests, K) and count < MOST:
            d = d - gradient / M
            p = pull(d, p)
            d, count = d + p, count + 1
        return count

    def still(pull: Pull) -> int:
        there, p, count = exact(start, None), None, 0
        while (p is None or off(p, there, A)) and count < MOST:
            p, count = pull(start, p), count + 1
        return count

    return {
        "task: exact": with_task(exact),
        "task: ours": with_task(ours),
        "task: majorised": with_task(majorised),
        "theta' still: ours": still(ours),
        "theta' still: majorised": still(majorised),
    }


def rest(h: float, a: float, *, every: int = 1, clip: float | None = None) -> float:
    """Where a weight comes to rest just after a pull, as a share of the way from the anchor (0) to the task (1).

    Args:
        h: the task's curvature times the learning rate, under SGD.
        a: strength * Omega times the learning rate.
        every: steps from pull to pull.
        clip: the largest step of the task's gradient; None for no clip.
    """
    x = 0.0
    for t in range(1, 20_001):
        step = h * (1 - x)
        x += step if clip is None else min(step, clip)
        if t % every == 0:
            x /= 1 + every * a
    return x


def rhythm() -> Part:
    """What `every` shifts, at the strength where it shifts most."""
    rows = []
    for h in (0.02, 0.1, 0.5):
        for every in (2, 5, 10):
            u = (1 - (1 - h) ** every) / every
            a = (h * u) ** 0.5
            rows.append({"lr h": h, "every": every, "rests at": rest(h, a, every=every), "every=1": rest(h, a)})
    note = (
        "One weight under SGD; 0: the anchor, 1: the task's own minimum, at curvature h. The strength is the one where "
        "the two lie furthest apart, lr strength Omega = sqrt(lr h u), u = (1 - (1 - lr h)^every)/every; at others "
        "they lie closer."
    )
    return Part("every", "Where a weight rests by `every`", [note], rows)


def clipping() -> Part:
    """What a clip of the task's gradient shifts."""
    rows = [
        {
            "clip, of the gradient at rest": share,
            "rests at": rest(0.01, 0.01, clip=share * 0.01 / 2),
            "of the way without": 2 * rest(0.01, 0.01, clip=share * 0.01 / 2),
        }
        for share in (2.0, 1.0, 0.79, 0.5, 0.25)
    ]
    note = (
        "One weight under SGD whose balance without a clip is half of the way. A clip that is active at rest takes the "
        "place of the gradient in the balance."
    )
    return Part("clip", "Where a weight rests under a gradient clip", [note], rows)
