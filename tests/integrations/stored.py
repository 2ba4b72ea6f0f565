"""What each of several processes does with what is held in shards and on disk: `python -m tests.integrations.stored`.

    FOLDER train      two processes: synaptic intelligence, anchors on disk, what is compared before it is held
    FOLDER write      any number of processes train, hold and write a checkpoint and a folder
    FOLDER read       any number of processes read both, go on, and write them again

The test does the same in one process.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from tests import many
from tests.integrations import spread
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard

import holdfast as hf
from holdfast.files import write_json
from holdfast.integrations.sharding import room_for

STEPS = 100

PATHS: dict[str, dict[str, Any]] = {
    "momentum": {},
    "adam": {},
    "next gradient": {"gradient": "after"},
    "kutalev": {"variant": "kutalev"},
}

ON_DISK = {
    "disk": partial(hf.EWC, strength=3.0, log_every=2),
    "disk, bfloat16": partial(hf.EWC, strength=3.0, importance_dtype="bfloat16", log_every=2),
    "offload": partial(hf.EWC, strength=3.0, offload="cpu", log_every=2),
}

HELD = {
    "ewc": partial(hf.EWC, strength=3.0, log_every=2),
    "wva": partial(hf.WVA, strength=30.0, log_every=2),
    "int8": partial(hf.EWC, strength=3.0, importance_dtype="int8", anchor_dtype="int16", log_every=2),
}


def llama() -> nn.Module:
    """Grouped queries, and an embedding tied to the head."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 61, "hidden_size": 16, "intermediate_size": 24, "max_position_embeddings": 16}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, tie_word_embeddings=True))


def columns() -> nn.Module:
    """The last layer is cut along its inputs, so that a process's part is no one stretch of a file."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))


def batch(step: int, rank: int, world: int) -> tuple[Tensor, Tensor]:
    """This process's share of the step's examples."""
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(8, 3, generator=generator)
    return inputs[rank::world], (inputs.sum(1) > 0).long()[rank::world]


def loss_of(model: nn.Module, step: int, rank: int, world: int) -> Tensor:
    inputs, targets = batch(step, rank, world)
    return nn.functional.cross_entropy(model(inputs), targets)


def optimizer_of(model: nn.Module, kind: str = "adam") -> torch.optim.Optimizer:
    return spread.OPTIMIZERS[kind](model.parameters())


def followed(
    model: nn.Module, name: str, rank: int = 0, world: int = 1, *, steps: range = range(STEPS)
) -> tuple[hf.SynapticIntelligence, torch.optim.Optimizer]:
    """Synaptic intelligence over so many steps; under the second half a keeper holds what it found in the first."""
    optimizer = optimizer_of(model, "momentum" if name == "momentum" else "adam")
    path = hf.SynapticIntelligence(model, **PATHS[name]).attach(optimizer)
    keeper = hf.EWC(model, strength=2.0).attach(optimizer)
    for step in steps:
        optimizer.zero_grad()
        loss_of(model, step, rank, world).backward()
        optimizer.step()
        if name == "kutalev":
            path.after_step(partial(loss_of, model, step, rank, world))
        if step == STEPS // 2:
            keeper.retain(path.importance())
    return path, optimizer


def held_to(model: nn.Module, name: str, folder: Path, rank: int = 0, world: int = 1) -> hf.EWC:
    """Trained, held to anchors that are in a file or in the host's memory, and trained again."""
    optimizer = optimizer_of(model)
    steps(model, optimizer, range(3), rank, world)
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-{world}.safetensors"
    state = many.whole(model.named_parameters())
    if rank == 0 and "disk" in name:
        save_file(state, path)
    if world > 1:
        torch.distributed.barrier()
    keeper = ON_DISK[name](model, **({"anchors": path} if "disk" in name else {})).attach(optimizer)
    keeper.retain(hf.fisher(model, [batch(0, rank, world)]))
    steps(model, optimizer, range(3, 10), rank, world)
    return keeper


