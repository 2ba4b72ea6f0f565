"""A minute on handwritten digits: a network forgets when trained plainly, and remembers with holdfast."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.files import check_output, new_folder
from holdfast.lab.canvas import check_matplotlib
from holdfast.lab.config import configure
from holdfast.lab.folder import RunFolder
from holdfast.lab.groups import group_results
from holdfast.lab.plots import accuracy_curves, accuracy_matrices
from holdfast.lab.pool import one_thread
from holdfast.lab.result import RunResult
from holdfast.lab.running import EventCallback, run

STREAM = "permuted-digits"
DEMO_METHODS = (
    "none",
    "ewc-fisher",
    "ewc-mas",
    "ewc-si",
    "ewc-signal",
    "ewc-taylor",
    "wva-fisher",
    "ewc-kfac",
    "joint",
)
"""From the floor to the ceiling; WVA with the importance that is best for it on validation data."""


@dataclass(frozen=True)
class Demo:
    """What the demonstration leaves behind.

    Attributes:
        results: one a method.
        accuracy: the PNG of average accuracy against tasks.
        matrix: the PNG of the accuracy matrices.
    """

    results: list[RunResult]
    accuracy: Path
    matrix: Path


def demo(
    *,
    output: str | os.PathLike[str] = "runs",
    seed: int = 0,
    device: str = "cpu",
    methods: Sequence[str] = DEMO_METHODS,
    settings: Mapping[str, Any] | None = None,
    on_event: EventCallback | None = None,
) -> Demo:
    """Learn five tasks of permuted digits with each method in turn, and draw what became of them.

    The settings are those of the stream's protocol, chosen on validation data. The runs stand in `output` as any others
    do, the pictures in `output`/demo. What is finished is not run again.

    Args:
        output: parent of the run folders.
        seed: of all runs.
        device: as torch names it.
        methods: names of the methods.
        settings: fields of `RunConfig`, above the protocol's.
        on_event: called with {"event": "run", "method", "number", "of"} before each run, and then with its events.

    Raises:
        OptionError: matplotlib is not installed, or an unknown setting.
        OutputError: `output` cannot be written, or a folder that is needed in it is not ours.
    """
    check_matplotlib()
    folder = Path(output) / "demo"
    check_output(folder, names=("accuracy.png", "matrix.png"))
    configs = [configure(STREAM, method, seed=seed, **(settings or {})) for method in methods]
    for config in configs:
        RunFolder(Path(output) / config.name, config)
    results = []
    with one_thread():
        for number, config in enumerate(configs):
            if on_event is not None:
                on_event({"event": "run", "method": config.method, "number": number, "of": len(configs)})
            results.append(run(config, output=output, device=device, on_event=on_event))
    groups = group_results(results)
    with new_folder(folder) as fresh:
        accuracy = accuracy_curves(groups, fresh / "accuracy.png").name
        matrix = accuracy_matrices(groups, fresh / "matrix.png").name
    return Demo(results=results, accuracy=folder / accuracy, matrix=folder / matrix)
