"""On a GPU: all that only a device can show, in one run of a few minutes.

*Errors*: a held step, and a Fisher, on the device against the CPU, for weights of a tile less one, one, and one more,
laid out in other orders, in float32 and bfloat16, and with products in TF32 allowed. *Memory*: what `holdfast advise`
foresees for CUDA against the most that torch's allocator has given out. *Time*: a held step beside a plain one.

python -m benchmarks.gpu --output FOLDER             on CUDA
python -m benchmarks.gpu --device cpu --quick        to see that it works: memory is that of all tensors in use
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import holdfast as hf
from benchmarks.footprint import CASES, SMALL, WEIGHTS, perform, read_configuration
from benchmarks.holds import drawn
from benchmarks.tables import Part, check_tables, content_of, keep, markdown
from holdfast.language.live_bytes import LiveBytes
from holdfast.retention import Keeper

SHAPES = ((1023,), (1024,), (1025,), (43, 61), (512, 1024))
HOLDS: Mapping[str, Callable[[nn.Module], Keeper]] = {
    "EWC": lambda model: hf.EWC(model, strength=10.0),
    "EWC, codes": lambda model: hf.EWC(model, strength=10.0, importance_dtype="int8", anchor_dtype="bfloat16"),
    "EWC, offload": lambda model: hf.EWC(model, strength=10.0, offload="cpu"),
    "WVA": lambda model: hf.WVA(model, strength=10.0),
}
OPTIMIZERS: Mapping[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
    "AdamW, fused": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, fused=True),
    "AdamW, foreach": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, foreach=True),
}


class _Weights(nn.Module):
    """One weight; `turned` lays it out with its first axis innermost."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, *, turned: bool) -> None:
        super().__init__()
        value = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32).to(dtype)
        self.weight = nn.Parameter(value.T.contiguous().T if turned else value)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="as torch names it; default cuda")
    parser.add_argument("--quick", action="store_true", help="a trial: few of everything")
    parser.add_argument("--output", type=Path, help="folder of gpu.json and gpu.md; left out: only shown")
    options = parser.parse_args(arguments)
    if options.output is not None:
        check_tables(options.output, ["gpu"])
    for part in measure(torch.device(options.device), quick=options.quick):
        content = content_of(part, quick=options.quick)
        print(markdown(content), flush=True)
        if options.output is not None:
            keep(options.output, "gpu", about=__doc__ or "", part=part.name, content=content)


def measure(device: torch.device, *, quick: bool) -> Iterator[Part]:
    """Errors, memory and time."""
    yield errors(device, quick=quick)
    yield products(device, quick=quick)
    yield memory(device, quick=quick)
    yield seconds(device, quick=quick)


def errors(device: torch.device, *, quick: bool) -> Part:
    """The largest difference of weights after three held steps, over the largest weight."""
    rows = []
    for hold in HOLDS:
        for optimizer in list(OPTIMIZERS)[: 2 if quick else None]:
            row: dict[str, Any] = {"hold": hold, "optimizer": optimizer}
            for dtype in (torch.float32, torch.bfloat16):
                for turned in (False, True):
                    shapes = [shape for shape in SHAPES if len(shape) > 1 or not turned]
                    found = [_apart(hold, optimizer, shape, dtype, device, turned=turned) for shape in shapes]
                    name = str(dtype).removeprefix("torch.") + (", turned" if turned else "")
                    row[name] = max(found)
            rows.append(row)
    note = f"On {device} against the CPU; shapes {', '.join(map(str, SHAPES))}. Rounding of bfloat16 is 0.004."
    return Part("errors", "Held steps against the CPU", [note], rows)


def _apart(
    hold: str, optimizer: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, *, turned: bool
) -> float:
    ends = [
        _after_steps(hold, optimizer, shape, dtype, place, turned=turned) for place in (torch.device("cpu"), device)
    ]
    return float((ends[0] - ends[1]).abs().max() / ends[0].abs().max())


