"""I: new classes of natural images without old data, on the features of a ready network."""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast import AnalyticHead
from holdfast.errors import DataFileError
from holdfast.lab import configure, run
from holdfast.lab.streams import Task, digits, fingerprint, load_data
from holdfast.lab.streams.download import cache_folder, placed
from holdfast.lab.tables import Estimate
from recipes.backbone import EfficientNetLite0
from recipes.findings import Recipe, RecipeFindings, percent, points
from recipes.lines import Size
from recipes.page import markdown
from recipes.pictures import dots

SOURCE = "McDonnell et al. 2023, arXiv 2307.02251 (RanPAC); Hayes and Kanan 2020, arXiv 1909.01520 (SLDA)"
STREAMS = {"5 x 2": 2, "10 x 1": 1}
"""Name -> new classes a task."""

HEADS: dict[str, dict[str, Any]] = {
    "class means": {"kind": "means"},
    "SLDA": {"kind": "slda"},
    "ridge": {"kind": "ridge"},
    "ridge, 2,000 random features": {"kind": "ridge", "projection": 2000},
}
RIVALS: dict[str, tuple[str, dict[str, tuple[Any, ...]]]] = {
    "plain": ("none", {"lr": (1e-4, 1e-3, 1e-2)}),
    "LwF": ("lwf", {"lr": (1e-4, 1e-3, 1e-2)}),
    "EWC": ("ewc-fisher", {"strength": (1.0, 100.0, 1e4)}),
    "replay, 500 kept": ("er", {"lr": (1e-4, 1e-3, 1e-2)}),
}
"""Of a linear layer that is trained: a method, and what is tried of it."""

LOGISTIC = "joint logistic regression"
_DECAYS = (1e-3, 1e-2, 1e-1, 1.0)
_PARTS = ("train", "validation", "test")


def cifar_ready(size: Size) -> Recipe:
    """The recipe."""
    full = size.name == "full"
    return Recipe(
        name="cifar-ready",
        title="New classes on the features of a ready network",
        question="Classes of CIFAR-10 come two by two, or one by one, and no old image is kept: how far is a head that "
        "is solved from sums behind one that has all data at once, and training behind both?",
        source=SOURCE,
        claim="Ridge regression on random features of a frozen network is as good as a linear probe on all data.",
        size=size,
        conclude=_conclude,
        draw=_draw,
        measure=partial(_measured, size),
        measure_seeds=size.num_seeds(3),
        measure_seconds=400.0 if full else 10.0,
        table=_table,
        notes="Features are the 1,280 numbers that the head of EfficientNet-Lite0 reads, with its ImageNet weights, of "
        "pictures enlarged to 96 x 96 pixels: 5,500 to train, 500 to validate, 2,000 to test. The order of the classes "
        "is another under each seed. What is trained is a linear layer on the same features, by Adam, ten epochs a "
        "task in batches of 64; of each method the best of three settings on validation data is told, of the joint "
        "regression that of four penalties. Replay alone keeps old data."
        if full
        else "",
    )


def features(data_dir: str | None) -> dict[str, np.ndarray]:
    """Features and labels of CIFAR-10 by part, computed once and kept in the cache.

    Raises:
        DataFileError: the pictures are not there.
    """
    task = load_data(_pictures(data_dir))
    kept = cache_folder() / "features" / f"efficientnet-lite0-96-{fingerprint(task)}.npz"
    if not kept.exists():
        sink = io.BytesIO()
        np.savez(sink, **_computed(task))
        with placed(kept) as file:
            file.write(sink.getvalue())
    with np.load(kept, allow_pickle=False) as found:
        return dict(found)


def _pictures(data_dir: str | None) -> Path:
    folder = Path(data_dir or os.environ.get("HOLDFAST_DATA") or ".") / "cifar10"
    if (folder / "train").is_dir():
        return folder
    if not (folder / "images.tar").is_file():
        raise DataFileError(
            f"{folder}: found neither train and test with a folder a class, nor images.tar. Put one there, or name "
            "another --data-dir."
        )
    unpacked = cache_folder() / "cifar10"
    if not (unpacked / "test").is_dir():
        with tempfile.TemporaryDirectory(dir=_made(cache_folder())) as temporary:
            with tarfile.open(folder / "images.tar") as archive:
                archive.extractall(temporary, filter="data")
            Path(temporary).rename(unpacked)
            Path(temporary).mkdir()  # which the block removes
    return unpacked


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@torch.no_grad()
def _computed(task: Task) -> dict[str, Any]:
    net, found = EfficientNetLite0(len(task.classes)).eval(), {}
    for name in _PARTS:
        part = getattr(task, name)
        found[f"x_{name}"] = torch.cat([net.features(pictures) for pictures, _ in part.batches(50)]).numpy()
        found[f"y_{name}"] = part.targets.numpy()
    return found


