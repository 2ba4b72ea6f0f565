"""Tiny ready models with tokenizers, as folders, and data for them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
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


def classifier(folder: Path, *, kind: str = "bert", labels: Sequence[str] = ("card", "money")) -> Path:
    """A transformers classifier whose head is one layer, or as of DistilBERT and RoBERTa several."""
    torch.manual_seed(0)
    size = {"vocab_size": len(WORDS) + 4, "hidden_size": 16, "num_attention_heads": 2, "max_position_embeddings": 40}
    made = {
        "bert": lambda: BertForSequenceClassification(_named(_bert(), labels)),
        "distilbert": lambda: DistilBertForSequenceClassification(_named(_distilbert(), labels)),
        "roberta": lambda: RobertaForSequenceClassification(
            _named(RobertaConfig(**size, num_hidden_layers=1, intermediate_size=24, pad_token_id=0), labels)
        ),
        "gpt2": lambda: GPT2ForSequenceClassification(_named(_gpt2(), labels)),
    }
    made[kind]().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def _distilbert() -> DistilBertConfig:
    return DistilBertConfig(vocab_size=len(WORDS) + 4, dim=16, hidden_dim=24, n_layers=1, n_heads=2)


def _named(config: Any, labels: Sequence[str]) -> Any:
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: number for number, label in enumerate(labels)}
    return config


def causal(folder: Path, *, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    GPT2LMHeadModel(_gpt2()).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def _gpt2() -> GPT2Config:
    return GPT2Config(
        vocab_size=len(WORDS) + 4,
        n_positions=32,
        n_embd=16,
        n_layer=1,
        n_head=2,
        bos_token_id=3,
        eos_token_id=3,
        pad_token_id=0,
    )


def sentence(number: int) -> str:
    picked = torch.randint(len(WORDS), (6,), generator=torch.Generator().manual_seed(number)).tolist()
    return " ".join(WORDS[place] for place in picked)


def pairs(path: Path, *, count: int = 40) -> Path:
    """Pairs with similarities 0..5, as the STS benchmark has them: no names above the columns."""
    lines = [f"{sentence(n)},{sentence(n + 1000)},{n % 11 / 2}" for n in range(count)]
    path.write_text("\n".join(lines) + "\n")
    return path


def intents(path: Path, *, count: int = 60, names: Sequence[str] = ("card", "money", "dog")) -> Path:
    """Sentences that begin with their intent."""
    rows = [{"text": f"{names[n % len(names)]} {sentence(n)}", "label": names[n % len(names)]} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def prose(path: Path, *, lines: int = 80) -> Path:
    path.write_text("".join(sentence(n) + "\n" for n in range(lines)))
    return path
