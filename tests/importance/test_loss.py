"""Whether targets are shifted is decided once for a measurement: against loops over single examples, model by model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import holdfast as hf
from holdfast.errors import BatchError, CoupledExamplesError, OptionError
from holdfast.importance.loss import MeasuredLoss
from holdfast.likelihoods.draws import Draws
from holdfast.likelihoods.likelihood import Categorical

transformers = pytest.importorskip("transformers")

VOCABULARY, LENGTH = 7, 5
BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "max_position_embeddings": 16,
}
BART = {
    "vocab_size": VOCABULARY,
    "d_model": 8,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 8,
    "decoder_ffn_dim": 8,
    "max_position_embeddings": 16,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "forced_eos_token_id": None,
}


def hugging_face(name: str, config: str, **options: Any) -> nn.Module:
    torch.manual_seed(1)
    return getattr(transformers, name)(getattr(transformers, f"{config}Config")(**options)).eval()


class Embedded(nn.Module):
    """A language model of the user's own, without a configuration, in which every position stands alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embedding, self.head = nn.Embedding(VOCABULARY, 4), nn.Linear(4, VOCABULARY)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.head(self.embedding(input_ids).cumsum(dim=1).tanh())


class Recurrent(nn.Module):
    """Another, with a state; it returns a mapping."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embedding, self.mix = nn.Embedding(VOCABULARY, 4), nn.Linear(8, 4)
        self.head = nn.Linear(4, VOCABULARY)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        state, found = torch.zeros(len(input_ids), 4), []
        for x in self.embedding(input_ids).unbind(1):
            state = self.mix(torch.cat([x, state], dim=1)).tanh()
            found.append(self.head(state))
        return {"logits": torch.stack(found, dim=1)}


GPT2 = {"vocab_size": VOCABULARY, "n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 2}
MODELS: dict[str, tuple[Callable[[], nn.Module], bool | None]] = {
    "gpt2": (lambda: hugging_face("GPT2LMHeadModel", "GPT2", **GPT2, bos_token_id=0, eos_token_id=0), True),
    "llama": (lambda: hugging_face("LlamaForCausalLM", "Llama", **BERT), True),
    "bert": (lambda: hugging_face("BertForMaskedLM", "Bert", **BERT), False),
    "roberta": (lambda: hugging_face("RobertaForMaskedLM", "Roberta", **BERT), False),
    "bart": (lambda: hugging_face("BartForConditionalGeneration", "Bart", **BART), False),
    "marian": (lambda: hugging_face("MarianMTModel", "Marian", **BART), False),
    "gpt2 tagger": (lambda: hugging_face("GPT2ForTokenClassification", "GPT2", **GPT2, num_labels=VOCABULARY), False),
    "own": (Embedded, None),
    "own with a state": (Recurrent, None),
}


def sequences(count: int = 7) -> Tensor:
    return torch.randint(2, VOCABULARY, (count, LENGTH), generator=torch.Generator().manual_seed(3))


def some_like_inputs(ids: Tensor) -> Tensor:
    """Labels as of a correction or of masked tokens: those of four examples equal the inputs wherever they count."""
    labels = ids.clone()
    labels[[0, 3, 6], 2] = (ids[[0, 3, 6], 2] + 1) % VOCABULARY
    labels[:, 1], labels[1, 3:] = -100, -100
    return labels


def prompted(ids: Tensor) -> Tensor:
    """Labels as of a causal model whose prompts do not count."""
    labels = ids.clone()
    labels[:, 0], labels[2, :4] = -100, -100
    return labels


def batches(ids: Tensor, labels: Tensor, size: int) -> list[dict[str, Tensor]]:
    return [{"input_ids": x, "labels": y} for x, y in zip(ids.split(size), labels.split(size))]


def nll(model: nn.Module, ids: Tensor, labels: Tensor, *, shifted: bool) -> Tensor:
    """Of one example."""
    outputs = model(input_ids=ids[None], labels=labels[None])
    logits = outputs if isinstance(outputs, Tensor) else outputs["logits"]
    logits, labels = (logits[0, :-1], labels[1:]) if shifted else (logits[0], labels)
    return F.cross_entropy(logits, labels, reduction="sum", ignore_index=-100)


def oracle(model: nn.Module, ids: Tensor, labels: Tensor, *, shifted: bool) -> dict[str, Tensor]:
    """The empirical Fisher, one example at a time: a mean over the labels that count."""
    num_targets = int(((labels[:, 1:] if shifted else labels) != -100).sum())
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    totals = {name: torch.zeros_like(p) for name, p in named.items()}
    for x, y in zip(ids, labels):
        one = nll(model, x, y, shifted=shifted)
        found = torch.autograd.grad(one, list(named.values()), allow_unused=True)
        for name, gradient in zip(named, found):
            totals[name] += 0.0 if gradient is None else gradient.square() / num_targets
    return totals


def close(found: Any, expected: Any, *, rtol: float = 1e-3) -> None:
    assert found.keys() == expected.keys()
    largest = max(float(value.abs().max()) for value in expected.values())
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=rtol, atol=1e-6 * largest)


@pytest.mark.parametrize("name", MODELS)
def test_labels_that_equal_the_inputs_in_some_examples(name: str):
    model, says = MODELS[name]
    model, ids = model(), sequences()
    shifted = bool(says)  # a model that says nothing: the first batch of two has another label
    labels = some_like_inputs(ids)
    found = hf.fisher(model, batches(ids, labels, 2), kind="empirical")
    close(found, oracle(model, ids, labels, shifted=shifted))
    assert found.info.details["causal"] is shifted
    assert isinstance(found.info.details["causal_by"], str)


@pytest.mark.parametrize("name", [name for name, (_, says) in MODELS.items() if says is not False])
def test_labels_that_equal_the_inputs_in_all_examples(name: str):
    model, ids = MODELS[name][0](), sequences()
    labels = prompted(ids)
    expected = oracle(model, ids, labels, shifted=True)
    close(hf.fisher(model, batches(ids, labels, 3), kind="empirical"), expected)
    later = [batches(ids, torch.full_like(ids, -100), 2)[0], *batches(ids, labels, 1)]  # the first shows nothing
    close(hf.fisher(model, later, kind="empirical"), expected)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_labels_that_the_user_has_shifted_already(name: str):
    model, ids = MODELS[name][0](), sequences()
    labels = torch.cat([ids[:, 1:], torch.ones(7, 1, dtype=torch.int64)], dim=1)
    labels[0, 0] = -100
    expected = oracle(model, ids, labels, shifted=False)
    for data in (batches(ids, labels, 3), list(zip(ids.split(3), labels.split(3)))):
        found = hf.fisher(model, data, kind="empirical")
        close(found, expected)
        assert found.info.details["causal"] is False
        assert "shifted already" in str(found.info.details["causal_by"])


def test_what_the_caller_says_counts_first():
    model, ids = MODELS["gpt2"][0](), sequences()
    found = hf.fisher(model, batches(ids, ids, 3), kind="empirical", loss=Categorical(causal=False))
    close(found, oracle(model, ids, ids, shifted=False))
    assert found.info.details == {"causal": False, "causal_by": "loss=Categorical(causal=False)"}


def test_one_class_for_a_sequence_of_a_causal_model():
    model = hugging_face("GPT2ForSequenceClassification", "GPT2", **GPT2, pad_token_id=0, num_labels=3)
    ids, classes = sequences(), torch.randint(0, 3, (7,))
    found = hf.fisher(model, batches(ids, classes, 3), kind="empirical")
    ones = [
        hf.fisher(model, [{"input_ids": x[None], "labels": y[None]}], kind="empirical") for x, y in zip(ids, classes)
    ]
    close(found, {name: torch.stack([one[name] for one in ones]).mean(0) for name in found})
    assert found.info.details == {}


ESTIMATORS: dict[str, Callable[..., Any]] = {
    "exact": hf.fisher,
    "sampled": lambda *a, **k: hf.fisher(*a, kind="sampled", **k),
    "top classes": lambda *a, **k: hf.fisher(*a, top_k=3, **k),
    "batched": lambda *a, **k: hf.fisher(*a, kind="batched", **k),
    "per token": lambda *a, **k: hf.fisher(*a, kind="empirical", per="token", **k),
    "taylor": hf.taylor,
    "kfac": lambda *a, **k: hf.kfac(*a, kind="empirical", **k).to_diagonal(),
}


@pytest.mark.parametrize(
    ("estimator", "name"),
    [(estimator, name) for name in ("gpt2", "bert", "own") for estimator in ESTIMATORS],
)
@pytest.mark.filterwarnings("ignore:kfac. in")
def test_every_estimator_decides_alike(estimator: str, name: str):
    model, says = MODELS[name]
    model, ids, measure = model(), sequences(), ESTIMATORS[estimator]
    data = batches(ids, some_like_inputs(ids), 4)
    found, said = measure(model, data), measure(model, data, loss=Categorical(causal=bool(says)))
    close(found, said, rtol=1e-6)
    assert found.info.nats_per_unit == said.info.nats_per_unit
    assert found.info.details["causal"] is said.info.details["causal"] is bool(says)


def test_labels_decide_for_all_batches_or_it_is_an_error():
    model, ids = Embedded(), sequences()
    labels = some_like_inputs(ids)
    first_like_inputs = batches(ids.flip(0)[1:], labels.flip(0)[1:], 2)
    with pytest.raises(
        BatchError, match=r"fisher: all labels of the first batch equal its input_ids.*and \d of a later"
    ):
        hf.fisher(model, first_like_inputs, kind="empirical")
    for said in (True, False):
        found = hf.fisher(model, first_like_inputs, kind="empirical", loss=Categorical(causal=said))
        close(found, oracle(model, ids[:6], labels[:6], shifted=said))


class Halved(Categorical):
    """A likelihood of a user's own that is right."""

    def nll(self, outputs: Any, batch: Any) -> Tensor:
        return super().nll(outputs, batch) / 2


