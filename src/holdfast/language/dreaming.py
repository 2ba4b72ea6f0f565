"""Dreams: what a causal language model writes when it is left alone, with its own answers to it.

A ready model comes without the data that it was trained on. What it writes stands for them: to measure what its skill
rests on, to see what it loses, and to rehearse while it learns something new.
"""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from holdfast.errors import (
    CollapseError,
    FileFormatError,
    ModelMismatchError,
    NotFiniteError,
    OptionError,
    RunMismatchError,
)
from holdfast.files import (
    Saved,
    new_folder,
    read_folder,
    read_state,
    write_description,
    write_state,
    write_tensors,
    write_text,
)
from holdfast.language.writing import Chat, blocks, conversations, is_loop, num_positions
from holdfast.likelihoods import Categorical
from holdfast.likelihoods.batches import batch_to
from holdfast.likelihoods.categorical import IGNORED
from holdfast.probes import Probes
from holdfast.probes.evaluating import evaluating
from holdfast.probes.files import probes_from_state, probes_to_state
from holdfast.probes.probes import Probe
from holdfast.tensors import sum_of, unwrap, wide_dtype
from holdfast.version import __version__

CONFIG = "dreams_config.json"
"""Where a folder of dreams says what it is."""

_STEM = "dreams"
_ROUND = 32
_PATIENCE = 4
"""So many times the rounds that would do are written before a model counts as collapsed."""
_LEAST = {"count": 1, "batch_size": 1, "seed": 0}
_MOST_NATS = 700.0
"""A token, of which the perplexity is still a number."""
_OTHER = 0.01
"""Nats a token between the answers of the dreams and those of a model, above which they are another's."""


@dataclass(frozen=True)
class DreamsInfo:
    """How dreams were made, and what they are like.

    Attributes:
        model: the name of the model.
        tokenizer: the sha256 of its vocabulary.
        chat: whether they are conversations.
        length: the most tokens of one.
        temperatures: in turn.
        seed: of the draws.
        written: texts that were written, of which `duplicates`, `loops` and those without an end were dropped.
        duplicates: that said what another had said.
        loops: that went round.
        distinct: share of the runs of four tokens, over all dreams, that occur once.
        perplexity: of the model itself on them; e^700 where it is more.
        rest: the probability, at a mean token, of all classes but the 64 whose probabilities are kept.
    """

    model: str
    tokenizer: str
    chat: bool
    length: int
    temperatures: tuple[float, ...]
    seed: int
    written: int
    duplicates: int
    loops: int
    distinct: float
    perplexity: float
    rest: float


