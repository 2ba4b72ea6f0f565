"""Fine-tune a language model with Lightning and keep what it could do.

A tiny Llama, made from its configuration, knows counting by one and learns counting by three, within a budget: the old
loss may rise by so many nats a token. Run it:

    python examples/lightning_trainer.py
"""

from __future__ import annotations

import logging

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

import holdfast as hf
from holdfast.integrations.lightning import HoldfastCallback

Batch = dict[str, Tensor]


def counting(step: int, *, first: int, count: int = 256, length: int = 12, seed: int = 0) -> list[Batch]:
    """Batches of sequences that count up by `step` among the sixteen tokens from `first` on."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(16, (count, 1), generator=generator)
    tokens = first + (starts + step * torch.arange(length)) % 16
    return [{"input_ids": part, "labels": part} for part in tokens.split(32)]


class Learner(LightningModule):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.model(**batch).loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def loss_of(model: nn.Module, data: list[Batch]) -> float:
    """Mean over positions, in nats."""
    model.eval()
    with torch.no_grad():
        return sum(model(**batch).loss.item() for batch in data) / len(data)


def train(model: nn.Module, data: list[Batch], *, steps: int, keeper: hf.EWC | None = None) -> None:
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[] if keeper is None else [HoldfastCallback(keeper)],  # the one line that is added
    )
    trainer.fit(Learner(model.train()), DataLoader(data, batch_size=None))  # pyright: ignore[reportArgumentType]


def main(steps: int = 150) -> dict[str, float]:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    torch.manual_seed(0)
    ready = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=16,
        )
    )
    old, new = counting(1, first=0), counting(3, first=16)
    train(ready, old, steps=steps)
    found = {"old skill before": loss_of(ready, old), "new skill before": loss_of(ready, new)}
    start = {name: tensor.clone() for name, tensor in ready.state_dict().items()}
    for name in ("plain", "held"):
        ready.load_state_dict(start)
        keeper = None
        if name == "held":
            keeper = hf.EWC(ready, budget=0.0027).retain(hf.fisher(ready, old, kind="sampled"))
        train(ready, new, steps=steps, keeper=keeper)
        found[f"old skill after, {name}"] = loss_of(ready, old)
        found[f"new skill after, {name}"] = loss_of(ready, new)
    return found


if __name__ == "__main__":
    for name, loss in main().items():
        print(f"{name:24} {loss:.3f} nats a token")
