"""Measure, print tables, and keep them under docs/results/benchmarks.

python -m benchmarks                              everything
python -m benchmarks loop step importance         these, one after the other
python -m benchmarks importance --workloads resnet gpt-128
python -m benchmarks --quick                      everything in a minute, to see that it works; nothing is kept

Each part of a table is written as soon as it is there, in place of the part of that name: what was stopped goes on
with --workloads, and what changed is measured again alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from benchmarks import (
    batchnorm,
    footprint,
    holding,
    importance,
    loop,
    rehearsal,
    resting,
    rhythm,
    scale,
    sharded,
    step,
    sweep,
)
from benchmarks.tables import check_tables, content_of, keep, markdown
from benchmarks.workloads import WORKLOADS

BENCHMARKS = {
    "loop": loop,
    "importance": importance,
    "step": step,
    "holding": holding,
    "resting": resting,
    "rhythm": rhythm,
    "rehearsal": rehearsal,
    "batchnorm": batchnorm,
    "footprint": footprint,
    "scale": scale,
    "sharded": sharded,
    "sweep": sweep,
}
RESULTS = Path(__file__).parents[1] / "docs" / "results" / "benchmarks"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=f"{__doc__}\n{_listed()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", choices=[[], "all", *BENCHMARKS], metavar="NAME", help="default: all")
    parser.add_argument("--quick", action="store_true", help="a trial: few of everything; kept only with --output")
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, metavar="WORKLOAD", help="; ".join(WORKLOADS))
    parser.add_argument("--output", type=Path, help="folder of the tables; default docs/results/benchmarks")
    parser.add_argument("--threads", type=int, default=1, help="of torch, default 1; with more, time is the wall's")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    chosen = BENCHMARKS if not options.names or "all" in options.names else dict.fromkeys(options.names)
    is_kept = options.output is not None or not options.quick
    if is_kept:
        check_tables(options.output or RESULTS, list(chosen))
    for name in chosen:
        about = BENCHMARKS[name].__doc__ or ""
        for part in BENCHMARKS[name].measure(quick=options.quick, workloads=options.workloads):
            content = content_of(part, quick=options.quick)
            print(markdown(content), flush=True)
            if is_kept:
                keep(options.output or RESULTS, name, about=about, part=part.name, content=content)


def _listed() -> str:
    lines = [f"  {name:<12}{(module.__doc__ or '').splitlines()[0]}" for name, module in BENCHMARKS.items()]
    return "\n".join(["What can be measured:\n", *lines])


if __name__ == "__main__":
    main()
