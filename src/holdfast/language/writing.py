"""What a causal language model writes when it is left alone: blocks of tokens, drawn from the model itself."""

from __future__ import annotations

import math
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
        ending: the special token that stands behind these, in a list; empty where there is none.
        frame: how many tokens of a conversation are the template's, up to the place where the answer begins.
        tokenizer: whose template it is.
    """

    opening: list[int]
    ending: list[int]
    frame: int
    tokenizer: Any

    @classmethod
    def of(cls, tokenizer: Any) -> Chat:
        """That of a tokenizer.

        Raises:
            OptionError: it has none, or one that does not write the user's words as they are, or nothing before them.
        """
        if getattr(tokenizer, "chat_template", None) is None:
            raise OptionError("dreams: chat=True, and the tokenizer has no chat template. Leave chat out.")
        before, found, after = _templated(tokenizer, _MARK).partition(_MARK)
        if not found:
            raise OptionError(
                "dreams: the chat template does not write the user's words as they are. Pass chat=False for blocks."
            )
        opening, behind = _encoded(tokenizer, before), _encoded(tokenizer, after)
        if not opening:
            raise OptionError(
                "dreams: the chat template puts nothing before the user's words, from which the model could write "
                "them. Pass chat=False for blocks."
            )
        special = [token for token in behind if _is_special(tokenizer, token)]
        return cls(opening, special[:1], len(opening) + len(behind), tokenizer)

    def until_the_answer(self, question: Sequence[int]) -> list[int]:
        """The tokens of a conversation up to the place where the answer begins; none where nothing was asked."""
        content = self.tokenizer.decode(question, skip_special_tokens=True).strip()
        return _encoded(self.tokenizer, _templated(self.tokenizer, content)) if content else []


def num_positions(model: Any) -> int | None:
    """The most tokens that a model of transformers takes; None where its configuration names no such number."""
    config: Any = getattr(model, "config", None)
    inner = config.get_text_config() if hasattr(config, "get_text_config") else config
    found = getattr(inner, "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None


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
        begun = torch.full((1, 1), start, dtype=torch.long, device=device)
        logits = bare(input_ids=begun).logits[0, -1].float() / temperature
        chances = logits.softmax(dim=-1)
        firsts = torch.multinomial(chances, count, replacement=int((chances > 0).sum()) < count)
        prompts = torch.stack([begun.expand(count, 1)[:, 0], firsts], dim=1)
        written = _generated(bare, prompts, length - 2, temperature) if length > 2 else prompts
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

    Cost: up to twice `length` forward passes of one token, on `count` texts at once; more where the model has too few
    positions for texts of different lengths side by side.
    """
    found = []
    with _drawing(model, seed) as bare:
        asked = _continued(bare, [chat.opening] * count, length, temperature, stop=stop)
        openings = [chat.until_the_answer(question[:-1]) for _, question in asked if question]
        openings = [opening for opening in openings if 0 < len(opening) < length - 1]
        for opening, answer in _continued(bare, openings, length, temperature, stop=stop):
            if answer:
                found.append(torch.tensor(opening + answer, dtype=torch.int32))
    return found


def is_loop(tokens: Tensor) -> bool:
    """Whether a text goes round: of its runs of four tokens less than half are distinct."""
    words = tokens.tolist()
    runs = list(zip(*(words[place:] for place in range(4)), strict=False))
    return len(set(runs)) < LOOP * len(runs)


@contextmanager
def _drawing(model: nn.Module, seed: int) -> Iterator[Any]:
    """The bare model in evaluation mode, which draws from its own distribution, whatever its generation says."""
    with evaluating(model) as bare:  # which gives the random state back
        kept = [(module, found) for module in bare.modules() if (found := vars(module).get("generation_config"))]
        try:
            for module, found in kept:
                module.generation_config = type(found)()
            torch.manual_seed(seed)
            yield bare
        finally:
            for module, found in kept:
                module.generation_config = found


def _continued(
    model: Any, openings: Sequence[list[int]], length: int, temperature: float, *, stop: Sequence[int]
) -> Iterator[tuple[list[int], list[int]]]:
    """Every opening, by its length, and what the model writes behind it up to a token of `stop`, with this.

    Both together are `length` tokens or fewer. Nothing is behind where no such token comes, or where it comes at once.
    """
    device, positions = next(model.parameters()).device, num_positions(model) or math.inf
    groups: list[list[list[int]]] = []
    for opening in sorted(openings, key=len):
        if groups and len(opening) + length - len(groups[-1][0]) <= positions:
            groups[-1].append(opening)
        else:
            groups.append([opening])
    for group in groups:
        shortest, width = len(group[0]), len(group[-1])
        prompts = torch.tensor([[stop[0]] * (width - len(opening)) + opening for opening in group], device=device)
        mask = torch.tensor([[0] * (width - len(opening)) + [1] * len(opening) for opening in group], device=device)
        rows = _generated(model, prompts, length - shortest, temperature, stop=stop, mask=mask)
        for opening, row in zip(group, rows[:, width:].tolist(), strict=True):
            yield opening, _up_to_end(row[: length - len(opening)], stop)


def _generated(
    model: Any,
    prompts: Tensor,
    count: int,
    temperature: float,
    *,
    stop: Sequence[int] | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """The prompts [B, P] and up to `count` tokens more, [B, P + count]; behind a token of `stop` anything."""
    return model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts) if mask is None else mask,
        do_sample=True,
        temperature=temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=count,
        eos_token_id=list(stop) if stop else None,
        pad_token_id=stop[0] if stop else 0,
    )


def _templated(tokenizer: Any, content: str) -> str:
    asked = [{"role": "user", "content": content}]
    try:
        return tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # whatever a template raises
        raise OptionError(
            f"dreams: the chat template takes no conversation that a user begins ({error}). Pass chat=False for blocks."
        ) from error


def _is_special(tokenizer: Any, token: int) -> bool:
    """Whether it is no part of a text, as the token for an end is; more than those that have a name."""
    with_it, without = (tokenizer.decode([token], skip_special_tokens=skips) for skips in (False, True))
    return bool(with_it.strip()) and not without.strip()


def _encoded(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _up_to_end(tokens: list[int], stop: Sequence[int]) -> list[int]:
    """What stands before the first token of `stop`, and this token; nothing where that is all, or none comes."""
    ends = [place for place, token in enumerate(tokens) if token in stop]
    return tokens[: ends[0] + 1] if ends and ends[0] else []
