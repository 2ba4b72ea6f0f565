"""The layers that each of several processes measures: `python -m tests.integrations.factors_in_shards FOLDER`."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tests import many
from tests.integrations import in_shards
from tests.integrations.in_shards import COUNT, LLAMA, Measurement, built, sharded, share, state_of
from torch.distributed.fsdp import MixedPrecisionPolicy

import holdfast as hf
from holdfast.curvature.factored import factors_to_tensors
from holdfast.files import write_json

SAMPLED = partial(hf.kfac, kind="sampled")
LOCAL = partial(hf.mas, local=True, others="zero")


def _points(rows: slice) -> list[Any]:
    return in_shards.points(rows, 5)


def _images(rows: slice) -> list[Any]:
    return in_shards.points(rows, 2, 4, 4)


def _measured(model: Any, data: list[Any]) -> hf.Importance | hf.FactoredImportance:
    return hf.measure(model, data, probes=data)


TOWER = partial(Measurement, in_shards.tower, _points, inner=lambda model: (model[2][0], model[2]))

CASES = {
    "sampled": LLAMA(SAMPLED),
    "expand": LLAMA(partial(SAMPLED, factors="expand")),
    "reduce": LLAMA(partial(hf.kfac, kind="empirical", factors="reduce")),
    "top classes, damped": LLAMA(partial(hf.kfac, top_k=3, damping=0.01)),
    "blocks, shared": LLAMA(partial(SAMPLED, share_inputs=True, max_size=16, block_size=8, chunk_bytes=4096)),
    "checkpoints, uneven": LLAMA(
        partial(hf.kfac, kind="empirical", factors="matched"), prepare=in_shards.checkpointed, uneven=True
    ),
    "bfloat16": LLAMA(
        partial(hf.kfac, kind="empirical"),
        options={"mp_policy": MixedPrecisionPolicy(torch.bfloat16, torch.float32)},
        rough=True,
    ),
    "copies of shards": LLAMA(SAMPLED, several=True),
    "not resharded": LLAMA(SAMPLED, options={"reshard_after_forward": False}),
    "exact, uneven": TOWER(hf.kfac, uneven=True),
    "images": Measurement(in_shards.Chosen, _images, hf.kfac, lambda model: (model.conv,)),
    "experts": Measurement(in_shards.Experts, _points, partial(hf.kfac, kind="empirical")),
    "attention": Measurement(in_shards.Attending, _images, hf.kfac),
    "twice": Measurement(in_shards.Twice, _points, hf.kfac, lambda model: (model.block,)),
    "measure": TOWER(_measured, uneven=True),
    "measure texts": LLAMA(_measured),
    "local": LLAMA(LOCAL, uneven=True),
    "local, images": Measurement(in_shards.Chosen, _images, LOCAL, lambda model: (model.conv,)),
    "local, experts": Measurement(in_shards.Experts, _points, LOCAL),
    "mas of all": LLAMA(partial(hf.mas, batched=True), uneven=True),
}
OF_FOUR = {name: CASES[name] for name in ("sampled", "copies of shards", "images")}
BATCHED = partial(hf.fisher, kind="batched")


def joint() -> list[Any]:
    """Batches that all processes have together."""
    pairs = zip(*(in_shards.texts(rows) for rows in (slice(0, 6), slice(6, COUNT))))
    return [{key: torch.cat([first[key], second[key]]) for key in first} for first, second in pairs]


def own_part(batch: dict[str, torch.Tensor], rank: int) -> dict[str, torch.Tensor]:
    return {key: value[2 * rank : 2 * rank + 2] for key, value in batch.items()}


def num_bytes(found: hf.FactoredImportance) -> int:
    """What factors take in memory; those that several layers have, once."""
    tensors = {tensor.data_ptr(): tensor for layer in found.values() for tensor in layer.tensors().values()}
    return sum(tensor.nbytes for tensor in tensors.values())


def measured(case: Measurement, folder: Path, name: str, rank: int, world: int) -> dict[str, Any]:
    """Measure a case, leave this process's layers and the diagonal in the folder, and tell of the rest."""
    if case.several and world == 4:
        model = built(case)
        model = many.spread_over(model, case.inner(model), 2, 2)
    else:
        model = sharded(case, world)
    before = state_of(model)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        found = case.estimator(model, share(case, rank, world))
    assert state_of(model) == before, name
    if isinstance(found, hf.FactoredImportance):
        own = {key: value.clone() for key, value in factors_to_tensors(found)[0].items()}
        save_file(own, folder / f"{name}-{rank}.safetensors")
        told = {"bytes": num_bytes(found), "forms": factors_to_tensors(found)[1], "names": found.parameter_names()}
        told["elsewhere"] = {layer: [each.owner, each.layer.form] for layer, each in found.elsewhere.items()}
    else:
        told = {}
    diagonal = many.whole(found.diagonal.items())
    if rank == 0:
        save_file(diagonal, folder / f"{name}.safetensors")
    told["info"] = [found.info.kind, found.info.num_examples, found.info.num_targets, dict(found.info.details)]
    told["model"], told["warned"] = found.info.model, [str(each.message) for each in warned]
    if found.probes is not None:
        told["probes"] = [found.probes.num_examples, found.probes.rise(model)]
    if name == "expand":
        found.save(folder / "saved")
        (2.0 * found.with_info(kind="twice")).save(folder / "saved twice")
    return told


def refusals(rank: int, folder: Path) -> dict[str, str]:
    """How each process ends where one of them fails."""
    own = share(CASES["images"], rank, 2)

    def broken() -> Iterator[Any]:
        yield own[0]
        if rank:
            raise KeyError("gone")
        yield from own[1:]

    nan = [(torch.full_like(own[0][0], torch.nan) if rank else own[0][0], own[0][1])]
    attempts = {
        "no data": lambda model: hf.kfac(model, [] if rank else own),
        "no data, measure": lambda model: hf.measure(model, [] if rank else own, probes=own),
        "broken data": lambda model: hf.kfac(model, broken()),
        "broken data, local": lambda model: LOCAL(model, broken()),
        "not a number": lambda model: hf.kfac(model, nan, kind="empirical"),
        "not a number, diagonal": lambda model: hf.fisher(model, nan, kind="empirical"),
        "no folder": lambda model: hf.kfac(model, own).save(folder / "saved" / "README.md"),
    }
    told = {}
    for name, attempt in attempts.items():
        model = sharded(CASES["images"], 2)
        before = state_of(model)
        try:
            attempt(model)
        except Exception as error:
            told[name] = f"{type(error).__name__}: {error}"
        assert state_of(model) == before, name
    return told


def main(folder: Path, rank: int, world: int) -> None:
    cases = CASES if world == 2 else OF_FOUR
    told: dict[str, Any] = {name: measured(case, folder, name, rank, world) for name, case in cases.items()}
    if world == 2:
        model = sharded(LLAMA(), world)
        found = BATCHED(model, [own_part(batch, rank) for batch in joint()])
        of_all = many.whole(found.items())
        if rank == 0:
            save_file(of_all, folder / "batched.safetensors")
        told["refusals"] = refusals(rank, folder)
    write_json(folder / f"told-{rank}.json", told)


if __name__ == "__main__":
    with many.member() as (own, count):
        main(Path(sys.argv[1]), own, count)