def linear(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """A network of one layer, which reads features."""
    return nn.Sequential(nn.Flatten(), nn.Linear(input_shape[0], outputs))


def _measured(size: Size, seed: int, data_dir: str | None) -> dict[str, Any]:
    found = features(data_dir) if size.name == "full" else _pixels()
    order = torch.randperm(10, generator=torch.Generator().manual_seed(seed)).numpy()
    arrays = {name: order[array] if name[0] == "y" else array for name, array in found.items()}
    x, y = ({part: torch.from_numpy(arrays[f"{kind}_{part}"]) for part in _PARTS} for kind in "xy")
    return {
        "heads": {name: _solved(x, y, options) for name, options in HEADS.items()},
        "joint": _logistic(x, y),
        "rivals": {name: _rival(arrays, method, tried, seed) for name, (method, tried) in RIVALS.items()},
    }


def _pixels() -> dict[str, np.ndarray]:
    task, found = digits(), {}
    for name in _PARTS:
        part = getattr(task, name)
        found |= {f"x_{name}": part.inputs.flatten(1).numpy(), f"y_{name}": part.targets.numpy()}
    return found


def _solved(x: Mapping[str, Tensor], y: Mapping[str, Tensor], options: dict[str, Any]) -> dict[str, float]:
    """Class by class and in pairs, which come to the same head; and how far that is from all data at once."""
    joint = AnalyticHead(**options).fit(x["train"], y["train"])
    told: dict[str, float] = {}
    wanted = joint.scores(x["test"])
    furthest = 0.0
    for stream, count in STREAMS.items():
        head = AnalyticHead(**options)
        for start in range(0, 10, count):
            new = (y["train"] >= start) & (y["train"] < start + count)
            head.fit(x["train"][new], y["train"][new])
        scores = head.scores(x["test"])
        furthest = max(furthest, float((scores - wanted).abs().max() / wanted.abs().max()))
        told[stream] = _right(scores.argmax(1), y["test"])
    return {**told, "all at once": _right(wanted.argmax(1), y["test"]), "difference": furthest}


def _logistic(x: Mapping[str, Tensor], y: Mapping[str, Tensor]) -> dict[str, float]:
    """Logistic regression on all data, its penalty chosen on validation data."""
    mean, scale = x["train"].mean(0), x["train"].std(0) + 1e-6
    seen = {part: (values - mean) / scale for part, values in x.items()}
    found = []
    for decay in _DECAYS:
        weight = torch.zeros(seen["train"].shape[1], 10, requires_grad=True)
        bias = torch.zeros(10, requires_grad=True)
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

        def closure(weight: Tensor = weight, bias: Tensor = bias, decay: float = decay, by: Any = optimizer) -> Tensor:
            by.zero_grad()
            loss = F.cross_entropy(seen["train"] @ weight + bias, y["train"]) + decay / 2 * weight.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)  # pyright: ignore[reportArgumentType]
        with torch.no_grad():
            rights = {part: _right((seen[part] @ weight + bias).argmax(1), y[part]) for part in ("validation", "test")}
        found.append((rights["validation"], decay, rights["test"]))
    best = max(found)
    return {"penalty": best[1], "validation": best[0], "test": best[2]}


def _rival(
    arrays: Mapping[str, np.ndarray], method: str, tried: dict[str, tuple[Any, ...]], seed: int
) -> dict[str, dict[str, Any]]:
    ((option, values),) = tried.items()
    given: dict[str, Any] = {"net": "recipes.cifar_ready:linear", "epochs": 10, "batch_size": 64, "optimizer": "adam"}
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "features.npz")
        stored: dict[str, Any] = dict(arrays)
        np.savez(path, **stored)
        for stream, count in STREAMS.items():
            own = {**given, "data": path, "scenario": "class", "classes_per_task": count, "seed": seed}
            if option != "lr":
                own["lr"] = 1e-3
            results = [run(configure("split", method, **{**own, option: value}), output=folder) for value in values]
            best = max(results, key=lambda result: result.validation_accuracy[-1])
            chosen = values[results.index(best)]
            found[stream] = {"test": best.final_accuracy, option: chosen}
    return found


def _right(predicted: Tensor, labels: Tensor) -> float:
    return round(float((predicted == labels).double().mean()), 4)


def _rows(findings: RecipeFindings) -> dict[str, dict[str, Estimate]]:
    """Label -> stream -> accuracy over seeds."""
    entries = list(findings.measured.values())
    rows = {
        name: {stream: Estimate.of([entry["heads"][name][stream] for entry in entries]) for stream in STREAMS}
        for name in HEADS
    }
    rows |= {
        name: {stream: Estimate.of([entry["rivals"][name][stream]["test"] for entry in entries]) for stream in STREAMS}
        for name in RIVALS
    }
    joint = Estimate.of([entry["joint"]["test"] for entry in entries])
    return {**rows, LOGISTIC: dict.fromkeys(STREAMS, joint)}


def _table(findings: RecipeFindings) -> str:
    lines = [["method", *(f"{stream} %" for stream in STREAMS), "seeds"]]
    for label, own in _rows(findings).items():
        lines.append([label, *(percent(own[stream]) for stream in STREAMS), str(len(findings.measured))])
    return markdown(lines)


def _conclude(findings: RecipeFindings) -> str:
    entries, rows = list(findings.measured.values()), _rows(findings)
    furthest = max(entry["heads"][name]["difference"] for entry in entries for name in HEADS)
    behind = {
        name: Estimate.of([entry["heads"][name]["10 x 1"] - entry["joint"]["test"] for entry in entries])
        for name in HEADS
    }
    without = {name: rows[name] for name in RIVALS if not name.startswith("replay")}
    best = {stream: max(without, key=lambda name: without[name][stream].mean) for stream in STREAMS}
    rivals = " and ".join(f"{stream} {percent(without[best[stream]][stream])} ({best[stream]})" for stream in STREAMS)
    told = ", ".join(f"{name} {points(value)}" for name, value in behind.items())
    return (
        "A head that is solved is that of all data at once, whatever the order: in float32 its scores differ by "
        f"{furthest:.1g} of the largest at most. Beside joint logistic regression it is at {told} points. The best "
        f"that is trained without old data ends at {rivals}."
    )


def _draw(findings: RecipeFindings, folder: Path) -> list[Path]:
    rows = {label: own["10 x 1"] for label, own in _rows(findings).items()}
    return [dots(rows, folder / "classes.png", title=f"{findings.recipe.title}, one class a task")]