@dataclass(frozen=True)
class Dreams:
    """Texts that a model wrote, with its answers to them.

        hf.Rehearsal(model, dreams.probes, share=0.1)                            # rehearse them
        keeper.retain(hf.measure(model, dreams.batches, probes=dreams.probes))   # measure, hold and watch without data

    Attributes:
        probes: the texts in batches, as the model takes them, and what it answered.
        info: how they were made.
    """

    probes: Probes
    info: DreamsInfo

    def __len__(self) -> int:
        """How many there are."""
        return self.probes.num_examples

    @property
    def batches(self) -> list[dict[str, Tensor]]:
        """The texts alone: `input_ids`, `attention_mask` and `labels`."""
        return [probe.batch for probe in self.probes.batches]

    def split(self, count: int) -> tuple[Dreams, Dreams]:
        """The first batches, with at least `count` dreams, and the others: to rehearse on, and to watch.

        Raises:
            OptionError: nothing would be left of one.
        """
        sizes = torch.tensor([len(batch["input_ids"]) for batch in self.batches]).cumsum(dim=0)
        place = int((sizes < count).sum()) + 1
        if count < 1 or place >= len(sizes):
            raise OptionError(f"Dreams.split: count={count} of {len(self)} dreams. Leave some for either part.")
        parts = self.probes.batches[:place], self.probes.batches[place:]
        first, second = (Dreams(replace(self.probes, batches=tuple(part)), self.info) for part in parts)
        return first, second

    def check(self, model: nn.Module, tokenizer: Any) -> None:
        """Raise or warn where they are not of this model, as it is now.

        Raises:
            ModelMismatchError: they were written with another vocabulary.
        """
        if _vocabulary(tokenizer) != self.info.tokenizer:
            raise ModelMismatchError(
                f"dreams: they were written by {self.info.model!r} with another vocabulary. Dream with this model."
            )
        rise = replace(self.probes, batches=self.probes.batches[:1]).rise(model)
        if rise > _OTHER:
            warnings.warn(
                f"dreams: the answers of this model are {rise:.3g} nats a token from those of {self.info.model!r}, "
                "which dreamt. They teach the other's. Dream again, before this one learns.",
                stacklevel=2,
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a folder of safetensors and JSON, with a card, whole or not at all.

        Raises:
            OutputError: something else stands there, or it cannot be written.
        """
        tensors, notes = probes_to_state(self.probes)
        with new_folder(path) as folder:
            write_tensors(folder, _STEM, tensors)
            content = {"library_version": __version__, "info": asdict(self.info), "probes": notes}
            write_description(folder / CONFIG, content)
            write_text(folder / "README.md", self._card())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote.

        Raises:
            FileFormatError: it is missing, truncated, edited, or something else.
        """
        return read_folder(path, cls._read)

    @classmethod
    def _read(cls, saved: Saved) -> Self:
        content, where = saved.description(CONFIG), str(saved.path)
        probes = probes_from_state(saved.tensors(_STEM), content.get("probes"), where=where)
        try:
            given = dict(content["info"])
            info = DreamsInfo(**{**given, "temperatures": tuple(given["temperatures"])})
        except (KeyError, TypeError) as error:
            raise FileFormatError(f"{where}: {CONFIG} is damaged ({error!r}). Dream again.") from error
        return cls(probes, info)

    def _card(self) -> str:
        info = self.info
        kind = "conversations" if info.chat else "texts"
        return (
            f"# Dreams of {info.model}\n\n"
            f"{len(self):,} {kind} of up to {info.length} tokens that the model wrote by itself, at temperature "
            f"{', '.join(f'{t:g}' for t in info.temperatures)}, and its 64 most probable next tokens at each place "
            "with their probabilities. holdfast rehearses them while the model learns on.\n\n"
            "No training data are in here. But a language model may repeat some of what it was trained on, word for "
            "word: share these dreams as you would share the model.\n\n"
            f"| | |\n| --- | --- |\n| written, duplicates, loops | {info.written:,}, {info.duplicates:,}, "
            f"{info.loops:,} |\n| distinct runs of four tokens | {info.distinct:.1%} |\n| perplexity of the model on "
            f"them | {info.perplexity:.4g} |\n| probability beyond the 64 kept | {info.rest:.2%} |\n"
        )


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

    Raises:
        OptionError: an option out of its range, a model that is no causal one or has no `generate`, no token to begin
            or to end with, or no template.
        NotFiniteError: weights or answers are NaN or infinite.
        CollapseError: most of what the model writes are duplicates and loops, or conversations without an end.
        RunMismatchError, FileFormatError: the checkpoint is of another call, or damaged.

    Cost: `length` forward passes of one token on 32 texts for every 32 that are written, of conversations up to
    twice as many; then one pass over the dreams for the answers. Of each token 64 probabilities are kept, in 2 bytes
    each, and their tokens, in 4: for vocabularies of more than 1,024 tokens 390 bytes a token.
    """
    _check(model, count=count, length=length, temperatures=temperatures, batch_size=batch_size, seed=seed)
    has_template = getattr(tokenizer, "chat_template", None) is not None
    talks = Chat.of(tokenizer) if chat or (chat is None and has_template) else None
    stop = [] if talks is None else _stops(model, talks, length=length)
    name = name or str(getattr(getattr(unwrap(model), "config", None), "name_or_path", "")) or type(model).__name__
    identity = {"model": name, "tokenizer": _vocabulary(tokenizer), "chat": talks is not None, "length": length}
    identity |= {"temperatures": list(temperatures), "seed": seed, "weights": _sum_of_weights(model)}
    written = _Written() if checkpoint is None else _Written.at(Path(checkpoint), identity)
    start = _first_token(model, tokenizer)
    with tqdm(total=count, initial=len(written.texts), desc="dreams", unit="text", disable=not progress) as bar:
        while len(written.texts) < count:
            temperature = temperatures[written.rounds % len(temperatures)]
            own = {"length": length, "count": _ROUND, "temperature": temperature, "seed": seed + written.rounds}
            found = (
                blocks(model, start=start, **own) if talks is None else conversations(model, talks, stop=stop, **own)
            )
            written.add(found, _ROUND)
            written.check(count)
            if checkpoint is not None:
                written.save(Path(checkpoint), identity)
            bar.update(min(count, len(written.texts)) - bar.n)
    texts = written.texts[:count]
    probes, perplexity, rest = _answered(model, _batched(texts, batch_size, pad=_pad(tokenizer)))
    info = DreamsInfo(
        model=name,
        tokenizer=_vocabulary(tokenizer),
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


@dataclass
class _Written:
    """Texts so far: `rounds` of them, `count` texts in all, of which some were dropped."""

    texts: list[Tensor] = field(default_factory=list)
    rounds: int = 0
    count: int = 0
    duplicates: int = 0
    loops: int = 0
    known: set[tuple[int, ...]] = field(init=False)

    def __post_init__(self) -> None:
        self.known = {tuple(text.tolist()) for text in self.texts}

    def add(self, found: Iterable[Tensor], count: int) -> None:
        """Take the texts of a round of `count` that are neither loops nor there already."""
        self.rounds, self.count = self.rounds + 1, self.count + count
        for text in found:
            key = tuple(text.tolist())
            if key in self.known:
                self.duplicates += 1
            elif is_loop(text):
                self.loops += 1
            else:
                self.known.add(key)
                self.texts.append(text)

    def check(self, count: int) -> None:
        """Raise `CollapseError` where these rounds should have been enough several times over."""
        if self.rounds >= _PATIENCE * math.ceil(count / _ROUND) and len(self.texts) < count:
            without_end = self.count - len(self.texts) - self.duplicates - self.loops
            raise CollapseError(
                f"dreams: of {self.count:,} texts that the model wrote {self.duplicates:,} were duplicates, "
                f"{self.loops:,} loops, and {without_end:,} had no end. It has collapsed, or is no model of such "
                "texts: look at what it writes, or dream at a higher temperature, or of another length."
            )

    def save(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Write a checkpoint."""
        lengths = torch.tensor([len(text) for text in self.texts], dtype=torch.int32)
        tokens = torch.cat(self.texts) if self.texts else torch.empty(0, dtype=torch.int32)
        numbers = {name: getattr(self, name) for name in ("rounds", "count", "duplicates", "loops")}
        write_state(path, {"lengths": lengths, "tokens": tokens}, {"identity": identity, **numbers})

    @classmethod
    def at(cls, path: Path, identity: Mapping[str, Any]) -> Self:
        """What a checkpoint holds; nothing where there is none."""
        if not path.exists():
            return cls()
        tensors, notes = read_state(path)
        if notes.get("identity") != identity:
            raise RunMismatchError(f"{path} is of other dreams: {notes.get('identity')}. Delete it, or name another.")
        try:
            texts = list(tensors["tokens"].split(tensors["lengths"].tolist()))
            return cls(texts, *(int(notes[name]) for name in ("rounds", "count", "duplicates", "loops")))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise FileFormatError(f"{path} is damaged ({error!r}). Delete it to dream anew.") from error


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


def _vocabulary(tokenizer: Any) -> str:
    words = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(repr(words).encode()).hexdigest()


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
                answers["classes"] = answers["classes"].int()
            kept = {"log_p": answers.pop("log_p").half(), **answers}
            found.append(Probe(batch, {name: answer.cpu() for name, answer in kept.items()}, targets))
            count += targets
    if not math.isfinite(nats):
        raise NotFiniteError("dreams: the model's answers are NaN or infinite. Look for NaN in its weights.")
    return Probes(loss, tuple(found)), math.exp(min(nats / count, _MOST_NATS)), rest / count


def _distinct(texts: Sequence[Tensor]) -> float:
    """Share of the runs of four tokens, over all texts, that are distinct."""
    runs = torch.cat([text.unfold(0, 4, 1) for text in texts if len(text) >= 4])
    return len(runs.unique(dim=0)) / len(runs)
