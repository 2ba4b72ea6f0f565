"""Tiny real language models made from configurations, data for them, and importances without a pass over data."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from holdfast import Importance, ImportanceInfo

VOCABULARY, LENGTH = 32, 8


def gpt2(dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    torch.manual_seed(1)
    none = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop", "bos_token_id", "eos_token_id"), 0)
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=LENGTH, n_embd=16, n_layer=1, n_head=2, **none)
    return GPT2LMHeadModel(config).to(dtype)


def llama() -> PreTrainedModel:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def bert() -> PreTrainedModel:
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=LENGTH,
        num_labels=3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertForSequenceClassification(config)


MODELS = {"gpt2": gpt2, "llama": llama, "bert": bert}


def examples(count: int, *, seed: int = 0, classes: int | None = None) -> list[dict[str, Tensor]]:
    """Random token sequences, each with itself or a class as label; the first token is no target of a shifted loss."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCABULARY, (count, LENGTH), generator=generator)
    targets = torch.cat([torch.full((count, 1), -100), tokens[:, 1:]], dim=1)
    labels = targets if classes is None else torch.randint(classes, (count,), generator=generator)
    return [{"input_ids": x, "labels": y} for x, y in zip(tokens, labels, strict=True)]


def examples_for(model: nn.Module, count: int, *, seed: int = 0) -> list[dict[str, Tensor]]:
    return examples(count, seed=seed, classes=3 if isinstance(model, BertForSequenceClassification) else None)


def stacked(some: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([example[name] for example in some]) for name in some[0]}


def importance_of(model: nn.Module, *, scale: float = 1.0) -> Importance:
    """Random importances in nats, about a quarter of them zero."""
    generator = torch.Generator().manual_seed(0)
    drawn = {n: torch.rand(p.shape, generator=generator) for n, p in model.named_parameters() if p.requires_grad}
    values = {name: torch.where(value < 0.25, 0.0, scale * value) for name, value in drawn.items()}
    return Importance(values, ImportanceInfo("fisher-exact", 8, nats_per_unit=1.0))


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
