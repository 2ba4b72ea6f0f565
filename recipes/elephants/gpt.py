"""A small GPT that reads English is taught Python: the perplexities of both, method by method."""

from __future__ import annotations

import hashlib
import sysconfig
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from holdfast.curvature import AnyImportance
from holdfast.errors import DataFileError
from holdfast.files import check_output, is_saved, write_state
from holdfast.files.exclusive import locked
from holdfast.importance import measure, probes_of
from holdfast.language import Dreams, dreams
from holdfast.language.batches import Example, LanguageBatch, batches, examples
from holdfast.language.models import LanguageModel, load_model, transformers_library
from holdfast.language.rows import Row
from holdfast.language.skills import evaluate
from holdfast.tensors import all_parameters, copies
from recipes.elephants.learning import Pace, learn, shuffled
from recipes.elephants.methods import STORY_METHODS, HeldForm, PastSource, Start, learn_with
from recipes.elephants.trial import (
    WEIGHTS,
    MessageCallback,
    StoryTrial,
    TrialResult,
    load,
    put,
    save,
)

LENGTH = 128
"""Tokens of a block, an example of every kind here."""
_SHARES = {"train": (0.0, 0.9), "validation": (0.9, 0.95), "test": (0.95, 1.0)}
_ENGLISH = ("speeches", "tinyshakespeare", "wikitext2")


@dataclass(frozen=True)
class GPTSize:
    """How large everything is.

    Attributes:
        width: of the model.
        layers: of it.
        vocabulary: tokens of the tokenizer.
        english: how English is learned.
        python: how Python is learned after it.
        measured: blocks an importance is measured on, and dreams that are written.
        evaluated: blocks a perplexity is taken on.
        characters: of each language that are read at most.
    """

    width: int
    layers: int
    vocabulary: int
    english: Pace
    python: Pace
    measured: int
    evaluated: int
    characters: int


SIZES = {
    "full": GPTSize(
        192,
        4,
        4096,
        Pace(2000, 2e-3, batch_size=16, precision="bfloat16"),
        Pace(2000, 3e-3, batch_size=8, precision="bfloat16"),
        1600,
        400,
        8_000_000,
    ),
    "quick": GPTSize(64, 2, 512, Pace(60, 2e-3, batch_size=8), Pace(30, 1e-3, batch_size=8), 64, 16, 300_000),
    "large": GPTSize(
        384, 8, 8192, Pace(6000, 6e-4, batch_size=64), Pace(1500, 3e-4, batch_size=64), 2048, 400, 12_000_000
    ),
}
"""For two cores, for a test, and for a GPU (17 million weights)."""


