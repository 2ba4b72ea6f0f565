"""Sentence encoders: the mean of the outputs over a sentence's real tokens, and what is made of it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def pooled(encoder: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Mean of the last hidden states over real tokens: [N, H] from [N, T]."""
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    if getattr(encoder.config, "type_vocab_size", 0):  # left out they are looked up in a way that vmap cannot follow
        inputs["token_type_ids"] = torch.zeros_like(input_ids)
    hidden = encoder(**inputs).last_hidden_state
    mask = attention_mask.unsqueeze(-1).to(hidden)
    return (mask * hidden).sum(dim=1) / mask.sum(dim=1)


class SentenceEncoder(nn.Module):
    """Embeddings of length one for single sentences; for pairs the cosine of their embeddings.

    Args:
        encoder: a transformers model without a head; its name for a parameter is the name of the importance.
    """

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """[B, H] from [B, 1, T]; the cosine [B, 1] from [B, 2, T]."""
        # one text after the other: flattened to one axis, what is alike for all texts has no order that could be seen
        embeddings = [
            F.normalize(pooled(self.encoder, ids, mask), dim=-1)
            for ids, mask in zip(input_ids.unbind(1), attention_mask.unbind(1))
        ]
        return embeddings[0] if len(embeddings) == 1 else (embeddings[0] * embeddings[1]).sum(dim=-1, keepdim=True)


class SentenceClassifier(nn.Module):
    """A linear head on the mean of the encoder's outputs.

    Args:
        encoder: as for `SentenceEncoder`.
        labels: the names of the classes, in the order of the head's rows.
    """

    def __init__(self, encoder: Any, labels: tuple[str, ...]) -> None:
        super().__init__()
        self.encoder, self.labels = encoder, labels
        self.head = nn.Linear(encoder.config.hidden_size, len(labels))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits [B, C] from [B, 1, T]."""
        return self.head(pooled(self.encoder, input_ids.flatten(0, 1), attention_mask.flatten(0, 1)))
