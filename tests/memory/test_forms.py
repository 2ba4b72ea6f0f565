"""Many tasks in every form: joined as in float32, within the bound of each rounding."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from holdfast.curvature import Decayed
from holdfast.errors import FileFormatError
from holdfast.memory import Forms, Retained, retain
from holdfast.memory import forms as forms_module
from holdfast.memory import merge as merge_module
from holdfast.memory.codes import ANCHOR_ERROR, BFLOAT16_ERROR, IMPORTANCE_ERROR, IMPORTANCE_FLOOR
from holdfast.memory.stored import Blocks, from_tensors, num_positive, pieces, read, shapes_of_any, to_tensors

CPU = torch.device("cpu")
SHAPE = (13, 61)
ERRORS = {"float32": 0.0, "bfloat16": BFLOAT16_ERROR, "int8": IMPORTANCE_ERROR}
BYTES = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0, "int16": 2.0}

every_rule = pytest.mark.parametrize("rule", ["sum", "mean", "max", "per_task", Decayed(0.5)], ids=str)
every_form = pytest.mark.parametrize(
    "forms", [Forms(*pair) for pair in product(ERRORS, ("float32", "bfloat16", "int16"))]
)


@pytest.fixture(autouse=True, params=[256, 2**20], ids=["in pieces", "whole"])
def _in_pieces(request, monkeypatch):
    for module in (forms_module, merge_module):
        monkeypatch.setattr(module, "PIECE", request.param)


def drawn(seed: int) -> tuple[Tensor, Tensor]:
    """An importance, a quarter of it zero, and weights."""
    generator = torch.Generator().manual_seed(seed)
    importance = torch.rand(SHAPE, generator=generator).pow(6)
    importance[torch.rand(SHAPE, generator=generator) < 0.25] = 0.0
    return importance, torch.randn(SHAPE, generator=generator)


def after(num_tasks: int, *, rule, forms: Forms | None = None, **options) -> Retained:
    held = Retained()
    for task in range(num_tasks):
        importance, weight = drawn(task)
        held = retain(held, {"w": importance}, weights={"w": weight}, rule=rule, forms=forms, **options)
    return held


def dense(held) -> Tensor:
    return read(held, dtype=torch.float32, device=CPU)


@every_form
@every_rule
def test_every_rule_in_every_form(rule, forms):
    held, exact = after(3, rule=rule, forms=forms), after(3, rule=rule)
    importance, truth = dense(held.importance["w"]), exact.importance["w"]
    # a rounding to the nearest, and then two of at most twice the error
    error = (1 + ERRORS[forms.importance]) * (1 + 2 * ERRORS[forms.importance]) ** 2 - 1
    assert ((importance - truth).abs() <= error * truth + 4 * IMPORTANCE_FLOOR).all()
    assert torch.equal(importance == 0, truth == 0)
    assert held.largest == importance.max()
    anchor, at = dense(held.anchors["w"]), exact.anchors["w"]
    if rule != "per_task":
        bound = {"float32": 0 * at, "bfloat16": BFLOAT16_ERROR * at.abs(), "int16": ANCHOR_ERROR * at.abs().max()}
        assert ((anchor - at).abs() <= bound[forms.anchors]).all()
    else:  # the shares of the tasks move with the importances, where these are above the floor
        assert (anchor - at).abs()[truth > 1e-6].max() <= (0.4 if forms.importance == "int8" else 0.05)
        assert held.constant == pytest.approx(exact.constant, rel=2 * error + 0.02)


@every_form
def test_the_rise_at_the_start_is_that_of_the_rounded_anchors(forms):
    for rule in ("sum", "per_task"):
        held = after(2, rule=rule, forms=forms)
        distance = drawn(1)[1] - dense(held.anchors["w"])
        rise = 0.5 * (dense(held.importance["w"]) * distance.square()).sum()
        assert held.start == pytest.approx(float(rise), rel=1e-5)
        assert (held.start == 0) == (forms.anchors == "float32" and rule == "sum")


@every_form
def test_bytes_of_a_weight(forms):
    held = after(2, rule="sum", forms=forms)
    numel = drawn(0)[0].numel()
    for entry, form in ((held.importance["w"], forms.importance), (held.anchors["w"], forms.anchors)):
        assert entry.nbytes == BYTES[form] * numel + (-(-numel // 256) if form.startswith("int") else 0)


def test_rounding_is_the_same_every_time_and_leaves_all_random_numbers_alone():
    forms = Forms("int8", "int16")
    first = after(3, rule="sum", forms=forms)
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    second = after(3, rule="sum", forms=forms)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first.importance["w"].codes, second.importance["w"].codes)


def test_many_small_tasks_add_up():
    """In 8 bits and in 16: each adds less than a rounding to the nearest would notice."""
    for form in ("int8", "bfloat16"):
        held, num_tasks = Retained(), 600
        for _ in range(num_tasks):
            held = retain(held, {"w": torch.ones(512)}, weights={}, forms=Forms(form))
        assert dense(held.importance["w"]).mean() == pytest.approx(num_tasks, rel=0.02)


def test_a_weight_that_is_new_and_one_that_is_missing():
    forms = Forms("int8", "int16")
    one, other = torch.rand(300), torch.rand(300)
    first = retain(Retained(), {"a": one}, weights={"a": one}, forms=forms)
    second = retain(first, {"b": other}, weights={"b": other}, rule="mean", forms=forms)
    assert list(second.importance) == ["b", "a"]
    torch.testing.assert_close(dense(second.importance["a"]), one / 2, rtol=0.2, atol=0)
    assert second.anchors["a"] is first.anchors["a"]
    torch.testing.assert_close(dense(second.anchors["b"]), other, rtol=0, atol=2 * ANCHOR_ERROR)


def test_a_new_form_takes_over_what_another_held():
    held = after(1, rule="sum")
    for importance, anchors in product(ERRORS, ("float32", "bfloat16", "int16")):
        forms = Forms(importance, anchors)
        changed = forms.importance_as(held.importance["w"])
        torch.testing.assert_close(dense(changed), held.importance["w"], rtol=ERRORS[importance], atol=1e-9)
        assert forms.importance_as(changed) is changed
        moved = forms.anchor_as(held.anchors["w"], drawn(0)[1])
        torch.testing.assert_close(dense(moved), held.anchors["w"], rtol=BFLOAT16_ERROR, atol=4 * ANCHOR_ERROR)
        assert forms.anchor_as(moved, drawn(0)[1]) is moved
        back = Forms().anchor_as(moved, drawn(0)[1])
        assert isinstance(back, Tensor)


@pytest.mark.parametrize("form", ["float32", "bfloat16", "int16"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_anchors_of_weights_that_are_not_float32(dtype, form):
    weight = torch.randn(700).to(dtype)
    held = retain(Retained(), {"w": torch.ones(700)}, weights={"w": weight}, forms=Forms(anchors=form))
    error = (read(held.anchors["w"], dtype=torch.float64, device=CPU) - weight).abs()
    if form == "float32" or (form == "bfloat16" and dtype == torch.bfloat16):
        assert error.max() == 0
    elif form == "bfloat16":
        assert (error <= BFLOAT16_ERROR * weight.abs()).all()
    else:
        assert error.max() <= ANCHOR_ERROR * weight.abs().max()


@every_form
def test_pieces_are_the_whole(forms):
    held = after(1, rule="sum", forms=forms)
    for entry in (held.importance["w"], held.anchors["w"]):
        parts = [dense(piece) for piece in pieces(entry, 256)]
        assert [len(part) for part in parts] == [256, 256, 256, 13 * 61 - 768]
        assert torch.equal(torch.cat(parts), dense(entry).flatten())
        assert shapes_of_any({"w": entry})["w"].shape == SHAPE
        out = torch.full(SHAPE, 7.0)
        assert torch.equal(read(entry, dtype=torch.float32, device=CPU, out=out), dense(entry))
    assert num_positive(held.importance["w"]) == (drawn(0)[0] > 0).sum()


@every_form
def test_to_files_and_back(forms):
    held = after(1, rule="sum", forms=forms)
    for entries in (held.importance, held.anchors):
        again = from_tensors(*to_tensors(entries), where="here")
        assert torch.equal(dense(again["w"]), dense(entries["w"]))
        assert type(again["w"]) is type(entries["w"])


@pytest.mark.parametrize("wrong", ["missing", "short", "large", "dtype"])
def test_codes_without_their_exponents(wrong):
    held = after(1, rule="sum", forms=Forms("int8")).importance
    tensors, exponents = to_tensors({"a": held["w"], "b": held["w"], "c": torch.ones(2)})
    match wrong:
        case "missing":
            exponents = {}
        case "short":
            exponents = {name: value[:1] for name, value in exponents.items()}
        case "large":
            exponents = {name: torch.full_like(value, 255) for name, value in exponents.items()}
        case "dtype":
            tensors = {name: value.int() for name, value in tensors.items()}
    with pytest.raises(
        FileFormatError, match=r"^here: 'a', 'b'(, 'c')? are in 8 or 16 bits, and the exponents of their"
    ):
        from_tensors(tensors, exponents, where="here")


def test_offloading_keeps_the_host_s_copies():
    forms = Forms("int8", "bfloat16", offload=True)
    held = after(2, rule="sum", forms=forms)
    assert held.importance["w"].device == held.anchors["w"].device == CPU
    assert isinstance(forms.placed(held.importance["w"], torch.device("meta")), Blocks)
    assert forms.placed(held.importance["w"], torch.device("meta")).device == CPU
    assert Forms("int8").placed(held.importance["w"], torch.device("meta")).device.type == "meta"
