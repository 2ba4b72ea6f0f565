"""Results of runs that never were, of known figures."""

from __future__ import annotations

from typing import Any

from holdfast.lab.result import RunResult, summarise


def result(
    method: str = "ewc-fisher", *, seed: int = 0, kept: float = 0.9, num_tasks: int = 3, **changes: Any
) -> RunResult:
    """A run that learns each task to 1.0, and from the next task on holds it at `kept`; 0.1 before it is learned."""
    matrix = [[1.0 if j == t else kept if j < t else 0.1 for j in range(num_tasks)] for t in range(num_tasks)]
    settings = {name: changes.pop(name) for name in list(changes) if name not in RunResult.__dataclass_fields__}
    stream = changes.pop("stream", "permuted-digits")
    config = {"stream": stream, "method": method, "seed": seed, "scenario": None, "num_tasks": None, "lr": 0.1}
    fields: dict[str, Any] = {
        "scenario": "domain",
        "seconds": 3.0,
        "seconds_training": 2.0,
        "seconds_importance": 0.5,
        "config": {**config, **settings},
        "versions": {"holdfast": "0.1.0", "torch": "2.13.0", "python": "3.11.7"},
        "keeper": "" if method in ("none", "joint") else "EWC: 3 tasks held",
        **summarise(
            matrix, [[value - 0.05 for value in row[: t + 1]] for t, row in enumerate(matrix)], [0.1] * num_tasks
        ),
    }
    return RunResult(stream=stream, method=method, seed=seed, **{**fields, **changes})
