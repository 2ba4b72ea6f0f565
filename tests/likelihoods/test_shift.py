"""The model's class and configuration say whether targets are shifted; data speak where they say nothing."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.errors import BatchError
from holdfast.likelihoods.likelihood import Categorical, Gaussian
from holdfast.likelihoods.shift import Shift, check_shift, decided, num_other_labels, shift_of, shift_of_model

transformers = pytest.importorskip("transformers")

SMALL = {
    "vocab_size": 12,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "max_position_embeddings": 16,
}
GPT2 = {"vocab_size": 12, "n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 2}
T5 = {"vocab_size": 12, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
BART = {
    "vocab_size": 12,
    "d_model": 8,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 8,
    "decoder_ffn_dim": 8,
    "max_position_embeddings": 16,
}
XLNET = {"vocab_size": 12, "d_model": 8, "n_layer": 1, "n_head": 2, "d_inner": 8}

MODELS = [
    ("GPT2", GPT2, "GPT2LMHeadModel", True),
    ("GPT2", GPT2, "GPT2DoubleHeadsModel", True),
    ("GPT2", GPT2, "GPT2ForTokenClassification", False),
    ("GPT2", GPT2, "GPT2ForSequenceClassification", False),
    ("GPT2", GPT2, "GPT2Model", None),
    ("Llama", SMALL, "LlamaForCausalLM", True),
    ("Bert", SMALL, "BertForMaskedLM", False),
    ("Bert", SMALL, "BertForPreTraining", False),
    ("Bert", SMALL | {"is_decoder": True}, "BertLMHeadModel", True),
    ("Roberta", SMALL, "RobertaForMaskedLM", False),
    ("Roberta", SMALL | {"is_decoder": True}, "RobertaForCausalLM", True),
    ("T5", T5, "T5ForConditionalGeneration", False),
    ("Bart", BART, "BartForConditionalGeneration", False),
    ("Bart", BART, "BartForCausalLM", True),
    ("XLNet", XLNET, "XLNetLMHeadModel", False),
]


def build(family: str, options: dict[str, int], name: str) -> nn.Module:
    with torch.device("meta"):
        return getattr(transformers, name)(getattr(transformers, f"{family}Config")(**options))


@pytest.mark.parametrize(("family", "options", "name", "expected"), MODELS, ids=[entry[2] for entry in MODELS])
def test_hugging_face_s_classes(family: str, options: dict[str, int], name: str, expected: bool | None):
    found = shift_of_model(build(family, options, name))
    assert (found and found.causal) == expected
    assert found is None or (found.by == "model" and name in found.reason)


def test_a_generator_with_images_is_shifted_unless_it_is_an_encoder_decoder():
    class LlavaForConditionalGeneration(nn.Module):
        config = SimpleNamespace(is_encoder_decoder=False)

    class Without(nn.Module):
        pass

    Without.__name__ = "OwnForConditionalGeneration"
    found = shift_of_model(LlavaForConditionalGeneration())
    assert found == Shift(True, "model", "class LlavaForConditionalGeneration, no encoder-decoder")
    assert shift_of_model(Without()) is None
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.BertConfig(**SMALL), transformers.BertConfig(**SMALL)
    )
    with torch.device("meta"):
        both = transformers.EncoderDecoderModel(config)  # its decoder is a BertLMHeadModel
    assert shift_of_model(both) == Shift(False, "model", "EncoderDecoderModel: an encoder-decoder")


class Around(nn.Module):
    """A module of the user's own, such as a LightningModule."""

    def __init__(self, model: nn.Module, **more: nn.Module) -> None:
        super().__init__()
        self.loss, self.model = nn.CrossEntropyLoss(), model
        for name, module in more.items():
            self.add_module(name, module)


def test_wrappers_are_looked_through():
    model = build("GPT2", GPT2, "GPT2LMHeadModel")

    class Derived(type(model)):
        pass

    with torch.device("meta"):
        derived = Derived(model.config)
    for wrapped in (
        derived,
        Around(model),
        nn.Sequential(Around(model)),
        nn.DataParallel(model),
        torch.compile(model, backend="eager"),
    ):
        found = shift_of_model(wrapped)
        assert found is not None
        assert found.causal
    tagger = Around(model, head=nn.Linear(8, 3))  # what it does with the language model nobody knows
    assert shift_of_model(tagger) is None


@pytest.mark.parametrize(
    ("entry", "task", "layer", "expected"),
    [
        (("Llama", SMALL, "LlamaForCausalLM"), "CAUSAL_LM", "q_proj", True),
        (("Llama", SMALL, "LlamaForCausalLM"), None, "q_proj", True),
        (("Bart", BART, "BartForConditionalGeneration"), "SEQ_2_SEQ_LM", "q_proj", False),
        (("Bert", SMALL, "BertForMaskedLM"), None, "query", False),
    ],
)
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_adapters_of_peft(entry: tuple, task: str | None, layer: str, expected: bool):
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(build(*entry), peft.LoraConfig(task_type=task, r=2, target_modules=[layer]))
    found = shift_of_model(adapted)
    assert found is not None
    assert found.causal == expected


