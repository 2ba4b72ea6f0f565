"""Measure, print a table, and keep it under docs/results/benchmarks.

python -m benchmarks                       what can be measured
python -m benchmarks loop step importance  these, one after the other
python -m benchmarks all --quick           everything in seconds, to see that it works; nothing is kept
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from benchmarks import importance, loop, step, sweep
from benchmarks.tables import markdown, write

BENCHMARKS = {"loop": loop, "importance": importance, "step": step, "sweep": sweep}
RESULTS = Path(__file__).parents[1] / "docs" / "results" / "benchmarks"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", choices=[[], "all", *BENCHMARKS], metavar="NAME", help="which, or all")
    parser.add_argument("--quick", action="store_true", help="small and few; kept only with --output")
    parser.add_argument("--output", type=Path, help="folder of the tables; default docs/results/benchmarks")
    parser.add_argument("--threads", type=int, help="of torch; default its own choice")
    options = parser.parse_args(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    for name in BENCHMARKS if "all" in options.names else options.names:
        table = BENCHMARKS[name].measure(quick=options.quick)
        print(markdown(table))
        if options.output is not None or not options.quick:
            write(options.output or RESULTS, name, table)
    if not options.names:
        print("Name what to measure, or all of it (--quick: a trial):\n")
        for name, module in BENCHMARKS.items():
            print(f"  {name:<12}{(module.__doc__ or '').splitlines()[0]}")


if __name__ == "__main__":
    main()
