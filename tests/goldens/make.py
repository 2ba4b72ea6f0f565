"""Write the goldens anew: `python -m tests.goldens.make`, with one thread (OMP_NUM_THREADS=1).

A golden changes only in a commit that does nothing else: its message says which moved, by how much and why, and
CHANGELOG.md has the same under **Numerics**.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tests.goldens import sharded
from tests.goldens.cases import LORA, cases, one_of_each, run, run_lora, saved_folder
from tests.goldens.stored import TENSORS, tensors, write


def main() -> None:
    torch.set_num_threads(1)
    weights, reports, saved = {}, {}, {}
    for case in cases():
        ended = run(case)
        weights[str(case)], reports[str(case)] = ended.weights(), str(ended.keeper.report())
    for optimizer, strength in LORA:
        name = f"lora {optimizer} {strength}"
        weights[name], reports[name] = run_lora(optimizer, strength)
    with TemporaryDirectory() as folder:
        for number, case in enumerate(one_of_each()):
            path = Path(folder, str(number))
            run(case).keeper.save(path)
            saved[str(case)] = saved_folder(path)
        weights |= {f"sharded {case}": found for case, found in sharded.run(Path(folder)).items()}
    before = tensors() if TENSORS.exists() else {}
    moved = [name for name in weights if name not in before or not torch.equal(weights[name], before[name])]
    write(weights, {"reports": reports, "saved": saved})
    print(f"{len(weights)} goldens, {len(moved)} of them other than before", *moved, sep="\n")


if __name__ == "__main__":
    main()
