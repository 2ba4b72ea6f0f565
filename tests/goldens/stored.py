"""The golden files, the machine they were written on, and how another run is held against them."""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tests.goldens.cases import OPTIMIZERS, data, drawn, flat, network
from torch import Tensor, nn

TENSORS, NOTES = (Path(__file__).with_name(f"goldens.{ending}") for ending in ("safetensors", "json"))
AGAIN = "If that is on purpose: python -m tests.goldens.make, in a commit that does nothing else."


@cache
def fingerprint() -> dict[str, str]:
    """What the bits of a run depend on; the last entry is of weights that torch alone has trained, held by nothing."""
    torch.set_num_threads(1)
    return {
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "arithmetic": _arithmetic(),
    }


def _arithmetic() -> str:
    bits = hashlib.sha256()
    for kind, form in (("momentum", "float32"), ("adam", "float32"), ("adam", "half")):
        model = network(form)
        optimizer = OPTIMIZERS[kind](model.parameters())
        for step in range(20):
            inputs, targets = (tensor.to(model[0].weight.dtype) for tensor in data(step))
            optimizer.zero_grad()
            nn.functional.mse_loss(model(inputs), targets).backward()
            optimizer.step()
        bits.update(flat(model).float().numpy().tobytes())
    rows = torch.randn(20, 7, generator=drawn(1))
    values, vectors = torch.linalg.eigh(rows.T @ rows)
    bits.update((vectors * values.exp().reciprocal()).numpy().tobytes())
    return bits.hexdigest()[:16]


@cache
def tensors() -> dict[str, Tensor]:
    return load_file(TENSORS)


@cache
def notes() -> dict[str, Any]:
    return json.loads(NOTES.read_text(encoding="utf-8"))


def write(weights: Mapping[str, Tensor], entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Both files; `entries` by section and name, each on a line of its own."""
    save_file({name: weights[name].contiguous() for name in sorted(weights)}, TENSORS)
    sections = [
        f"{json.dumps(section)}: {{\n"
        + ",\n".join(f"  {json.dumps(name)}: {json.dumps(value, sort_keys=True)}" for name, value in found.items())
        + "\n}"
        for section, found in {"fingerprint": fingerprint(), **entries}.items()
    ]
    NOTES.write_text("{\n" + ",\n".join(sections) + "\n}\n", encoding="utf-8")


def check_weights(name: str, weights: Tensor) -> None:
    """Assert that they are the stored ones: to the bit where these were written with the same fingerprint."""
    assert name in tensors(), f"no golden of {name!r}. {AGAIN}"
    golden = tensors()[name]
    assert weights.dtype == golden.dtype
    assert weights.shape == golden.shape
    difference = (weights.float() - golden.float()).abs().max().item()
    if _same_bits():
        moved = int((weights != golden).sum())
        assert torch.equal(weights, golden), (
            f"{name}: {moved} of {golden.numel()} weights differ, by {difference:.3g} at most; compared to the bit, as "
            f"the fingerprint is that of the goldens. {AGAIN}"
        )
    rtol, atol = _tolerances(name, golden)
    assert torch.allclose(weights.float(), golden.float(), rtol=rtol, atol=atol), (
        f"{name}: the weights differ by up to {difference:.3g}; compared within rtol {rtol}, atol {atol}, as the "
        f"goldens were written with another fingerprint: {notes()['fingerprint']}, here {fingerprint()}. {AGAIN}"
    )


def check_report(name: str, line: str) -> None:
    """Assert that a report reads as the stored one; with another fingerprint its figures may differ by 2 %."""
    golden = notes()["reports"][name]
    if _same_bits():
        assert line == golden, f"{name}: compared letter by letter, as the fingerprint is that of the goldens. {AGAIN}"
    words, figures = _apart(line)
    golden_words, golden_figures = _apart(golden)
    how = f"{name}: {line!r}, stored {golden!r}; figures compared within 2 %, as the fingerprint is another. {AGAIN}"
    assert words == golden_words, how
    assert all(abs(a - b) <= 2e-2 * abs(b) + 1e-6 for a, b in zip(figures, golden_figures, strict=True)), how


def check_saved(name: str, found: Mapping[str, Any]) -> None:
    """Assert that a folder is laid out as the stored one."""
    assert json.loads(json.dumps(found)) == notes()["saved"][name], f"{name}: {AGAIN}"


def _tolerances(name: str, golden: Tensor) -> tuple[float, float]:
    if golden.dtype == torch.bfloat16:
        return 2e-2, 2e-2
    if name.startswith("lora ") and name.endswith(" inf"):  # their product is pinned to zero, and which of two factors
        return 0.0, 0.1  # gives way is decided by rounding
    return (1e-5, 1e-3 if " int8 " in name else 1e-6)  # an anchor a rounding error away may get another code


def _same_bits() -> bool:
    return fingerprint() == notes()["fingerprint"]


def _apart(line: str) -> tuple[str, list[float]]:
    """The words of a line without its figures, and these."""
    figure = r"(?<![\w.])\d[\d.]*(?:e[+-]?\d+)?"
    return re.sub(figure, "#", line), [float(found.rstrip(".")) for found in re.findall(figure, line)]
