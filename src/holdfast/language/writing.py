"""What a causal language model writes when it is left alone: blocks of tokens, drawn from the model itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.errors import OptionError
from holdfast.probes.evaluating import evaluating

_MARK = "\u2063holdfast\u2063"
"""Stands for what is yet to be written where a chat template is taken apart."""

LOOP = 0.5
"""A text of whose runs of four tokens less than this share are distinct goes round in a loop."""


@dataclass(frozen=True)
class Chat:
    """A chat template, taken apart.

    Attributes:
        opening: the tokens up to the place where the user's words begin.
        tokenizer: whose template it is.
    """

    opening: list[int]
    tokenizer: Any

    @classmethod
    def of(cls, tokenizer: Any) -> Chat:
        """That of a tokenizer.

        Raises:
            OptionError: it has none, or one that does not write the user's words as they are.
        """
        if getattr(tokenizer, "chat_template", None) is None:
            raise OptionError("dreams: chat=True, and the tokenizer has no chat template. Leave chat out.")
        text = tokenizer.apply_chat_template([{"role": "user", "content": _MARK}], tokenize=False)
        before, found, _ = text.partition(_MARK)
        if not found:
            raise OptionError("dreams: the chat template does not write the user's words as they are.")
        return cls(tokenizer(before, add_special_tokens=False)["input_ids"], tokenizer)

    def until_the_answer(self, question: Sequence[int]) -> list[int]:
        """The tokens of a conversation up to the place where the answer begins."""
        content = self.tokenizer.decode(question, skip_special_tokens=True).strip()
        asked = [{"role": "user", "content": content}]
        text = self.tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


def blocks(model: nn.Module, *, start: int, length: int, count: int, temperature: float, seed: int) -> list[Tensor]:
    """Blocks of `length` tokens that begin with `start`, as a text goes on and not past where it was cut.

    The first token after `start` is drawn without one being drawn twice, and every other from the model alone.

    Args:
        model: a causal model of transformers, with `generate`; left as it was, and so is the random state.
        start: the token that stands before every text, such as that for its end.
        length: of a block, with `start`.
        count: of blocks.
        temperature: above 0; 1 draws from the model's own distribution.
        seed: of the draws.

    Cost: `length` forward passes of one token, on `count` texts at once.
    """
    with _drawing(model, seed) as bare:
        device = next(bare.parameters()).device
        begun = torch.full((1, 1), start, device=device)
        logits = bare(input_ids=begun).logits[0, -1].float() / temperature
        chances = logits.softmax(dim=-1)
        firsts = torch.multinomial(chances, count, replacement=int((chances > 0).sum()) < count)
        prompts = torch.stack([begun.expand(count, 1)[:, 0], firsts], dim=1)
        written = _generated(bare, prompts, length - 2, temperature, stop=None) if length > 2 else prompts
    return list(written.int().cpu())


def conversations(
    model: nn.Module, chat: Chat, *, length: int, count: int, temperature: float, seed: int, stop: Sequence[int]
) -> list[Tensor]:
    """Conversations of one question and one answer, both written by the model (cf. Magpie, arXiv 2406.08464).

    Args:
        model: as for `blocks`.
        chat: the template.
        length: the most tokens of a conversation.
        count: that are begun; those whose question or answer has no end within `length` are left out.
        temperature: as for `blocks`.
        seed: likewise.
        stop: the tokens that end a turn.
    """
    found = []
    with _drawing(model, seed) as bare:
        device = next(bare.parameters()).device
        prompts = torch.tensor([chat.opening] * count, device=device)
        room = length - len(chat.opening)
        for row in _generated(bare, prompts, room, temperature, stop=stop).tolist():
            question = _until(row[len(chat.opening) :], stop)
            if not question:
                continue
            opening = chat.until_the_answer(question)
            if len(opening) >= length - 1:
                continue
            asked = torch.tensor([opening], device=device)
            (whole,) = _generated(bare, asked, length - len(opening), temperature, stop=stop).tolist()
            answer = _until(whole[len(opening) :], stop)
            if answer:
                found.append(torch.tensor(whole[: len(opening) + len(answer) + 1], dtype=torch.int32))
    return found


def is_loop(tokens: Tensor) -> bool:
    """Whether a text goes round: of its runs of four tokens less than half are distinct."""
    runs = tokens.unfold(0, 4, 1) if len(tokens) >= 4 else tokens.unsqueeze(0)
    return len(runs.unique(dim=0)) < LOOP * len(runs)


@contextmanager
def _drawing(model: nn.Module, seed: int) -> Iterator[Any]:
    with evaluating(model) as bare:  # which gives the random state back
        torch.manual_seed(seed)
        yield bare


def _generated(model: Any, prompts: Tensor, count: int, temperature: float, *, stop: Sequence[int] | None) -> Tensor:
    """The prompts [B, P] and up to `count` tokens more, [B, P + count]; behind a token of `stop` anything."""
    options: dict[str, Any] = {"eos_token_id": list(stop)} if stop else {"eos_token_id": None, "min_new_tokens": count}
    return model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        do_sample=True,
        temperature=temperature,
        top_k=0,
        top_p=1.0,
        repetition_penalty=1.0,
        max_new_tokens=count,
        pad_token_id=stop[0] if stop else 0,
        **options,
    )


def _until(tokens: list[int], stop: Sequence[int]) -> list[int]:
    """What stands before the first token of `stop`; nothing where none comes."""
    ends = [place for place, token in enumerate(tokens) if token in set(stop)]
    return tokens[: ends[0]] if ends else []
