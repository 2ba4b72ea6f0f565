"""Peak memory of `hf.kfac` beside that of a plain training pass of the same batches.

python -m benchmarks.kfac_memory [WORKLOAD ...]    prints a table; a fresh process a line, under a minute together

Each is what is in use at most during a call over two batches, over what model, data and libraries take (`memory.peak`),
and the weights. What K-FAC returns, n^2 + m^2 a layer and the diagonal of the rest, is left out of its column.
"""

from __future__ import annotations

import sys
import warnings

import torch

import holdfast as hf
from benchmarks import memory
from benchmarks.variants import plain_pass
from benchmarks.workloads import WORKLOADS

USUAL = ("mlp-small", "mlp-large", "convnet", "resnet", "gpt-32")


def peaks(name: str, what: str) -> tuple[float, float]:
    """MB that a call takes at most, with the weights, and MB that it returns; in this process, for good."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    workload = WORKLOADS[name]
    model, batches = workload.model(), workload.batches(2)
    returned: list[hf.FactoredImportance] = []

    def call(count: int) -> None:
        if what == "plain":
            plain_pass(model, batches[:count])
        else:
            returned.append(hf.kfac(model, batches[:count], kind="exact" if workload.exact else "sampled"))

    def warmup() -> None:
        call(1)
        returned.clear()

    most = memory.peak(lambda: call(2), warmup=warmup)
    tensors = [t for found in returned for t in (*found.diagonal.values(), *_factors(found))]
    weights = sum(parameter.nbytes for parameter in model.parameters())
    return most + weights / memory.MB, sum(tensor.nbytes for tensor in tensors) / memory.MB


def _factors(found: hf.FactoredImportance) -> list[torch.Tensor]:
    return list({id(tensor): tensor for layer in found.values() for tensor in layer.tensors().values()}.values())


def table(names: list[str]) -> str:
    """A line a workload."""
    lines = [
        "| network | plain MB | K-FAC MB | beyond what it returns | of plain's |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in names:
        preload = ["torch", "benchmarks.variants"]
        plain, _ = memory.in_fresh_process(peaks, name, "plain", preload=preload)
        most, returned = memory.in_fresh_process(peaks, name, "kfac", preload=preload)
        ratio = (most - returned) / plain
        lines.append(f"| {WORKLOADS[name].title} | {plain:.1f} | {most:.1f} | {most - returned:.1f} | {ratio:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(sys.argv[1:] or list(USUAL)))