class ByTokens(Categorical):
    """One that divides by the tokens of the batch."""

    def _share(self, batch: Any) -> Tensor:
        return 1 / (batch["labels"] != -100).sum()

    def nll(self, outputs: Any, batch: Any) -> Tensor:
        return super().nll(outputs, batch) * self._share(batch)

    def exact_scores(self, outputs: Any, batch: Any) -> Tensor:
        return super().exact_scores(outputs, batch) * self._share(batch).sqrt()

    def sampled(self, outputs: Any, batch: Any, *, draws: Draws) -> Tensor:
        return super().sampled(outputs, batch, draws=draws) * self._share(batch)


@pytest.mark.parametrize("kind", ["exact", "sampled", "empirical", "batched"])
def test_likelihoods_of_the_user_s_are_looked_at_too(kind: Any):
    model, ids = Embedded(), sequences()
    data = batches(ids, prompted(ids), 3)
    expected = hf.fisher(model, data, kind="empirical", loss=Categorical(causal=True))
    if kind == "empirical":
        close(hf.fisher(model, data, kind=kind, loss=Halved()), {name: v / 4 for name, v in expected.items()})
    hf.fisher(model, data, kind=kind, loss=Halved())
    with pytest.raises(CoupledExamplesError, match="fisher: the loss mixes the examples of a batch: for example 0"):
        hf.fisher(model, data, kind=kind, loss=ByTokens())


