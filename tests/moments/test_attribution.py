"""The example of each row is found exactly, and looked for only where the data may have moved it."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from tests.moments.ragged_zoo import RAGGED, batch, pooled, there
from tests.moments.test_sums import assert_close, by_hand, relative, scores
from tests.moments.zoo import ZOO, Apply, build
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from holdfast.moments import engine
from holdfast.moments.attribution import Attribution
from holdfast.moments.calls import Call
from holdfast.moments.sums import MomentSums


def call_of(lengths: list[int]) -> Call:
    return Call(batch(lengths)[0], {}, len(lengths))


@pytest.fixture
def attributions(monkeypatch: pytest.MonkeyPatch) -> list[Attribution]:
    """Those that the engine makes."""
    made: list[Attribution] = []

    def noted(*args: Any, **kwargs: Any) -> Attribution:
        made.append(Attribution(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(engine, "Attribution", noted)
    return made


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Backward passes of the engine."""
    ran: list[int] = []
    first = engine.pulled

    def counted(*args: Any, **kwargs: Any) -> Any:
        ran.append(1)
        return first(*args, **kwargs)

    monkeypatch.setattr(engine, "pulled", counted)
    return ran


ORDINARY = [name for name in ZOO if ZOO[name][3] == "" and name != "one example at a time"]


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_models_take_one_backward_pass(name: str, attributions: list[Attribution], passes: list[int]):
    model, call = build(name)
    sums = MomentSums(model, phi="square", where="test")
    sums.add(call, lambda outputs: scores(outputs)[:1])
    passes.clear()
    sums.add(call, lambda outputs: scores(outputs)[:1])
    assert not attributions
    assert len(passes) == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_as_many_examples_as_need_several_digits(dtype: torch.dtype):
    torch.manual_seed(1)
    model = RAGGED["unpadded"]().double().eval()
    call = call_of([1 + b * 7 % 6 for b in range(150)])
    expected = by_hand(model, call, "square")
    sums = MomentSums(model.to(dtype), phi="square", where="test")
    sums.add(call, lambda outputs: scores(outputs.to(torch.promote_types(dtype, torch.float32))))
    assert not sums.missed
    rtol = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.2}[dtype]
    assert_close(sums.totals, expected, rtol=rtol)


def test_a_number_that_python_was_told_once_is_known_the_next_time(attributions: list[Attribution]):
    """As `mask.all()` of language models, of which the first examples show one side only."""

    def forward(self: nn.Module, ids: Tensor, lengths: Tensor) -> Tensor:
        h = self.a(self.tokens(ids)).tanh()
        if not bool((lengths == ids.shape[1]).all()):
            h = h * (torch.arange(ids.shape[1])[None] < lengths[:, None]).unsqueeze(-1)
        return self.head(h.mean(1))

    model = Apply(forward, tokens=nn.Embedding(11, 5), a=nn.Linear(5, 5), head=nn.Linear(5, 3)).double()
    sums = MomentSums(model, phi="square", where="test")
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for number, lengths in enumerate([[6, 6, 6, 6], [6, 6, 6, 2], [6, 6, 6, 3], [6, 6, 6, 6]]):
        call = call_of(lengths)
        sums.add(call, scores)
        expected = {name: value + expected[name] for name, value in by_hand(model, call, "square").items()}
        assert len(attributions) == min(number, 1)
    assert_close(sums.totals, expected, rtol=1e-9)


def test_an_index_that_counts_the_examples_moves_none(attributions: list[Attribution]):
    model = RAGGED["last_token"]().double()
    sums = MomentSums(model, phi="square", where="test")
    for lengths in ([4, 4, 4], [1, 6, 2, 3]):
        sums.add(call_of(lengths), scores)
    assert not attributions


def test_rows_inside_reentrant_checkpoints_are_measured_one_example_at_a_time():
    def forward(self: nn.Module, ids: Tensor, lengths: Tensor) -> Tensor:
        mask = torch.arange(ids.shape[1])[None] < lengths[:, None]
        rows = checkpoint(self.a, self.tokens(ids[mask]), use_reentrant=True)
        return self.head(torch.zeros(len(ids), 5).to(rows).index_add(0, mask.nonzero()[:, 0], rows))

    model = Apply(forward, tokens=nn.Embedding(11, 5), a=nn.Linear(5, 5), head=nn.Linear(5, 3)).double()
    call = call_of([1, 6, 3])
    sums = MomentSums(model, phi="square", where="test")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sums.add(call, scores)
    assert_close(sums.totals, by_hand(model, call, "square"), rtol=1e-9)


@pytest.mark.parametrize("first", [[3], [4, 4, 4]])
def test_batches_of_one_example_before_and_after(first: list[int]):
    model = RAGGED["top_one"]().double()
    sums = MomentSums(model, phi="abs", where="test")
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for lengths in (first, [2, 6], [5], [1, 6, 4]):
        call = call_of(lengths)
        sums.add(call, scores)
        expected = {name: value + expected[name] for name, value in by_hand(model, call, "abs").items()}
    assert_close(sums.totals, expected, rtol=1e-9)


@torch.jit.script
def chosen_rows(x: Tensor, mask: Tensor) -> Tensor:
    """Rows that a mask chooses, where no function is seen to do so."""
    return x[mask]


def test_rows_chosen_inside_torchscript():
    def forward(self: nn.Module, ids: Tensor, lengths: Tensor) -> Tensor:
        mask = there(ids, lengths)
        return self.head(pooled(self.a(chosen_rows(self.tokens(ids), mask)).tanh(), mask))

    model = Apply(forward, tokens=nn.Embedding(11, 5), a=nn.Linear(5, 5), head=nn.Linear(5, 3)).double()
    sums = MomentSums(model, phi="square", where="test")
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for lengths in ([4, 4, 4], [6, 2, 4]):
        call = call_of(lengths)
        sums.add(call, scores)
        expected = {name: value + expected[name] for name, value in by_hand(model, call, "square").items()}
    assert_close(sums.totals, expected, rtol=1e-9)


@pytest.mark.parametrize("kind", ["Bert", "GPT2"])
def test_language_models_with_padding_take_one_backward_pass_once_it_is_known(
    kind: str, attributions: list[Attribution]
):
    transformers = pytest.importorskip("transformers")
    options = {"Bert": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}}
    options["GPT2"] = {"n_embd": 8, "n_layer": 1, "n_head": 2, "pad_token_id": 0}
    config = getattr(transformers, f"{kind}Config")(vocab_size=11, **options[kind])
    model = getattr(transformers, f"{kind}ForSequenceClassification")(config).double().eval()
    sums = MomentSums(model, phi="square", where="test")
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for lengths in ([6, 6, 6, 6], [6, 3, 2, 6], [6, 6, 6, 2], [1, 2, 3, 4]):
        ids, sizes = batch(lengths)[0]
        call = Call(
            (), {"input_ids": ids.clamp(min=1) * there(ids, sizes), "attention_mask": there(ids, sizes).long()}, 4
        )
        sums.add(call, scores)
        expected = {name: value + expected[name] for name, value in by_hand(model, call, "square").items()}
    assert not sums.missed
    assert len(attributions) <= 1
    assert relative(sums.totals, expected) < 1e-9
