"""What a configuration says of memory, held against what models of that configuration take."""

import importlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarks.footprint import CASES, WEIGHTS, read_configuration
from benchmarks.scale import arithmetic_table, planned_table, read_sizes
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import holdfast as hf
from holdfast.errors import OptionError, UnknownNameError
from holdfast.language.footprint import Footprint, Hold, ModelPlace, measuring, training
from holdfast.language.live_bytes import LiveBytes, pass_bytes
from holdfast.language.planning import (
    HELD,
    Question,
    as_bytes,
    cheapest_measuring,
    cheapest_training,
    enough_devices,
    measuring_command,
    memory_rows,
    training_command,
)
from holdfast.language.sizes import LLAMAS, Activations, Sizes, blocks_of, configuration, sizes_of
from holdfast.language.skills import likelihood_of

DOCS = Path(__file__).parents[2] / "docs"
KEPT = {"float32": Activations(0, 0.0), "bfloat16": Activations(0, 0.0)}
FEW = Sizes(
    num_weights=1_000_000,
    largest=1000,
    is_tied=False,
    block=200_000,
    rest=200_000,
    sides=((400, 500), (800, 1000)),
    vocabulary=800,
    activations=KEPT,
    checkpointed=KEPT,
)
"""One without activations, of which a million weights are a megabyte a byte."""
CPU32, CPU16 = (ModelPlace(dtype, on_cuda=False) for dtype in ("float32", "bfloat16"))


def _tiny(**given: object) -> LlamaConfig:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    return LlamaConfig(vocab_size=100, num_key_value_heads=2, **sizes, **given)


def _bytes(found: Footprint, *names: str) -> int:
    return sum(item.num_bytes for item in found.items if item.name in names)


# --- passes


def test_a_pass_through_one_layer_by_hand():
    with torch.device("meta"):
        layer, x = nn.Linear(8, 4), torch.empty(2, 8)
    # at the most: the gradients of weight and bias, the loss, and its own gradient; the outputs are gone by then
    assert pass_bytes(layer, lambda module: module(x).sum()) == 4 * (4 * 8 + 4 + 2)
    assert layer.weight.grad is None


@pytest.mark.parametrize("tied", [False, True])
def test_shapes_tell_what_a_real_pass_takes(tied):
    config = _tiny(tie_word_embeddings=tied)
    sizes = sizes_of(config, dtypes=("float32",), length=24, num_examples=4)
    model = LlamaForCausalLM(config).train()
    tokens = torch.randint(100, (4, 24))
    live = LiveBytes(model)
    with live:
        outputs = model(input_ids=tokens)
        likelihood_of("causal-lm").nll(outputs, ({}, tokens)).sum().backward()
    gradients = 4 * sizes.num_weights
    assert sizes.num_weights == sum(parameter.numel() for parameter in model.parameters())
    assert sizes.activations["float32"].of(4) == pytest.approx(live.peak, rel=0.1, abs=gradients)
    assert sizes.checkpointed["float32"].of(4) < 0.8 * sizes.activations["float32"].of(4)


def test_the_sizes_of_a_folder_with_a_configuration_alone(tmp_path):
    _tiny(tie_word_embeddings=True).save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    sizes = sizes_of(configuration(str(tmp_path)), dtypes=("bfloat16",), length=8, num_examples=2)
    block = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48 + 2 * 32
    assert (sizes.block, sizes.rest, sizes.num_weights) == (block, 100 * 32 + 32, 3 * block + 100 * 32 + 32)
    assert sizes.largest == 3200
    assert sizes.is_tied
    assert sizes.in_layers == 3 * (block - 64)
    assert sizes.factors() == 3 * (2 * (32**2 + 32**2) + 2 * (32**2 + 16**2) + 3 * (32**2 + 48**2))
    assert sizes.factors(max_size=40, block_size=24) == sizes.factors() - 3 * 3 * 48 * 24
    assert len(blocks_of(LlamaForCausalLM(_tiny()))) == 3