def test_data_without_labels_for_a_likelihood_that_draws_them():
    class Unlabelled(Categorical):
        def nll(self, outputs: Any, batch: Any) -> Tensor:
            raise NotImplementedError

        def sampled(self, outputs: Any, batch: Any, *, draws: Draws) -> Tensor:
            none = torch.zeros(outputs.shape[:2], dtype=torch.int64)
            return super().sampled(outputs, (None, none), draws=draws)

    model, ids = Embedded(), sequences()
    found = hf.fisher(model, [({"input_ids": ids}, ids)], kind="sampled", loss=Unlabelled(causal=False))
    close(found, hf.fisher(model, [({"input_ids": ids}, ids)], kind="sampled", loss=Categorical(causal=False)))


def test_top_classes_are_a_categorical_loss_s():
    outputs, batch = torch.randn(2, 3), (torch.randn(2, 3), torch.randn(2, 3))
    loss = MeasuredLoss(hf.Gaussian(), Embedded(), where="fisher")
    with pytest.raises(OptionError, match='fisher: top_k=2 with loss="gaussian", expected loss="categorical". Drop'):
        loss.top_scores(outputs, batch, top_k=2, draws=Draws(range(2)))
    loss = MeasuredLoss(Categorical(), Embedded(), where="fisher")
    assert loss.top_scores(outputs, (outputs, torch.tensor([0, 1])), top_k=2, draws=Draws(range(2))).shape == (3, 2)


def test_batches_decide_as_they_came_whoever_asks_first():
    ids = sequences(2)
    labels = torch.stack([ids[0], (ids[1] + 1) % VOCABULARY])
    loss = MeasuredLoss(Categorical(), Embedded(), where="fisher")
    loss.decide({"input_ids": ids, "labels": labels})
    first = {"input_ids": ids[:1], "labels": labels[:1]}  # alone it would be shifted
    outputs = Embedded()(ids[:1])
    torch.testing.assert_close(loss.nll(outputs, first), Categorical(causal=False).nll(outputs, first))
    loss.decide(first)
    assert loss.details["causal"] is False
