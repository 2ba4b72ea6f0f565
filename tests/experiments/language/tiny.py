"""Tiny ready models with tokenizers, as folders, and data for them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

WORDS = "the a card bank is lost late money where my when how can i you send new old red blue cat dog runs sits".split()


def tokenizer(extra: int = 0) -> PreTrainedTokenizerFast:
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, *(f"word{n}" for n in range(extra))]
    bare = Tokenizer(models.WordLevel({name: n for n, name in enumerate(names)}, unk_token="[UNK]"))
    bare.pre_tokenizer = pre_tokenizers.Whitespace()
    bare.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=bare, pad_token="[PAD]", unk_token="[UNK]", eos_token="[SEP]")


def _bert() -> BertConfig:
    return BertConfig(
        vocab_size=len(WORDS) + 4,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
    )


def encoder(folder: Path, *, seed: int = 0, extra: int = 0) -> Path:
    torch.manual_seed(seed)
    BertModel(_bert()).save_pretrained(folder)
    tokenizer(extra).save_pretrained(folder)
    return folder


def classifier(folder: Path) -> Path:
    torch.manual_seed(0)
    config = _bert()
    config.id2label = {0: "card", 1: "money"}
    config.label2id = {"card": 0, "money": 1}
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def causal(folder: Path, *, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(WORDS) + 4,
        n_positions=32,
        n_embd=16,
        n_layer=1,
        n_head=2,
        bos_token_id=3,
        eos_token_id=3,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def sentence(number: int) -> str:
    picked = torch.randint(len(WORDS), (6,), generator=torch.Generator().manual_seed(number)).tolist()
    return " ".join(WORDS[place] for place in picked)


def pairs(path: Path, *, count: int = 40) -> Path:
    """Pairs with similarities 0..5, as the STS benchmark has them: no names above the columns."""
    lines = [f"{sentence(n)},{sentence(n + 1000)},{n % 11 / 2}" for n in range(count)]
    path.write_text("\n".join(lines) + "\n")
    return path


def intents(path: Path, *, count: int = 60) -> Path:
    """Sentences that begin with their intent."""
    names = ("card", "money", "dog")
    rows = [{"text": f"{names[n % 3]} {sentence(n)}", "label": names[n % 3]} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def prose(path: Path, *, lines: int = 80) -> Path:
    path.write_text("".join(sentence(n) + "\n" for n in range(lines)))
    return path