def test_a_configuration_that_is_none(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no-such-model"}))
    with pytest.raises(OptionError, match="its configuration cannot be used"):
        configuration(str(tmp_path))
    with pytest.raises(OptionError, match="no config.json"):
        configuration(str(Path(__file__).parent))


# --- footprints


@pytest.mark.parametrize(
    ("place", "hold", "optimizer", "expected"),
    [
        (CPU32, Hold(), "adamw", 16),
        (CPU32, Hold(), "sgd", 8),
        (CPU32, Hold("ewc"), "adamw", 16 + 4 + 4),
        (CPU32, Hold("ewc", "bfloat16", "bfloat16"), "adamw", 16 + 2 + 2),
        (CPU32, Hold("ewc", "int8", "reference"), "sgd", 8 + 1 + 1 / 256),
        (CPU32, Hold("wva", "int8"), "adamw", 16 + 1 + 1 / 256),
        (CPU16, Hold(), "adamw", 8),
        (CPU16, Hold("ewc"), "adamw", 8 + 4 + 2 + 2 + 2),
        (CPU16, Hold("wva"), "adamw", 8 + 4 + 2 + 2),
        (CPU16, Hold("ewc", "int8", "int16"), "adamw", 8 + (1 + 2 + 2 / 256) + 2 + 2),
    ],
)
def test_bytes_of_a_weight_in_training(place, hold, optimizer, expected):
    found = training(FEW, place, hold, optimizer=optimizer, num_examples=1, length=8)
    rows = _bytes(found, "a block of weights", "roots of one tensor's second moments")
    assert found.in_all - rows == pytest.approx(expected * FEW.num_weights, abs=4 * FEW.largest)


def test_bytes_of_a_weight_in_measuring():
    for place, width in ((CPU32, 4), (CPU16, 2)):
        found = measuring(FEW, place, num_examples=1, in_parts=True)
        assert found.on_device == (width + 4) * FEW.num_weights + 4 * FEW.largest
        assert found.on_host == 4 * FEW.num_weights
    factors = 4 * (400**2 + 500**2 + 800**2 + 1000**2)
    found = measuring(FEW, CPU32, kind="kfac", num_examples=1, in_parts=False)
    assert _bytes(found, "factors A and G") in (factors, 0)
    assert found.in_all >= 4 * FEW.num_weights + factors


def test_what_is_offloaded_is_on_the_host():
    found = training(FEW, CPU32, Hold("ewc", offload=True), num_examples=1, length=8)
    assert found.on_host == 8 * FEW.num_weights
    dreams = training(FEW, CPU32, Hold(dreams=10), num_examples=1, length=8)
    assert dreams.on_host == _bytes(dreams, "dreams") > 0


def test_shards_divide_what_is_of_weights_and_gather_groups():
    alone = training(FEW, ModelPlace(), Hold("ewc"), num_examples=1, length=8)
    shards = training(FEW, ModelPlace("bfloat16", "shards", 4), Hold("ewc"), num_examples=1, length=8)
    replicas = training(FEW, ModelPlace("bfloat16", "replicas", 4), Hold("ewc"), num_examples=1, length=8)
    for name in ("weights", "gradients", "importance", "anchors", "moments of the optimizer"):
        assert 4 * _bytes(shards, name) == _bytes(alone, name) == _bytes(replicas, name) > 0
    assert _bytes(shards, "weights of groups, gathered") == 2 * (FEW.rest + 2 * FEW.block)
    assert _bytes(replicas, "buckets of gradients") == 2 * FEW.num_weights
    assert replicas.on_device == alone.on_device + 2 * FEW.num_weights


def test_gradients_that_accumulate_are_there_beside_activations():
    sizes = replace(FEW, activations={"float32": Activations(0, 1e8)})
    once = training(sizes, CPU32, Hold(), num_examples=1, length=8)
    more = training(sizes, CPU32, Hold(), num_examples=1, length=8, accumulates=True)
    assert more.in_all - once.in_all == 4 * FEW.num_weights


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kronecker_factors_take_what_is_foreseen(dtype):
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    place = ModelPlace(dtype, on_cuda=False)
    sizes = sizes_of(config, dtypes=(dtype,), length=16, num_examples=2)
    model = LlamaForCausalLM(config).to(getattr(torch, dtype)).eval()
    tokens = torch.randint(300, (2, 16))
    batch = {"input_ids": tokens, "labels": tokens}
    weights, live = place.width * sizes.num_weights, LiveBytes(model)
    with live:
        factors = hf.kfac(model, [batch], kind="sampled")
    foreseen = measuring(sizes, place, kind="kfac", num_examples=2, in_parts=False).in_all
    assert live.peak + weights == pytest.approx(foreseen, rel=0.1)
    for form in ("float32", "bfloat16"):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        keeper = hf.EWC(model, strength=1.0, every=1, importance_dtype=form).retain(factors).attach(optimizer)
        model.train()
        held = {
            part.data_ptr(): part.nbytes for each in keeper.held.layers.values() for part in each.tensors().values()
        }
        anchors = sum(anchor.nbytes for anchor in keeper.held.anchors.values())
        rest = sum(value.nbytes for value in keeper.held.importance.values())
        live = LiveBytes(model)
        with live:
            for _ in range(2):
                optimizer.zero_grad()
                model(**batch).loss.backward()
                optimizer.step()
        seen = live.peak + weights
        found = training(sizes, place, Hold("kronecker", form), num_examples=2, length=16)
        assert _bytes(found, "bases and spectra") == pytest.approx(sum(held.values()), rel=0.02)
        assert _bytes(found, "importance of the rest") == rest
        assert _bytes(found, "anchors") == anchors
        assert seen <= 1.1 * found.in_all
        keeper.detach()
        for parameter in model.parameters():
            parameter.grad = None


def test_every_item_names_code_that_is_there():
    asked = Question(FEW, 4, 10**9, 8, 16)
    given = [Question(FEW, 1, 10**9, 8, 16, on_cuda=False), replace(asked, dtype="float32"), asked]
    items = {
        item for each in given for row in memory_rows(each) for found in row.found.values() for item in found.items
    }
    assert len({item.name for item in items}) > 15
    for source in {item.source for item in items}:
        if source == "peft":
            continue
        module, _, name = source.rpartition(".")
        try:
            found = getattr(importlib.import_module(module), name)
        except AttributeError:
            found = importlib.import_module(source)
        assert found is not None


def test_unknown_names_are_refused():
    with pytest.raises(UnknownNameError, match="unknown spread 'everywhere'"):
        ModelPlace(spread="everywhere")
    with pytest.raises(UnknownNameError, match="unknown importance 'int4'"):
        Hold("ewc", "int4")


# --- plans


@pytest.mark.parametrize(
    ("text", "expected"),
    [("80GB", 80 * 10**9), ("24 GiB", 24 * 2**30), ("1.5TB", 15 * 10**11), ("512MB", 512 * 10**6)],
)
def test_sizes_that_people_write(text, expected):
    assert as_bytes(text) == expected


@pytest.mark.parametrize("text", ["80", "GB", "0GB", "-1GB", "80 gigabytes", "8KB"])
def test_sizes_that_are_none(text):
    with pytest.raises(OptionError, match=r"--memory is .*such as 80GB"):
        as_bytes(text)


def test_every_method_form_and_phase_has_a_row():
    rows = memory_rows(Question(FEW, 2, 10**9, 8, 16))
    assert len(rows) == 3 + len(HELD)
    assert all(set(row.found) == {"replicas", "shards"} for row in rows)
    assert {row.phase for row in rows} == {"measure", "train"}


def test_the_cheapest_plan_gives_up_ever_more_as_memory_shrinks():
    model = read_sizes()["llama-1b"]
    found = []
    for gigabytes in range(120, 8, -2):
        asked = Question(model, 1, gigabytes * 10**9, 16, 1024)
        plan = cheapest_training(asked)
        if plan is None:
            break
        assert plan.footprint.on_device <= asked.memory
        assert plan.batch_size * plan.accumulate >= 16
        found.append((plan.checkpointing, plan.options.count("--"), plan.accumulate))
    assert found == sorted(found, key=lambda each: each[:2])
    assert found[0] == (False, 0, 1)
    assert found[-1][1] > 0
    assert found[-1][2] == 16
    assert cheapest_training(Question(model, 1, 10**9, 16, 1024)) is None


def test_commands():
    model = read_sizes()["llama-1b"]
    asked = Question(model, 1, 40 * 10**9, 16, 1024)
    plan = cheapest_training(asked)
    assert plan is not None
    told = training_command(plan, asked, "meta-llama/Llama-3.2-1B")
    assert told.startswith("holdfast finetune meta-llama/Llama-3.2-1B NEW --keep KEEP --method ewc --budget 0.05")
    assert f"--batch-size {plan.batch_size} --accumulate {plan.accumulate}" in told
    many = replace(asked, num_devices=16)
    plan = cheapest_measuring(many)
    assert plan is not None
    assert measuring_command(plan, many, "m").startswith(
        "torchrun --nnodes 2 --nproc-per-node 8 -m holdfast importance m"
    )
    large = Question(read_sizes()["llama-70b"], 64, 80 * 10**9, 64, 1024)
    plan = cheapest_training(large)
    assert plan is not None
    assert plan.spread == "shards"
    assert training_command(plan, large, "m") == ""
    plan = cheapest_measuring(large)
    assert plan is not None
    told = measuring_command(plan, large, "m")
    assert told.startswith("torchrun --nnodes 8 --nproc-per-node 8 -m holdfast importance m DATA -o KEEP --shard ")
    assert "--calibrate" not in told


def test_more_devices_until_it_fits():
    asked = Question(read_sizes()["llama-70b"], 1, 80 * 10**9, 64, 1024)
    count = enough_devices(asked)
    assert count is not None
    assert cheapest_training(replace(asked, num_devices=count)) is not None
    assert cheapest_training(replace(asked, num_devices=count // 2)) is None
    assert enough_devices(replace(asked, memory=10**6), most=8) is None


# --- what was measured, and what pages say


def test_what_is_foreseen_is_within_a_tenth_of_what_was_measured():
    part = json.loads((DOCS / "results/benchmarks/footprint.json").read_text())["parts"]["llama"]
    assert len(part["rows"]) >= 5
    config = read_configuration(WEIGHTS)
    for row in part["rows"]:
        found = CASES[row["what"]].foreseen(config)
        assert found.in_all / 2**20 == pytest.approx(row["measured, MB"], rel=0.1), row["what"]
        assert found.in_all / 2**20 == pytest.approx(row["foreseen, MB"], rel=1e-6), row["what"]


def test_the_tables_of_the_page_are_what_is_foreseen():
    page = (DOCS / "scale.md").read_text()
    assert planned_table() in page
    assert arithmetic_table() in page


@pytest.mark.parametrize(
    ("hold", "row", "expected"),
    [
        (Hold(), "plain fine-tuning", 10),
        (Hold("ewc"), "with EWC", 20),
        (Hold("ewc", "int8", "reference"), "with EWC, `--importance-dtype int8 --anchors MODEL`", 15),
        (Hold("wva"), "with WVA", 18),
        (Hold("wva", "int8"), "with WVA, `--importance-dtype int8`", 15),
    ],
)
def test_the_bytes_of_a_weight_that_the_page_states(hold, row, expected):
    found = training(FEW, ModelPlace(), hold, num_examples=1, length=8)
    beside = _bytes(found, "a block of weights", "CUDA itself, about")
    assert round((found.on_device - beside) / FEW.num_weights) == expected
    line = f"| **{row}** | **{expected}** | **{1.236 * expected:.1f} GB** | **{8.03 * expected:.1f} GB** |"
    assert line in (DOCS / "elephants.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", LLAMAS)
def test_the_committed_sizes(name):
    assert sizes_of(configuration(name), dtypes=("bfloat16",), length=1024, num_examples=16) == read_sizes()[name]
