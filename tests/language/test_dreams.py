from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import holdfast as hf
from holdfast.errors import (
    CollapseError,
    FileFormatError,
    ModelMismatchError,
    NotFiniteError,
    OptionError,
    RunMismatchError,
)
from holdfast.language import Dreams, dreams, writing
from holdfast.language.writing import blocks, is_loop

WORDS = [f"w{number}" for number in range(61)]
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }} <end> {% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def tokenizer_of(words: list[str] = WORDS, *, chat: bool = False) -> PreTrainedTokenizerFast:
    vocabulary = {word: number for number, word in enumerate(["<end>", "[user]", "[assistant]", *words])}
    inner = Tokenizer(WordLevel(vocabulary, unk_token="w0"))
    inner.pre_tokenizer = WhitespaceSplit()
    found = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", pad_token="<end>")
    found.chat_template = TEMPLATE if chat else None
    return found


def gpt(seed: int = 0, *, size: int = 64, length: int = 32, sure: float = 20.0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=size, n_positions=length, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        model.transformer.wte.weight *= sure
    return model


def test_dreams_are_what_the_model_writes_and_answers():
    model = gpt().train()
    state = torch.get_rng_state()
    found = dreams(model, tokenizer_of(), count=40, length=16, batch_size=8)
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    assert len(found) == 40
    assert found.probes.rise(model) < 1e-5
    texts = torch.cat([batch["input_ids"] for batch in found.batches])
    assert texts.shape == (40, 16)
    assert (texts[:, 0] == 0).all()
    assert len(texts.unique(dim=0)) == 40
    model.eval()
    with torch.no_grad():
        loss = model(input_ids=texts, labels=texts).loss
    assert found.info.perplexity == pytest.approx(math.exp(loss), rel=1e-4)
    assert found.info.perplexity < 40  # far below that of chance, 64
    again = dreams(model, tokenizer_of(), count=40, length=16)
    assert all(torch.equal(one["input_ids"], other["input_ids"]) for one, other in zip(found.batches, again.batches))
    other = dreams(model, tokenizer_of(), count=40, length=16, seed=100)
    assert not torch.equal(other.batches[0]["input_ids"], found.batches[0]["input_ids"])


def test_they_follow_the_models_own_distribution():
    """Of the tokens after each first one, the shares are the model's probabilities."""
    model = gpt(size=8).eval()
    texts = torch.stack(blocks(model, start=0, length=8, count=600, temperature=1.0, seed=0)).long()
    with torch.no_grad():
        p = model(texts).logits[:, 4].softmax(-1)
    shares = torch.nn.functional.one_hot(texts[:, 5], 8).float()
    error = (shares - p).mean(dim=0).abs()
    assert (error < 4 * (p * (1 - p)).mean(dim=0).sqrt() / math.sqrt(600) + 1e-3).all()


def test_of_many_classes_most_of_the_mass_is_kept(tmp_path):
    model = gpt(size=2000)
    found = dreams(model, tokenizer_of([f"w{n}" for n in range(1997)]), count=8, length=8)
    answers = found.probes.batches[0].answers
    assert (answers["log_p"].dtype, answers["classes"].dtype) == (torch.float16, torch.int32)
    assert answers["log_p"].shape == (8, 8, 65)
    assert 0 < found.info.rest < 1
    found.save(tmp_path / "dreams")
    read = Dreams.load(tmp_path / "dreams")
    assert read.info == found.info
    assert all(
        torch.equal(one.answers[key], other.answers[key])
        for one, other in zip(read.probes.batches, found.probes.batches)
        for key in answers
    )
    assert "No training data are in here" in (tmp_path / "dreams" / "README.md").read_text()


def test_a_killed_call_goes_on_to_the_same_dreams(tmp_path, monkeypatch):
    model, tokenizer, path = gpt(), tokenizer_of(), tmp_path / "writing.safetensors"
    whole = dreams(model, tokenizer, count=80, length=8)
    written = model.generate
    calls = []

    def dying(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return written(*args, **kwargs)

    monkeypatch.setattr(model, "generate", dying)
    with pytest.raises(KeyboardInterrupt):
        dreams(model, tokenizer, count=80, length=8, checkpoint=path)
    with pytest.raises(RunMismatchError, match="is of other dreams"):
        dreams(model, tokenizer, count=80, length=9, checkpoint=path)
    monkeypatch.undo()
    resumed = dreams(model, tokenizer, count=80, length=8, checkpoint=path)
    assert path.exists()  # until the caller has saved them
    assert resumed.info == whole.info
    assert all(torch.equal(one["input_ids"], other["input_ids"]) for one, other in zip(resumed.batches, whole.batches))


def test_conversations_have_a_question_and_an_answer():
    model, tokenizer = gpt(length=128, sure=1.0), tokenizer_of(chat=True)
    found = dreams(model, tokenizer, count=12, length=128)
    assert found.info.chat
    for batch in found.batches:
        for text, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"]):
            words = tokenizer.convert_ids_to_tokens(text[: int(mask.sum())])
            assert words[0] == "[user]"
            assert words[-1] == "<end>"
            assert words.count("[assistant]") >= 1
            assert torch.equal(labels == -100, mask == 0)
    assert found.probes.rise(model) < 1e-5


def test_texts_of_different_lengths_go_on_side_by_side_as_alone():
    """Where the positions suffice for padding, and where they do not."""
    openings = [[1, 5, 6, 0, 2], [1, 9, 0, 2], [1, 7, 8, 9, 10, 11, 12, 0, 2], [1, 30, 31, 0, 2]]
    model, stop = gpt(9, length=64, sure=1.0).eval(), list(range(0, 64, 11))
    with torch.no_grad():
        model.transformer.wpe.weight *= 30  # what comes next depends on the place
    alone = []
    for opening in sorted(openings, key=len):
        prompt = torch.tensor([opening])
        options = {"attention_mask": torch.ones_like(prompt), "eos_token_id": stop, "pad_token_id": 0}
        found = model.generate(prompt, do_sample=False, max_new_tokens=24 - len(opening), **options)
        alone.append(found[0, len(opening) :].tolist())
    assert [len(written) for written in alone] == [8, 7, 7, 3]
    for positions in (64, 24):
        model.config.max_position_embeddings = positions
        found = list(writing._continued(model, openings, 24, 1e-4, stop=stop))
        assert [opening for opening, _ in found] == sorted(openings, key=len)
        assert [written for _, written in found] == alone


@pytest.mark.parametrize("chat", [False, True])
def test_the_models_settings_for_generation_bend_nothing_and_stay(chat):
    plain, model, tokenizer = (*(gpt(length=64, sure=1.0) for _ in range(2)), tokenizer_of(chat=chat))
    settings = model.generation_config
    for name, value in {
        "num_beams": 3,
        "return_dict_in_generate": True,
        "no_repeat_ngram_size": 2,
        "min_p": 0.2,
        "repetition_penalty": 1.5,
        "suppress_tokens": [5, 6],
        "max_time": 1e-9,
        "stop_strings": ["w1"],
        "cache_implementation": "static",
    }.items():
        setattr(settings, name, value)
    kept = settings.to_dict()
    expected, found = (dreams(each, tokenizer, count=8, length=48) for each in (plain, model))
    assert all(torch.equal(one["input_ids"], other["input_ids"]) for one, other in zip(expected.batches, found.batches))
    assert model.generation_config is settings
    assert settings.to_dict() == kept


def test_a_turn_ends_where_the_template_ends_it():
    """The token behind the user's words is none that tokenizer or model name as an end."""
    model, tokenizer = gpt(length=128, sure=1.0), tokenizer_of(chat=True)
    model.generation_config.eos_token_id = tokenizer.eos_token = None  # the special token is that for padding
    found = dreams(model, tokenizer, count=4, length=100)
    text, mask = found.batches[0]["input_ids"][0], found.batches[0]["attention_mask"][0]
    assert text[int(mask.sum()) - 1] == 0


SYSTEM = "w1 w2 w3 w4 <end> "


@pytest.mark.parametrize(
    ("template", "told"),
    [
        (
            "{{ raise_exception('roles must alternate') }}",
            r"takes no conversation that a user begins \(roles must alter",
        ),
        ("{% if %}", "takes no conversation that a user begins"),
        (TEMPLATE.replace("m.content", "m.content | upper"), "does not write the user's words as they are"),
        ("{% for m in messages %}{{ m.content }} <end> {% endfor %}", "puts nothing before the user's words"),
        (SYSTEM + TEMPLATE, "length=8, and of a conversation the chat template alone takes 8 tokens"),
    ],
)
def test_templates_that_are_no_use_are_refused_and_blocks_are_not(template, told):
    tokenizer = tokenizer_of(chat=True)
    tokenizer.chat_template = template
    with pytest.raises(OptionError, match=told) as refused:
        dreams(gpt(), tokenizer, count=4, length=8)
    assert "chat=False for blocks" in str(refused.value)
    assert len(dreams(gpt(), tokenizer, count=4, length=8, chat=False)) == 4


def test_a_conversation_without_any_end_is_refused():
    model, tokenizer = gpt(), tokenizer_of(chat=True)
    model.generation_config.eos_token_id = tokenizer.eos_token = tokenizer.pad_token = None
    tokenizer.chat_template = TEMPLATE.replace("<end>", "w5")
    with pytest.raises(OptionError, match="nothing ends a turn"):
        dreams(model, tokenizer, count=4, length=16)


def test_what_is_kept_of_a_far_too_sure_model_is_a_number(tmp_path):
    found = dreams(gpt(sure=3000.0), tokenizer_of(), count=8, length=8, temperatures=(1e6,))
    assert 1e300 < found.info.perplexity < math.inf
    found.save(tmp_path)
    assert Dreams.load(tmp_path).info == found.info


def test_a_model_of_nan_dreams_nothing():
    model = gpt()
    with torch.no_grad():
        model.transformer.ln_f.bias[0] = torch.nan
    with pytest.raises(NotFiniteError, match="the model's weights are NaN or infinite"):
        dreams(model, tokenizer_of(), count=4, length=8)


def test_a_model_that_only_repeats_itself_has_collapsed():
    model = gpt()
    with torch.no_grad():
        model.transformer.wte.weight.zero_()
        model.transformer.ln_f.bias.fill_(1.0)
        model.transformer.wte.weight[7] = 50.0
    with pytest.raises(CollapseError, match="of 128 texts that the model wrote .* loops"):
        dreams(model, tokenizer_of(), count=20, length=16)


def test_dreams_of_another_model_or_tokenizer_are_told():
    model = gpt()
    found = dreams(model, tokenizer_of(), count=8, length=8)
    found.check(model, tokenizer_of())
    with pytest.warns(UserWarning, match="nats a token from those of 'GPT2LMHeadModel', which dreamt"):
        found.check(gpt(1), tokenizer_of())
    with pytest.raises(ModelMismatchError, match="with another vocabulary"):
        found.check(model, tokenizer_of(WORDS[::-1]))


def test_they_measure_hold_and_watch_without_data():
    model = gpt()
    rehearsed, watched = dreams(model, tokenizer_of(), count=48, length=16).split(32)
    assert (len(rehearsed), len(watched)) == (32, 16)
    keeper = hf.EWC(model).retain(hf.measure(model, rehearsed.batches, probes=watched.probes))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    hf.Rehearsal(model, rehearsed.probes, share=0.5).attach(optimizer)
    keeper.attach(optimizer)
    new = torch.randint(64, (8, 16), generator=torch.Generator().manual_seed(1))
    for _ in range(20):
        optimizer.zero_grad()
        model(input_ids=new, labels=new).loss.backward()
        optimizer.step()
    keeper.close()
    assert watched.probes.rise(model) <= 0.02


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"count": 0}, "count=0, expected a whole number >= 1"),
        ({"length": 4}, "length=4, expected a whole number >= 8"),
        ({"temperatures": ()}, r"temperatures=\(\), expected numbers above 0"),
        ({"temperatures": (0.0,)}, "expected numbers above 0"),
        ({"temperatures": 1.0}, r"temperatures=1.0, expected numbers above 0"),
        ({"temperatures": "1"}, "temperatures='1', expected numbers above 0"),
        ({"seed": "a"}, "seed='a', expected a whole number >= 0"),
        ({"length": 40}, "length=40, and the model has 32 positions. Give length=32 or less"),
        ({"chat": True}, "the tokenizer has no chat template"),
    ],
)
def test_what_it_refuses(options, told):
    with pytest.raises(OptionError, match=told):
        dreams(gpt(), tokenizer_of(), **{"length": 16, **options})


def test_no_generate_no_dreams(tmp_path: Path):
    with pytest.raises(OptionError, match=r"Linear has no generate\(\)"):
        dreams(torch.nn.Linear(2, 2), tokenizer_of())
    with pytest.raises(FileFormatError):
        Dreams.load(tmp_path)


def test_an_encoder_decoder_is_refused():
    model = gpt()
    model.config.is_encoder_decoder = True
    with pytest.raises(OptionError, match="is an encoder-decoder"):
        dreams(model, tokenizer_of())


def test_loops():
    assert not is_loop(torch.tensor([1, 1, 1]))
    assert is_loop(torch.tensor([1, 2, 3, 4] * 8))
    assert not is_loop(torch.arange(32))
