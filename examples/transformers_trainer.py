"""Fine-tune a language model with `transformers.Trainer` and keep what it could do.

A tiny GPT-2, made from its configuration, knows counting by one and learns counting by three. Run it:

    python examples/transformers_trainer.py
"""

from __future__ import annotations

import tempfile

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, Trainer, TrainingArguments

import holdfast as hf
from holdfast.integrations.transformers import HoldfastCallback


def counting(step: int, *, first: int, count: int = 256, length: int = 12, seed: int = 0) -> list[dict[str, Tensor]]:
    """Sequences that count up by `step` among the sixteen tokens from `first` on."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(16, (count, 1), generator=generator)
    tokens = first + (starts + step * torch.arange(length)) % 16
    return [{"input_ids": row, "labels": row} for row in tokens]


def batches(examples: list[dict[str, Tensor]], size: int = 32) -> list[dict[str, Tensor]]:
    tokens = torch.stack([example["input_ids"] for example in examples])
    return [{"input_ids": part, "labels": part} for part in tokens.split(size)]


def loss_of(model: PreTrainedModel, examples: list[dict[str, Tensor]]) -> float:
    """Mean over positions, in nats."""
    model.eval()
    with torch.no_grad():
        return sum(model(**batch).loss.item() for batch in batches(examples)) / len(batches(examples))


def train(model: PreTrainedModel, examples: list[dict[str, Tensor]], *, steps: int, keeper: hf.EWC | None = None):
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=32,
            learning_rate=3e-3,
            logging_steps=max(1, steps // 4),
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
        )
        trainer = Trainer(model, args, train_dataset=examples)  # pyright: ignore[reportArgumentType]
        if keeper is not None:
            HoldfastCallback(keeper).attach(trainer)  # the one line that is added
        trainer.train()
        return trainer.state.log_history


def main(steps: int = 150) -> dict[str, float]:
    torch.manual_seed(0)
    settings = {"n_embd": 32, "n_layer": 2, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    ready = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=16, **settings))
    old, new = counting(1, first=0), counting(3, first=16)
    train(ready, old, steps=steps)
    found = {"old skill before": loss_of(ready, old), "new skill before": loss_of(ready, new)}
    start = {name: tensor.clone() for name, tensor in ready.state_dict().items()}
    for name in ("plain", "held"):
        ready.load_state_dict(start)
        keeper = None
        if name == "held":
            keeper = hf.EWC(ready, strength=110.0)
            keeper.retain(hf.fisher(ready, batches(old), kind="sampled"))
        train(ready, new, steps=steps, keeper=keeper)
        found[f"old skill after, {name}"] = loss_of(ready, old)
        found[f"new skill after, {name}"] = loss_of(ready, new)
    return found


if __name__ == "__main__":
    for name, loss in main().items():
        print(f"{name:24} {loss:.3f} nats a token")