def _after_steps(
    hold: str, optimizer: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, *, turned: bool
) -> Tensor:
    model = _Weights(shape, dtype, turned=turned).to(device)
    steps = OPTIMIZERS[optimizer](model.parameters())
    importance = hf.Importance(drawn(model, 0), hf.ImportanceInfo("drawn", num_examples=1, nats_per_unit=1.0))
    HOLDS[hold](model).retain(importance).attach(steps)
    drawing = torch.Generator().manual_seed(1)
    for _ in range(3):
        gradient = torch.randn(shape, generator=drawing, dtype=torch.float32)
        model.weight.grad = gradient.to(device, dtype)
        steps.step()
    return model.weight.detach().cpu().float()


def products(device: torch.device, *, quick: bool) -> Part:
    """A Fisher of linear layers on sequences: the kernel that never writes an example's product to memory."""
    rows = []
    for width in (31, 64, 129) if quick else (31, 64, 129, 512, 1024):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 8))
        data = [(torch.randn(6, 5, width), torch.randint(8, (6, 5)))]
        loss = hf.fisher(model, data, kind="empirical", loss=_of_sequences)
        row: dict[str, Any] = {"width": width}
        allowed = torch.backends.cuda.matmul.allow_tf32
        for tf32 in (False, True):
            torch.backends.cuda.matmul.allow_tf32 = tf32
            try:
                moved = [(x.to(device), y.to(device)) for x, y in data]
                found = hf.fisher(model.to(device), moved, kind="empirical", loss=_of_sequences)
            finally:
                torch.backends.cuda.matmul.allow_tf32 = allowed
                model.to("cpu")
            apart = max(float((found[n].cpu() - v).norm() / v.norm()) for n, v in loss.items())
            row["TF32 allowed" if tf32 else "as it is"] = apart
        rows.append(row)
    return Part(
        "products", "A Fisher against the CPU", ["Norm of the difference over the norm; batches of 6 x 5."], rows
    )


def _of_sequences(outputs: Tensor, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(outputs.movedim(-1, 1), batch[1], reduction="none").sum(dim=1)


def memory(device: torch.device, *, quick: bool) -> Part:
    """What is foreseen against what was given out."""
    given, rows = SMALL if quick else WEIGHTS, []
    on_cuda = device.type == "cuda"
    for name, case in list(CASES.items())[: 2 if quick else None]:
        own = replace(case, place=replace(case.place, on_cuda=on_cuda))
        items = own.foreseen(read_configuration(given)).items
        counted = [
            item.num_bytes for item in items if not on_cuda or (item.on == "device" and item.source != "torch.cuda")
        ]
        found = _most_in_use(lambda own=own: _perform(own, given, device), device)
        rows.append({"what": name, "foreseen, MB": sum(counted) / 2**20, "in use, MB": found / 2**20})
    note = "CUDA's own memory is left out on both sides."
    return Part("memory", f"Memory on {device.type}", [note], rows)


def _perform(case: Any, given: Mapping[str, Any], device: torch.device) -> None:
    with tempfile.TemporaryDirectory() as folder:
        perform(case, given, Path(folder), device=device)


def _most_in_use(call: Callable[[], None], device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    live = LiveBytes(nn.Module())
    with live:
        call()
    return live.peak


def seconds(device: torch.device, *, quick: bool) -> Part:
    """Median time of a step, of one large weight."""
    size = 2**16 if quick else 2**28
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        row: dict[str, Any] = {"dtype": str(dtype).removeprefix("torch."), "weights": size}
        for name in ("plain", *HOLDS):
            row[f"{name}, ms"] = 1e3 * _step_seconds(name, size, dtype, device, rounds=3 if quick else 20)
        rows.append(row)
    return Part("time", f"A step of AdamW on {device.type}", ["Median; the optimizer's own step included."], rows)


def _step_seconds(name: str, size: int, dtype: torch.dtype, device: torch.device, *, rounds: int) -> float:
    model = _Weights((size,), dtype, turned=False).to(device)
    steps = torch.optim.AdamW(model.parameters(), lr=1e-4)
    if name != "plain":
        importance = hf.Importance(drawn(model, 0), hf.ImportanceInfo("drawn", num_examples=1, nats_per_unit=1.0))
        keeper = HOLDS[name](model).retain(importance).attach(steps)
        keeper.log_every = 0
    model.weight.grad = torch.randn_like(model.weight)
    taken = []
    for _ in range(rounds + 2):
        _finished(device)
        began = time.perf_counter()
        steps.step()
        _finished(device)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[2:])


def _finished(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
