"""Choose strengths and learning rates on validation data: how the settings of `lab/protocols.py` came about.

    python -m benchmarks.tune permuted-digits --methods ewc-fisher --strengths 1 10 100 --lrs 0.05 0.1 --seeds 1 2

Each setting is the mean over seeds of the average validation accuracy after the last task; test data are never looked
at. Every run is a resumable run folder, so that the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

from holdfast.errors import NotFiniteError
from holdfast.lab.config import configure
from holdfast.lab.running import run


def validation_accuracy(stream: str, method: str, settings: dict, *, seed: int, output: Path) -> float:
    """Average validation accuracy after the last task, 0 where training diverged."""
    config = configure(stream, method, seed=seed, **settings)
    try:
        return run(config, output=output).validation_accuracy[-1]
    except NotFiniteError:
        return 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stream")
    parser.add_argument("--methods", nargs="+", required=True)
    parser.add_argument("--strengths", nargs="+", type=float, default=[1.0])
    parser.add_argument("--lrs", nargs="+", type=float, required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--set", nargs="*", default=[], help="other settings, as name=JSON")
    parser.add_argument("--output", type=Path, default=Path("runs/tune"))
    options = parser.parse_args()
    others = {name: json.loads(value) for name, value in (pair.split("=", 1) for pair in options.set)}
    for method in options.methods:
        held = method not in ("none", "joint")
        rows = []
        for lr, strength in itertools.product(options.lrs, options.strengths if held else [None]):
            settings = {"lr": lr, **others, **({"strength": strength} if held else {})}
            found = [
                validation_accuracy(options.stream, method, settings, seed=seed, output=options.output)
                for seed in options.seeds
            ]
            rows.append((sum(found) / len(found), settings))
            print(f"{method:12} {rows[-1][0]:.4f}  {settings}", flush=True)
        best, settings = max(rows, key=lambda row: row[0])
        print(f"{method:12} best {best:.4f}  {settings}", flush=True)


if __name__ == "__main__":
    main()
