"""Dreams: what a causal language model writes when it is left alone, with its own answers to it.

A ready model comes without the data that it was trained on. What it writes stands for them: to measure what its skill
rests on, to see what it loses, and to rehearse while it learns something new.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from holdfast.errors import NotFiniteError, OptionError
from holdfast.language.processes import ALONE, Processes, Told
from holdfast.language.texts import Dreams, DreamsInfo, vocabulary_of
from holdfast.language.writing import Chat, blocks, conversations, num_positions
from holdfast.language.written import ROUND, Written
from holdfast.likelihoods import Categorical
from holdfast.likelihoods.batches import batch_to
from holdfast.likelihoods.categorical import IGNORED
from holdfast.probes import Probes
from holdfast.probes.evaluating import evaluating
from holdfast.probes.probes import Probe
from holdfast.tensors import sum_of, unwrap, wide_dtype

_LEAST = {"count": 1, "batch_size": 1, "seed": 0}
_MOST_NATS = 700.0
"""A token, of which the perplexity is still a number."""


def dreams(
    model: nn.Module,
    tokenizer: Any,
    *,
    count: int = 1600,
    length: int = 128,
    chat: bool | None = None,
    temperatures: Sequence[float] = (1.0,),
    batch_size: int = 8,
    seed: int = 0,
    name: str | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = False,
    processes: Processes = ALONE,
) -> Dreams:
    """Let a causal language model write, and keep its answers to what it wrote.

    Args:
        model: one of transformers with `generate`; left as it was, and so is the random state.
        tokenizer: its own.
        count: of dreams.
        length: tokens of one; of a conversation at most.
        chat: whether to write conversations: the model is given its chat template up to the user's turn, and writes the
            question and then the answer (cf. Magpie, arXiv 2406.08464). None: where the tokenizer has a template. Else
            blocks of exactly `length` tokens, from the token at which a text begins or ends.
        temperatures: in turn, of rounds of 32 texts; 1 draws from the model's own distribution, more gives wilder ones.
            The answers that are kept are always those at temperature 1.
        batch_size: dreams of a batch, in which they are rehearsed.
        seed: of the draws.
        name: of the model, for people; None for the one that it has.
        checkpoint: a file that holds what is written so far, from which a killed call goes on to the same dreams. It
            stays, for the caller to remove once the dreams are saved.
        progress: show a progress bar.
        processes: that write together, each a round of as many as they are: the same dreams as one process writes, from
            the seeds of the same rounds. The first keeps the checkpoint; each takes all of the answers.

    Raises:
        OptionError: an option out of its range, a model that is no causal one or has no `generate`, no token to begin
            or to end with, or no template.
        NotFiniteError: weights or answers are NaN or infinite.
        CollapseError: most of what the model writes are duplicates and loops, or conversations without an end.
        RunMismatchError, FileFormatError: the checkpoint is of another call, or damaged.
        LostProcessError: another process is gone.

    Cost: `length` forward passes of one token on 32 texts for every 32 that are written, of conversations up to
    twice as many; then one pass over the dreams for the answers. Of a vocabulary of more than 1,024 tokens the answers
    at each place are those of 128 (`Categorical.answers`), in 770 bytes.
    """
    _check(model, count=count, length=length, temperatures=temperatures, batch_size=batch_size, seed=seed)
    has_template = getattr(tokenizer, "chat_template", None) is not None
    talks = Chat.of(tokenizer) if chat or (chat is None and has_template) else None
    stop = [] if talks is None else _stops(model, talks, length=length)
    name = name or str(getattr(getattr(unwrap(model), "config", None), "name_or_path", "")) or type(model).__name__
    identity = {"model": name, "tokenizer": vocabulary_of(tokenizer), "chat": talks is not None, "length": length}
    identity |= {"temperatures": list(temperatures), "seed": seed, "weights": _sum_of_weights(model)}
    start = _first_token(model, tokenizer)
    processes.agree("dreams", **identity, count=count)
    written = _begun(None if checkpoint is None else Path(checkpoint), identity, processes)
    with tqdm(total=count, initial=len(written.texts), desc="dreams", unit="text", disable=not progress) as bar:
        while len(written.texts) < count:
            number = written.rounds + processes.rank
            temperature = temperatures[number % len(temperatures)]
            own = {"length": length, "count": ROUND, "temperature": temperature, "seed": seed + number}
            found = (
                blocks(model, start=start, **own) if talks is None else conversations(model, talks, stop=stop, **own)
            )
            for each in processes.told_in_order(found):
                if len(written.texts) < count:  # one process would not have written more
                    written.add(each, ROUND)
                    written.check(count)
            if checkpoint is not None and processes.is_first:
                written.save(Path(checkpoint), identity)
            bar.update(min(count, len(written.texts)) - bar.n)
    texts = written.texts[:count]
    probes, perplexity, rest = _answered(model, _batched(texts, batch_size, pad=_pad(tokenizer)))
    info = DreamsInfo(
        model=name,
        tokenizer=vocabulary_of(tokenizer),
        chat=talks is not None,
        length=length,
        temperatures=tuple(temperatures),
        seed=seed,
        written=written.count,
        duplicates=written.duplicates,
        loops=written.loops,
        distinct=_distinct(texts),
        perplexity=perplexity,
        rest=rest,
    )
    return Dreams(probes, info)


def _begun(checkpoint: Path | None, identity: Mapping[str, Any], processes: Processes) -> Written:
    """What the first process reads of a checkpoint, in all."""
    read: list[Written] = []

    def find() -> Told:
        read.append(Written() if checkpoint is None else Written.at(checkpoint, identity))
        return read[0].state()

    tensors, notes = processes.of_first(find)
    return read[0] if read else Written.of(tensors, notes)


def _check(model: nn.Module, *, temperatures: Sequence[float], length: int, **counts: int) -> None:
    bare: Any = unwrap(model)
    if not callable(getattr(bare, "generate", None)):
        raise OptionError(
            f"dreams: {type(model).__name__} has no generate(). Expected a causal language model of transformers, "
            "such as AutoModelForCausalLM gives."
        )
    if getattr(getattr(bare, "config", None), "is_encoder_decoder", False):
        raise OptionError(
            f"dreams: {type(model).__name__} is an encoder-decoder, which writes nothing without a text to begin with. "
            "Expected a causal language model, such as AutoModelForCausalLM gives."
        )
    for name, value, least in (*((name, value, _LEAST[name]) for name, value in counts.items()), ("length", length, 8)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise OptionError(f"dreams: {name}={value!r}, expected a whole number >= {least}.")
    most = num_positions(bare)
    if most is not None and length > most:
        raise OptionError(f"dreams: length={length}, and the model has {most} positions. Give length={most} or less.")
    numbers = temperatures if isinstance(temperatures, Sequence) and not isinstance(temperatures, str) else ()
    if not numbers or not all(isinstance(t, int | float) and 0 < t < math.inf for t in numbers):
        raise OptionError(f"dreams: temperatures={temperatures!r}, expected numbers above 0, such as (1.0,).")


def _sum_of_weights(model: nn.Module) -> float:
    """What tells one state of a model from another.

    Raises:
        NotFiniteError: it is NaN or infinite.
    """
    found = sum_of(parameter.detach().sum(dtype=wide_dtype(parameter)) for parameter in model.parameters())
    if not math.isfinite(found):
        raise NotFiniteError("dreams: the model's weights are NaN or infinite. Load it again.")
    return found


def _first_token(model: nn.Module, tokenizer: Any) -> int:
    config = getattr(unwrap(model), "generation_config", None)
    names = ("bos_token_id", "eos_token_id")
    for found in (getattr(owner, name, None) for owner in (tokenizer, config) for name in names):
        if isinstance(found, list | tuple) and found:
            found = found[0]
        if isinstance(found, int):
            return found
    raise OptionError("dreams: neither tokenizer nor model name a token at which a text begins or ends.")


def _stops(model: nn.Module, chat: Chat, *, length: int) -> list[int]:
    """The tokens that end a turn: those for an end, and what the template puts behind the user's words.

    Raises:
        OptionError: there is none, or a conversation of this length has no room for words.
    """
    if length < chat.frame + 2:
        raise OptionError(
            f"dreams: length={length}, and of a conversation the chat template alone takes {chat.frame} tokens. "
            "Give a greater length, or chat=False for blocks."
        )
    found = getattr(getattr(unwrap(model), "generation_config", None), "eos_token_id", None)
    own = [*(found if isinstance(found, list | tuple) else [found]), getattr(chat.tokenizer, "eos_token_id", None)]
    stops = sorted({token for token in (*own, *chat.ending) if isinstance(token, int)})
    if not stops:
        raise OptionError(
            "dreams: nothing ends a turn: neither tokenizer nor model name an eos_token, and the chat template puts no "
            "special token behind the user's words. Set tokenizer.eos_token, or pass chat=False for blocks."
        )
    return stops


def _pad(tokenizer: Any) -> int:
    return getattr(tokenizer, "pad_token_id", None) or 0


def _batched(texts: Sequence[Tensor], size: int, *, pad: int) -> Iterator[dict[str, Tensor]]:
    for place in range(0, len(texts), size):
        some = [text.long() for text in texts[place : place + size]]
        tokens = pad_sequence(some, batch_first=True, padding_value=pad)
        mask = pad_sequence([torch.ones_like(text) for text in some], batch_first=True)
        yield {"input_ids": tokens, "attention_mask": mask, "labels": tokens.masked_fill(mask == 0, IGNORED)}


def _answered(model: nn.Module, batches: Iterable[dict[str, Tensor]]) -> tuple[Probes, float, float]:
    """The batches with the model's answers, its perplexity on them, and the mean probability of the rest."""
    loss = Categorical(causal=True)
    found, nats, rest, count = [], 0.0, 0.0, 0
    with evaluating(model) as bare:
        device = next(bare.parameters()).device
        for batch in batches:
            here = batch_to(batch, device)
            outputs = bare(input_ids=here["input_ids"], attention_mask=here["attention_mask"])
            answers, targets = loss.answers(outputs, here), loss.num_targets(batch)
            nats += float(loss.nll(outputs, here).sum())
            if "classes" in answers:
                counts = F.pad(here["labels"][:, 1:], (0, 1), value=IGNORED) != IGNORED
                rest += float((answers["log_p"][..., -1].exp() * counts).sum())
            kept = {name: a.half() if a.is_floating_point() else a.int() for name, a in answers.items()}
            found.append(Probe(batch, {name: answer.cpu() for name, answer in kept.items()}, targets))
            count += targets
    if not math.isfinite(nats):
        raise NotFiniteError("dreams: the model's answers are NaN or infinite. Look for NaN in its weights.")
    return Probes(loss, tuple(found)), math.exp(min(nats / count, _MOST_NATS)), rest / count


def _distinct(texts: Sequence[Tensor]) -> float:
    """Share of the runs of four tokens, over all texts, that are distinct."""
    runs = torch.cat([text.unfold(0, 4, 1) for text in texts if len(text) >= 4])
    return len(runs.unique(dim=0)) / len(runs)