def steps(
    model: nn.Module, optimizer: torch.optim.Optimizer, numbers: range, rank: int = 0, world: int = 1
) -> nn.Module:
    for step in numbers:
        optimizer.zero_grad()
        loss_of(model, step, rank, world).backward()
        optimizer.step()
    return model


def retained(model: nn.Module, name: str, rank: int = 0, world: int = 1) -> tuple[Any, torch.optim.Optimizer]:
    """A keeper of a model that was measured and held, and trained under it."""
    optimizer = optimizer_of(model, "momentum")
    keeper = HELD[name](model).attach(optimizer)
    keeper.retain(hf.fisher(model, [batch(0, rank, world), batch(1, rank, world)]))
    steps(model, optimizer, range(4), rank, world)
    return keeper, optimizer


def texts(step: int, rank: int, world: int) -> dict[str, Tensor]:
    ids = torch.randint(61, (8, 9), generator=torch.Generator().manual_seed(step))[rank::world]
    return {"input_ids": ids, "labels": ids}


def learned(model: nn.Module, mechanism: str, rank: int = 0, world: int = 1, *, count: int = 10) -> nn.Module:
    """A language model that is measured, held, and trained on."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    keeper = HELD[mechanism](model).attach(optimizer)
    keeper.retain(hf.fisher(model, [texts(0, rank, world)], kind="empirical"))
    for step in range(1, count):
        optimizer.zero_grad()
        model(**texts(step, rank, world)).loss.backward()
        optimizer.step()
    return model


def sharded(world: int, *shape: int) -> nn.Module:
    model = spread.network()
    return many.spread_over(model, [m for m in model if isinstance(m, nn.Linear)], *(shape or (world,)))


def error_of(call: Callable[[], Any]) -> str:
    try:
        call()
    except hf.HoldfastError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def train(folder: Path, rank: int, world: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    found, told = {}, {}
    for name in PATHS:
        model = sharded(world)
        path, _ = followed(model, name, rank, world)
        importance = path.importance(restart=False)
        told[f"{name}, in parts"] = all(hasattr(value, "to_local") for value in importance.values())
        found |= {f"{name}/importance/{key}": value for key, value in many.whole(importance.items()).items()}
        found |= {f"{name}/weights/{key}": value for key, value in many.whole(model.named_parameters()).items()}
    dcp.save({"path": path.state_dict(), "model": model.state_dict()}, checkpoint_id=folder / "path")
    for name in ON_DISK:
        model = sharded(world)
        keeper = held_to(model, name, folder, rank, world)
        told[name] = spread.figures(keeper)
        told[f"{name}, bytes"] = sum(anchor.nbytes for anchor in keeper.held.anchors.values())
        found |= {f"{name}/{key}": value for key, value in many.whole(model.named_parameters()).items()}
        keeper.save(folder / f"saved {name}")
    model = columns()
    fully_shard(model, shard_placement_fn=lambda p: Shard(1) if p.shape[-1] == 8 and p.ndim == 2 else None)
    held_to(model, "disk", folder / "columns", rank, world)
    found |= {f"columns/{key}": value for key, value in many.whole(model.named_parameters()).items()}

    model = sharded(world)
    keeper = hf.EWC(model, strength=1.0, anchors=folder / "today.safetensors")
    state = many.whole(model.named_parameters())
    if rank == 0:
        save_file(state, folder / "today.safetensors")
    importance = hf.fisher(model, [batch(0, rank, world)])
    if rank:
        keeper.anchors = folder / "nowhere.safetensors"
    told["not on disk"] = error_of(lambda: keeper.retain(importance))
    told["held then"] = keeper.held.num_tasks

    for name, shape in (("sharded", (world,)), ("copies of shards", (world, 1))):
        model = sharded(world, *shape)
        importance = hf.fisher(model, [batch(0, rank, world)])
        changed = dict(importance)
        other: dict[str, Tensor] = many.whole(changed.items()) if name == "sharded" else changed
        if rank:
            other["2.weight"] = 2 * other["2.weight"]
        keeper = hf.EWC(model, strength=1.0)
        told[f"{name}, compared"] = error_of(lambda keeper=keeper, other=other: keeper.retain(other))
        if rank:
            other.pop("0.bias")
        told[f"{name}, of other names"] = error_of(lambda keeper=keeper, other=other: keeper.retain(other))
        told[f"{name}, same"] = error_of(lambda keeper=keeper, importance=importance: keeper.retain(importance))
    taken = hf.EWC(model, strength=1.0).retain(importance)
    told["refused"] = error_of(lambda: taken.save(Path(sys.executable)))
    told["refused, importance"] = error_of(lambda: importance.save(Path(sys.executable)))
    return found, told


def write(folder: Path, rank: int, world: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    for name in HELD:
        model = sharded(world) if world > 1 else spread.network()
        keeper, optimizer = retained(model, name, rank, world)
        keeper.save(folder / f"folder-{name}-{world}")
        store(folder / f"checkpoint-{name}-{world}", model, optimizer, keeper)
    found: dict[str, Tensor] = {}
    if world == 4:
        for mechanism in ("ewc", "wva"):
            model = llama()
            model = many.spread_over(model, model.model.layers, world)
            found |= {
                f"{mechanism}/{k}": v
                for k, v in many.whole(learned(model, mechanism, rank, world).named_parameters()).items()
            }
    return found, {}


def store(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, keeper: Any) -> None:
    """A checkpoint of model, optimizer and keeper, in parts."""
    state = get_state_dict(model, optimizer)
    dcp.save({"model": state[0], "optimizer": state[1], "keeper": keeper}, checkpoint_id=path)


def restored(path: Path, model: nn.Module, name: str) -> tuple[Any, torch.optim.Optimizer]:
    """What `store` wrote, in a new keeper and a new optimizer."""
    optimizer = optimizer_of(model, "momentum")
    keeper = HELD[name](model).attach(optimizer)
    weights, moments = get_state_dict(model, optimizer)
    state = {"model": weights, "optimizer": moments, "keeper": room_for(keeper, path)}
    dcp.load(state, checkpoint_id=path)
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    keeper.load_state_dict(state["keeper"])
    return keeper, optimizer


def read(folder: Path, rank: int, world: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    found, told = {}, {}
    for name in HELD:
        for before in (4, 1):
            model = sharded(world)
            keeper, optimizer = restored(folder / f"checkpoint-{name}-{before}", model, name)
            loaded = type(keeper).load(folder / f"folder-{name}-{before}", model)
            told[f"{name} of {before}"] = [keeper.held.num_tasks, loaded.report().num_steps, keeper.report().num_steps]
            first, second = (many.whole(each.state_dict()["tensors"].items()) for each in (keeper, loaded))
            told[f"{name} of {before}, alike"] = all(torch.equal(first[key], value) for key, value in second.items())
            if before == 4:
                keeper.save(folder / f"folder-{name}-{world}")
                store(folder / f"checkpoint-{name}-{world}", model, optimizer, keeper)
            steps(model, optimizer, range(4, 8), rank, world)
            weights = many.whole(model.named_parameters())
            found |= {f"{name} of {before}/{key}": value for key, value in weights.items()}
    empty = hf.EWC(sharded(world), strength=1.0)
    told["without room"] = error_of(lambda: dcp.load({"keeper": empty}, checkpoint_id=folder / "checkpoint-ewc-4"))
    return found, told


def main(folder: Path, work: str) -> None:
    with many.member() as (rank, world):
        found, told = {"train": train, "write": write, "read": read}[work](folder, rank, world)
    write_json(folder / f"{work}-{world}-{rank}.json", told)
    if rank == 0:
        save_file(found, folder / f"{work}-{world}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
