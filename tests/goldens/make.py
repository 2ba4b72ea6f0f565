"""Write the goldens anew: `python -m tests.goldens.make`, with one thread (OMP_NUM_THREADS=1).

A golden changes only in a commit that does nothing else: its message says which moved, by how much and why, and
CHANGELOG.md has the same under **Numerics**.
"""

from __future__ import annotations

import torch
from tests.goldens.cases import cases, run
from tests.goldens.stored import TENSORS, tensors, write


def main() -> None:
    torch.set_num_threads(1)
    weights, reports = {}, {}
    for case in cases():
        ended = run(case)
        weights[str(case)], reports[str(case)] = ended.weights(), str(ended.keeper.report())
    before = tensors() if TENSORS.exists() else {}
    moved = [name for name in weights if name not in before or not torch.equal(weights[name], before[name])]
    write(weights, {"reports": reports})
    print(f"{len(weights)} goldens, {len(moved)} of them other than before", *moved, sep="\n")


if __name__ == "__main__":
    main()