IDS = torch.arange(10).reshape(2, 5)
PLAIN, CAUSAL = nn.Linear(1, 1), build("GPT2", GPT2, "GPT2LMHeadModel")


def masked(labels: Tensor, *places: tuple[int, int]) -> Tensor:
    labels = labels.clone()
    for row, column in places:
        labels[row, column] = -100
    return labels


ONE_OTHER = torch.where(IDS == 7, 0, IDS)
NEXT = torch.cat([IDS[:, 1:], torch.tensor([[11], [11]])], dim=1)


@pytest.mark.parametrize(
    ("model", "batch", "expected", "by"),
    [
        (PLAIN, {"input_ids": IDS, "labels": masked(IDS, (0, 0), (1, 2))}, True, "labels"),
        (PLAIN, {"input_ids": IDS, "labels": ONE_OTHER}, False, "labels"),  # as a whole, not example by example
        (PLAIN, {"input_ids": IDS[:, :4], "labels": IDS}, False, "labels"),
        (PLAIN, {"inputs_embeds": torch.zeros(2, 5, 3), "labels": IDS}, False, "labels"),
        (PLAIN, (IDS, IDS), False, "labels"),
        (CAUSAL, {"input_ids": IDS, "labels": ONE_OTHER}, True, "model"),
        (CAUSAL, {"inputs_embeds": torch.zeros(2, 5, 3), "labels": IDS}, True, "model"),
        (CAUSAL, (IDS, IDS), True, "model"),
        (CAUSAL, {"input_ids": IDS, "labels": NEXT}, False, "labels"),
        (CAUSAL, {"input_ids": IDS, "labels": masked(NEXT, (0, 4), (0, 0))}, False, "labels"),
        (CAUSAL, (IDS, NEXT), False, "labels"),
        (CAUSAL, ({"input_ids": IDS}, NEXT), False, "labels"),
        (CAUSAL, ((IDS,), NEXT), False, "labels"),
        (CAUSAL, {"input_ids": IDS * 0, "labels": IDS * 0}, True, "model"),  # shifted or not, the labels are the same
        (CAUSAL, {"input_ids": IDS, "labels": IDS[:, 0]}, None, None),  # one class for a sequence
        (PLAIN, {"input_ids": IDS, "labels": torch.full_like(IDS, -100)}, None, None),
    ],
)
def test_what_a_first_batch_decides(model: nn.Module, batch: object, expected: bool | None, by: str | None):
    found = shift_of(Categorical(), model, batch)
    assert (found and (found.causal, found.by)) == (None if expected is None else (expected, by))
    for said in (True, False):
        shift = shift_of(Categorical(causal=said), model, batch)
        assert shift is None or shift == Shift(said, "caller", f"loss=Categorical(causal={said})")
    assert decided(Categorical(class_axis=-1), model, batch) == Categorical(class_axis=-1, causal=expected)
    assert decided(Gaussian(), model, batch) == Gaussian()


def test_a_later_batch_may_not_contradict_the_labels_of_the_first():
    shift = Shift(True, "labels", "the labels of the first batch equal its input_ids")
    check_shift(shift, {"input_ids": IDS, "labels": masked(IDS, (1, 1))}, where="fisher")
    other = {"input_ids": IDS, "labels": ONE_OTHER}
    assert num_other_labels(other) == 1
    with pytest.raises(BatchError) as caught:
        check_shift(shift, other, where="fisher")
    assert str(caught.value) == (
        "fisher: all labels of the first batch equal its input_ids, as those of a causal language model do, and 1 of a "
        "later batch differ. Whether position t predicts the label of position t + 1 is decided once for all batches, "
        "and the model has no configuration of Hugging Face's that says it. Pass loss=Categorical(causal=True) if it "
        "does, or loss=Categorical(causal=False) if it predicts its own label."
    )
    for settled in (replace(shift, by="model"), replace(shift, causal=False), replace(shift, by="caller")):
        check_shift(settled, other, where="fisher")


def test_the_decision_is_what_the_likelihood_does():
    logits = torch.randn(2, 5, 12)
    batch = {"input_ids": IDS, "labels": ONE_OTHER}
    shifted = F.cross_entropy(logits[:, :-1].mT, ONE_OTHER[:, 1:], reduction="none").sum(1)
    torch.testing.assert_close(decided(Categorical(), CAUSAL, batch).nll(logits, batch), shifted)
    own = F.cross_entropy(logits.mT, ONE_OTHER, reduction="none").sum(1)
    torch.testing.assert_close(decided(Categorical(), PLAIN, batch).nll(logits, batch), own)