@dataclass(frozen=True)
class Gpt:
    """What all trials share.

    Attributes:
        data_dir: with text/speeches, text/tinyshakespeare and text/wikitext2.
        work: folder in which the trained model and the importance are kept.
        size: a name of `SIZES`.
        device: as torch names it.
    """

    data_dir: Path
    work: Path
    size: str = "full"
    device: str | torch.device = "cpu"

    @property
    def settings(self) -> dict[str, Any]:
        """What all trials share, as JSON values."""
        return {**asdict(self.sizes), "nats": "a token"}

    @property
    def sizes(self) -> GPTSize:
        """The figures of the size."""
        return SIZES[self.size]

    @cached_property
    def english(self) -> dict[str, str]:
        """The English texts, by part."""
        files = sorted(file for name in _ENGLISH for file in (self.data_dir / "text" / name).glob("*.txt"))
        if not files:
            raise DataFileError(f"{self.data_dir / 'text'}: none of {', '.join(_ENGLISH)}. Name another --data-dir.")
        texts = [file.read_text(encoding="utf-8") for file in files]
        share = min(1.0, self.sizes.characters / sum(map(len, texts)))
        return _parts([text[: int(share * len(text))] for text in texts])

    @cached_property
    def python(self) -> dict[str, str]:
        """The standard library's own source, by part; its files in an order that their names decide."""
        root = Path(sysconfig.get_paths()["stdlib"])
        files = [file for file in root.rglob("*.py") if not {"site-packages", "test", "tests"} & set(file.parts)]
        files.sort(key=lambda file: hashlib.sha256(str(file.relative_to(root)).encode()).digest())
        texts, size = [], 0
        for file in files:
            texts.append(file.read_text(encoding="utf-8", errors="replace"))
            size += len(texts[-1])
            if size > self.sizes.characters:
                break
        return _parts(["".join(texts)[: self.sizes.characters]])

    @cached_property
    def ready(self) -> LanguageModel:
        """The model that reads English."""
        found = load_model(str(self.prepared()), task="causal-lm", device=self.device)
        _plain_attention(found.base, self.device)
        return found

    def prepared(self, on_message: MessageCallback = lambda _: None) -> Path:
        """The folder of the model that reads English, which is trained once."""
        folder = self.work / f"gpt-{self.size}"
        with locked(self.work / f".holdfast-gpt-{self.size}.lock"):
            if not is_saved(folder):
                check_output(folder)
                self._trained(on_message).save(folder)
        return folder

    def dreams(self, on_message: MessageCallback = lambda _: None) -> Dreams:
        """What the model that reads English writes; once."""
        folder = self.work / f"dreams-gpt-{self.size}"
        with locked(self.work / f".holdfast-dreams-{self.size}.lock"):
            if not is_saved(folder):
                check_output(folder)
                on_message(f"dreams: {self.sizes.measured} blocks ...")
                begin = time.monotonic()
                ready, size = self.ready, self.sizes.python.batch_size
                found = dreams(
                    ready.base,
                    ready.tokenizer,
                    count=self.sizes.measured,
                    length=LENGTH,
                    batch_size=size,
                    name=f"gpt-{self.size}",
                )
                found.save(folder)
                on_message(f"dreams: {time.monotonic() - begin:.0f} s, perplexity {found.info.perplexity:.1f}")
        return Dreams.load(folder)

    def importance(
        self, form: HeldForm, source: PastSource, on_message: MessageCallback = lambda _: None
    ) -> AnyImportance:
        """What English rests on, measured on English blocks or on dreams, with others of them as probes; once."""
        folder = self.work / f"{form}-{source}-gpt-{self.size}"
        with locked(self.work / f".holdfast-{form}-{source}-{self.size}.lock"):
            if not is_saved(folder / WEIGHTS):
                check_output(folder)
                on_message(f"importance: {form}, {source} ...")
                if source == "free":
                    first, rest = self.dreams(on_message).split(self.sizes.measured * 7 // 8)
                    batches, probes = first.batches, rest.probes
                else:
                    batches, probes = self._english("train"), self._english("validation")
                options: dict[str, Any] = {"form": form, "labels": "sampled", "probes": probes, "num_probes": 128}
                save(measure(self.ready.base, batches, **options), folder)
        return load(folder).to(self.device)

    def past(self, source: PastSource, share: float, seed: int) -> Any:
        """What is rehearsed at a share: dreams, old answers to Python, or English, as much as is come to once."""
        if source == "free":
            return self.dreams().probes
        count = max(1, round(share * self.sizes.python.steps))
        if source == "new":
            stream = shuffled(self.ready, self.blocks["python", "train"], size=self.sizes.python.batch_size, seed=seed)
            return probes_of(self.ready.base, list(islice(stream, count)), num_examples=None)
        stream = shuffled(self.ready, self.blocks["english", "train"], size=self.sizes.python.batch_size, seed=seed)
        return list(islice(stream, count))

    def _english(self, part: str) -> list[LanguageBatch]:
        count = self.sizes.measured if part == "train" else min(self.sizes.measured, 128)
        return list(batches(self.ready, _spread(self.blocks["english", part], count), 8))

    @cached_property
    def blocks(self) -> dict[tuple[str, str], list[Example]]:
        """Blocks of tokens of the model that reads English, by language and part."""
        return self.blocks_of(self.ready)

    def blocks_of(self, model: LanguageModel) -> dict[tuple[str, str], list[Example]]:
        """Blocks of a model's tokens, by language and part."""
        texts = {"english": self.english, "python": self.python}
        return {
            (language, part): list(examples(model, [Row((text,))], length=LENGTH, labelled=False))
            for language, parts in texts.items()
            for part, text in parts.items()
        }

    @cached_property
    def before(self) -> dict[str, dict[str, Any]]:
        """The perplexities of both languages, by the model that reads English."""
        return self._perplexities(self.ready)

    def do(self, trial: StoryTrial, on_message: MessageCallback) -> TrialResult:
        """Carry a trial out."""
        self.prepared(on_message)
        begin = time.monotonic()
        method, ready = STORY_METHODS[trial.method], self.ready
        bare = deepcopy(ready.base)
        model = replace(ready, module=bare, base=bare)
        before = self.before
        pace = replace(self.sizes.python, lr=trial.lr * self.sizes.python.lr)
        torch.manual_seed(trial.seed)
        judged = _spread(self.blocks["python", "validation"], self.sizes.evaluated // 2)
        trained = self.work / f"plain-lr-{trial.lr:g}-{trial.seed}.safetensors"
        step = learn_with(
            method,
            trial.value,
            Start(
                model,
                bare,
                held=lambda form, source: self.importance(form, source, on_message),
                past=lambda source, share: self.past(source, share, trial.seed),
                share=method.share_for("gpt"),
                trained=lambda: put(bare, trained),
            ),
            shuffled(model, self.blocks["python", "train"], size=pace.batch_size, seed=trial.seed),
            pace,
            judge=lambda: evaluate(model, batches(model, judged, 32)).loss,
            on_step=lambda step, loss: on_message(f"{trial.name}: step {step}, loss {loss:.3f}"),
        )
        if trial.method == "plain":
            write_state(trained, copies(all_parameters(bare)), {})
        after = self._perplexities(model)
        told = (
            f"{name} {before[which]['test']['value']:.2f} -> {after[which]['test']['value']:.2f}"
            for which, name in (("old", "English"), ("new", "Python"))
        )
        on_message(f"{trial.name}: {', '.join(told)}")
        return {"before": before, "after": after, "step": step, "seconds": round(time.monotonic() - begin, 1)}

    def _perplexities(self, model: LanguageModel) -> dict[str, dict[str, Any]]:
        return {
            which: {
                part: evaluate(
                    model, batches(model, _spread(self.blocks[language, part], self.sizes.evaluated), 32)
                ).figures
                for part in ("validation", "test")
            }
            for which, language in (("old", "english"), ("new", "python"))
        }

    def untrained(self, seed: int) -> LanguageModel:
        """The model before it has read anything, with the tokenizer of both languages."""
        transformers, sizes = transformers_library(), self.sizes
        tokenizer = self._tokenizer(transformers)
        torch.manual_seed(seed)
        config = transformers.GPT2Config(
            vocab_size=sizes.vocabulary,
            n_positions=LENGTH,
            n_embd=sizes.width,
            n_layer=sizes.layers,
            n_head=max(1, sizes.width // 32),
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
        )
        module: Any = transformers.GPT2LMHeadModel(config).to(self.device)
        _plain_attention(module, self.device)
        return LanguageModel(f"gpt-{self.size}", self.work, "causal-lm", module, module, tokenizer, "")

    def _trained(self, on_message: MessageCallback) -> LanguageModel:
        model, sizes = self.untrained(0), self.sizes
        blocks = list(examples(model, [Row((self.english["train"],))], length=LENGTH, labelled=False))
        learn(
            model,
            shuffled(model, blocks, size=sizes.english.batch_size, seed=0),
            sizes.english,
            checkpoint=self.work / f".holdfast-gpt-{self.size}.checkpoint",
            on_step=lambda step, loss: on_message(f"English: step {step} of {sizes.english.steps}, loss {loss:.3f}"),
        )
        return model

    def _tokenizer(self, transformers: Any) -> Any:
        """Byte-pair tokens of both languages, as a ready model's tokenizer knows more than it was trained on."""
        from tokenizers import ByteLevelBPETokenizer

        bare = ByteLevelBPETokenizer()
        some = self.sizes.characters // 4
        texts = (
            text[start : start + 2**16]
            for text in (self.english["train"], self.python["train"])
            for start in range(0, min(len(text), some), 2**16)
        )
        bare.train_from_iterator(
            texts, vocab_size=self.sizes.vocabulary, special_tokens=["<|endoftext|>"], show_progress=False
        )
        return transformers.PreTrainedTokenizerFast(
            tokenizer_object=bare._tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>"
        )


def _plain_attention(module: Any, device: str | torch.device) -> None:
    """Attention in torch's usual operations: on the CPU a third quicker in bfloat16, for blocks as short as ours."""
    if torch.device(device).type == "cpu":
        module.set_attn_implementation("eager")


def _parts(texts: Sequence[str]) -> dict[str, str]:
    """Every text cut into training, validation and test data."""
    return {
        part: "".join(text[int(low * len(text)) : int(high * len(text))] for text in texts)
        for part, (low, high) in _SHARES.items()
    }


def _spread(blocks: Sequence[Example], count: int) -> list[Example]:
    """So many blocks, evenly spread, whole ones."""
    whole = [block for block in blocks if len(block.tokens[0]) == LENGTH]
    stride = max(1, len(whole) // count)
    return list(whole[::stride])[:count]
