from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.language import tiny

import holdfast as hf
from holdfast.errors import (
    BatchError,
    EmptyDataError,
    MemoryShortageError,
    OptionError,
    RunMismatchError,
    UnsupportedLayerError,
)
from holdfast.language import measuring
from holdfast.language.batches import Example, batches, drawn, examples
from holdfast.language.measuring import MeasuringProgress, measure_importance
from holdfast.language.models import LanguageModel, load_model
from holdfast.language.rows import read_rows
from holdfast.language.skills import likelihood_of


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return load_model(str(tiny.encoder(tmp_path_factory.mktemp("encoder"))))


@pytest.fixture(scope="module")
def pairs(encoder: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    path = tiny.pairs(tmp_path_factory.mktemp("data") / "pairs.csv", count=200)
    return list(examples(encoder, read_rows(str(path)), length=16, labelled=True))


def stream(found: list[Example]) -> Any:
    return lambda: iter(found)


def test_parts_add_up_to_the_whole(encoder: LanguageModel, pairs: list[Example]):
    found, progress = measure_importance(encoder, stream(pairs), kind="exact")
    whole = hf.fisher(encoder.module, batches(encoder, pairs, 50), loss=likelihood_of("similarity"))
    assert list(found) == [name.removeprefix("encoder.") for name in whole]
    assert all(torch.allclose(found[name], whole[f"encoder.{name}"], rtol=1e-4, atol=1e-9) for name in found)
    assert (found.info.kind, found.info.num_examples, found.info.unit) == ("fisher-exact", 200, "nats/weight^2")
    assert progress.num_examples == 200


@pytest.mark.parametrize("kind", ["sampled", "empirical", "mas", "signal"])
def test_every_kind_is_measured(encoder: LanguageModel, pairs: list[Example], kind: Any):
    found, _ = measure_importance(encoder, stream(pairs), kind=kind, num_examples=70)
    assert found.info.num_examples == 70
    assert sum(float(value.sum()) for value in found.values()) > 0


def test_kronecker_factors_of_the_parts_are_those_of_the_whole(tmp_path: Path):
    causal = load_model(str(tiny.causal(tmp_path / "causal")))
    path = str(tiny.prose(tmp_path / "prose.txt", lines=400))
    found = list(examples(causal, read_rows(path), length=16, labelled=False))[:100]
    options: dict[str, Any] = {"kind": "kfac", "checkpoint": tmp_path / "state", "checkpoint_seconds": 0.0}
    with pytest.raises(Killed):
        measure_importance(causal, cut(found, 90), **options)
    factored, progress = measure_importance(causal, stream(found), **options)
    assert isinstance(factored, hf.FactoredImportance)
    assert (factored.info.kind, factored.info.num_examples, progress.num_examples) == ("kfac-sampled", 100, 100)
    one, _ = measure_importance(causal, stream(found), kind="kfac")
    assert isinstance(one, hf.FactoredImportance)
    loss = likelihood_of("causal-lm")
    parts = [
        hf.kfac(causal.module, batches(causal, some, 8), kind="sampled", loss=loss, seed=seed)
        for seed, some in enumerate((found[:64], found[64:]))
    ]
    name = "transformer.h.0.mlp.c_fc.weight"
    f, whole, a, b = (each[name] for each in (factored, one, *parts))
    assert f.inputs_first
    assert torch.equal(f.inputs, whole.inputs)
    traces = 0.64 * a.trace(), 0.36 * b.trace()
    assert f.trace() == pytest.approx(sum(traces))
    inputs, outputs = (
        sum(t / sum(traces) * m / m.trace() for t, m in zip(traces, (getattr(each, part) for each in (a, b))))
        for part in ("inputs", "outputs")
    )
    torch.testing.assert_close(f.inputs / f.inputs.trace(), inputs)
    torch.testing.assert_close(f.outputs / f.outputs.trace(), outputs)
    assert factored.info.details["factors"] == "auto"
    assert name in str(factored.info.details["matched"]).split(", ")
    embedding = "transformer.wte.weight"
    expected = 0.64 * parts[0].diagonal[embedding] + 0.36 * parts[1].diagonal[embedding]
    torch.testing.assert_close(factored.diagonal[embedding], expected)


def test_of_an_encoder_they_bear_the_names_of_its_own_model(
    encoder: LanguageModel, pairs: list[Example], tmp_path: Path
):
    single = list(examples(encoder, read_rows(str(tiny.prose(tmp_path / "a.txt"))), length=16, labelled=False))
    found, _ = measure_importance(encoder, stream(single), kind="kfac")
    assert isinstance(found, hf.FactoredImportance)
    weight = "encoder.layer.0.output.dense.weight"
    assert found[weight].bias == "encoder.layer.0.output.dense.bias"
    assert weight in str(found.info.details["matched"]).split(", ")
    hf.EWC(encoder.base, strength=1.0).retain(found)
    with pytest.raises(UnsupportedLayerError, match="both texts of a pair. Give single texts, or another --kind"):
        measure_importance(encoder, stream(pairs), kind="kfac")


def test_the_stated_error_is_the_real_one(encoder: LanguageModel, pairs: list[Example]):
    told: list[MeasuringProgress] = []
    drawn = torch.randint(200, (1024,), generator=torch.Generator().manual_seed(1)).tolist()
    found, last = measure_importance(encoder, stream([pairs[n] for n in drawn]), on_part=told.append, batch_size=64)
    exact, _ = measure_importance(encoder, stream(pairs), kind="exact", batch_size=64)
    real = sum((found[n] - exact[n]).square().sum() for n in exact) / sum(exact[n].square().sum() for n in exact)
    assert told[0].error is None
    assert last.error is not None
    assert last.error / 2.5 < float(real) ** 0.5 < last.error * 2.5
    assert "relative error about" in last.text
    assert "two halves of the data agree to 0.9" in last.text


def test_it_stops_when_it_is_enough(encoder: LanguageModel, pairs: list[Example]):
    found, progress = measure_importance(encoder, stream(pairs * 20), kind="exact", tolerance=0.3, batch_size=64)
    assert 256 <= found.info.num_examples < 4000
    assert progress.error is not None
    assert progress.error < 0.3


class Killed(Exception):
    pass


def cut(found: list[Example], after: int) -> Any:
    def gone() -> Iterator[Example]:
        raise Killed
        yield

    return lambda: chain(iter(found[:after]), gone())


def test_killed_it_goes_on_to_the_same_numbers(encoder: LanguageModel, pairs: list[Example], tmp_path: Path):
    path = tmp_path / "state.safetensors"
    options: dict[str, Any] = {"kind": "sampled", "checkpoint": path, "checkpoint_seconds": 0.0}
    with pytest.raises(Killed):
        measure_importance(encoder, cut(pairs, 150), **options)
    told: list[MeasuringProgress] = []
    found, progress = measure_importance(encoder, stream(pairs), on_part=told.append, **options)
    assert [each.num_examples for each in told] == [192, 200]
    whole, uninterrupted = measure_importance(encoder, stream(pairs), kind="sampled")
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    assert (progress.error, progress.agreement) == (uninterrupted.error, uninterrupted.agreement)
    with pytest.raises(RunMismatchError, match="of a measurement with another kind, data. Delete it to begin anew"):
        measure_importance(encoder, stream(pairs), kind="exact", checkpoint=path, identity={"data": "other"})
    path.unlink()
    measure_importance(
        encoder, stream(pairs), kind="exact", checkpoint=path, identity={"data": "other"}, num_examples=10
    )


def test_a_part_of_sorted_data_is_drawn_from_all_of_it(encoder: LanguageModel, pairs: list[Example], tmp_path: Path):
    asked: list[Example] = []

    def watched() -> Iterator[Example]:
        for pair in pairs:
            asked.append(pair)
            yield pair

    path = tmp_path / "state.safetensors"
    options: dict[str, Any] = {"kind": "exact", "num_examples": 100, "seed": 3}
    found, progress = measure_importance(encoder, watched, **options)
    assert (progress.num_examples, len(asked)) == (100, 200)  # the stream was read to its end
    first, _ = measure_importance(encoder, stream(pairs[:100]), kind="exact")
    assert any(not torch.allclose(found[name], first[name]) for name in found)
    picked = list(drawn(pairs, 100, seed=3))
    expected, _ = measure_importance(encoder, stream(picked), kind="exact")
    assert all(torch.equal(found[name], expected[name]) for name in found)

    def kill(progress: MeasuringProgress) -> None:
        raise Killed

    with pytest.raises(Killed):
        measure_importance(encoder, watched, checkpoint=path, checkpoint_seconds=0.0, on_part=kill, **options)
    told: list[MeasuringProgress] = []
    again, _ = measure_importance(encoder, watched, checkpoint=path, on_part=told.append, **options)
    assert [each.num_examples for each in told] == [100]
    assert all(torch.equal(found[name], again[name]) for name in found)
    with pytest.raises(RunMismatchError, match="of a measurement with another examples. Delete it to begin anew"):
        measure_importance(encoder, watched, checkpoint=path, **{**options, "num_examples": 80})


def test_short_of_memory_it_takes_smaller_batches(
    encoder: LanguageModel, pairs: list[Example], monkeypatch: pytest.MonkeyPatch
):
    sizes: list[int] = []
    fisher = measuring.fisher

    def limited(model: Any, data: Any, **options: Any) -> Any:
        content = list(data)
        sizes.append(max(len(targets) for _, targets in content))
        if sizes[-1] > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return fisher(model, content, **options)

    monkeypatch.setattr(measuring, "fisher", limited)
    limit = 3
    found, _ = measure_importance(encoder, stream(pairs), kind="exact", num_examples=128)
    assert sizes == [8, 4, 2, 2]  # the second part begins where the first one fitted
    monkeypatch.undo()
    whole, _ = measure_importance(encoder, stream(pairs), kind="exact", num_examples=128)
    assert all(torch.allclose(found[name], whole[name], rtol=1e-4, atol=1e-9) for name in whole)
    limit = 0
    monkeypatch.setattr(measuring, "fisher", limited)
    with pytest.raises(MemoryShortageError, match="with one example at a time .* Shorten the examples with --length"):
        measure_importance(encoder, stream(pairs), kind="exact")

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(measuring, "fisher", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        measure_importance(encoder, stream(pairs), kind="exact")


def test_a_causal_model_and_a_classifier(tmp_path: Path):
    causal = load_model(str(tiny.causal(tmp_path / "causal")))
    path = str(tiny.prose(tmp_path / "prose.txt"))
    found, _ = measure_importance(causal, lambda: examples(causal, read_rows(path), length=14, labelled=False))
    assert "transformer.wte.weight" in found
    assert found.info.loss == "categorical"
    blocks = [len(one.tokens[0]) for one in examples(causal, read_rows(path), length=14, labelled=False)]
    assert len(set(blocks)) == 2  # the last block is shorter
    assert (found.info.num_examples, found.info.num_targets) == (len(blocks), sum(blocks) - len(blocks))
    classifier = load_model(str(tiny.classifier(tmp_path / "classifier")))
    found, _ = measure_importance(classifier, lambda: examples(classifier, read_rows(path), length=16, labelled=False))
    assert found.info.num_examples == 80  # no labels are needed where they are drawn
    with pytest.raises(BatchError, match="no label for .* Labels are needed here: name their column with --label"):
        measure_importance(
            classifier, lambda: examples(classifier, read_rows(path), length=16, labelled=True), kind="empirical"
        )


def test_what_cannot_be_measured_is_said(encoder: LanguageModel, pairs: list[Example], tmp_path: Path):
    with pytest.raises(EmptyDataError, match="importance: the data held no example"):
        measure_importance(encoder, stream([]))
    with pytest.raises(OptionError, match="--examples is 0; expected a whole number >= 1"):
        measure_importance(encoder, stream(pairs), num_examples=0)
    path = str(tiny.prose(tmp_path / "prose.txt"))
    single = list(examples(encoder, read_rows(path), length=16, labelled=False))
    with pytest.raises(OptionError, match="every embedding of a sentence has length one"):
        measure_importance(encoder, stream(single), kind="mas")
    assert measure_importance(encoder, stream(single))[0].info.num_examples == 80
