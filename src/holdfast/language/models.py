"""From a name to a ready language model with its tokenizer, and the hashes that tell it from others."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module, resources
from itertools import count
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import nn

from holdfast.errors import FileFormatError, HoldfastError, ModelMismatchError, OptionError, UnknownNameError
from holdfast.files import new_folder, read_json, read_state, write_json, write_state
from holdfast.files.typed import listed_mistakes, typed
from holdfast.language.encoders import SentenceClassifier, SentenceEncoder
from holdfast.language.folders import config_of, has_config, read_model_folder, revision_of
from holdfast.language.heads import (
    HEAD,
    ClassifierHead,
    base_prefix,
    head_tensors,
    module_with,
    name_labels,
    new_head,
    read_heads,
    write_heads,
)

LanguageTask = Literal["causal-lm", "classification", "similarity"]


@dataclass(frozen=True)
class LanguageModel:
    """A model and what belongs to it.

    Attributes:
        name: as it was asked for.
        folder: where its files are.
        task: what it is asked for here.
        module: called with `input_ids` and `attention_mask`; returns logits, embeddings or cosines.
        base: the part of it whose weights an importance names: a sentence encoder without its head, else all of it.
        tokenizer: its tokenizer.
        revision: the sha256 of its weights, see `revision_of`.
        labels: names of the classes of a classifier, else empty.
        new_head: whether its classifier starts untrained.
        head: the name of a classifier's head in use, else empty.
        heads: the other heads that it has had, by name. They are kept as they are while this one learns.
    """

    name: str
    folder: Path
    task: LanguageTask
    module: nn.Module
    base: nn.Module
    tokenizer: Any
    revision: str
    labels: tuple[str, ...] = ()
    new_head: bool = False
    head: str = ""
    heads: Mapping[str, ClassifierHead] = field(default_factory=dict)

    @property
    def own_part(self) -> str:
        """What the names in `base` begin with that belong to the model without its head; empty: all of them."""
        return base_prefix(self.module) if self.task == "classification" and self.base is self.module else ""

    @property
    def prefix(self) -> str:
        """What stands before a name of `base` in the names of `module`."""
        return "" if self.base is self.module else "encoder."

    def with_head(self, name: str) -> LanguageModel:
        """The same base with another of its heads, on the same weights: what one learns, the other has learned.

        Raises:
            UnknownNameError: it has no head of this name.
        """
        if name == self.head:
            return self
        if name not in self.heads:
            raise UnknownNameError("head", name, self.head_labels)
        own = {self.head: ClassifierHead(self.labels, head_tensors(self.module))} if self.head else {}
        others = {other: head for other, head in self.heads.items() if other != name}
        found = self.heads[name]
        module = module_with(self.module, found)
        return replace(
            self,
            task="classification",
            module=module,
            base=module if self.base is self.module else self.base,
            labels=found.labels,
            new_head=False,
            head=name,
            heads={**others, **own},
        )

    def with_new_head(self, name: str, labels: Sequence[str]) -> LanguageModel:
        """The same base with an untrained head for these labels; the head in use is kept beside it.

        Raises:
            OptionError: it has a head of this name.
        """
        if name in self.head_labels:
            raise OptionError(f"{self.name} has a head {name!r} already. Give the new one another name: --head NAME.")
        if isinstance(self.module, SentenceClassifier | SentenceEncoder):
            weights = SentenceClassifier(self.module.encoder, tuple(labels)).head.state_dict()
            fresh = ClassifierHead(tuple(labels), weights)
        else:
            fresh = new_head(self.module, labels)
        return replace(replace(self, heads={**self.heads, name: fresh}).with_head(name), new_head=True)

    @property
    def head_labels(self) -> dict[str, tuple[str, ...]]:
        """The labels of each head by its name, the head in use first."""
        own = {self.head: self.labels} if self.head else {}
        return own | {name: head.labels for name, head in self.heads.items()}

    def save(self, path: Path) -> None:
        """Write weights, configuration and tokenizer as transformers reads them, and beside them the heads.

        Raises:
            OutputError: as `holdfast.files.new_folder`, or the model itself was read from there.
        """
        with new_folder(path, reading=[self.folder]) as folder:
            bare: Any = self.base
            bare.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
            if isinstance(self.module, SentenceClassifier):
                write_state(folder / f"{HEAD}.safetensors", self.module.head.state_dict(), {})
                write_json(folder / f"{HEAD}.json", {"labels": list(self.labels)})
            if self.head_labels:
                write_heads(folder, self.head, self.heads)


def transformers_library() -> Any:
    """The module transformers, told to be silent.

    Raises:
        OptionError: it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise OptionError(
            'Language models need transformers, which is not installed: pip install "torch-holdfast[transformers]"'
        ) from error
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    return transformers


def package_of(name: str) -> str | None:
    """The installed package of this name that carries a model as `model/`; None where there is none."""
    package = name.replace("-", "_")
    if Path(name).exists() or not package.isidentifier():
        return None
    try:
        import_module(package)
        folder = Path(str(resources.files(package) / "model"))
    except (ImportError, TypeError):
        return None
    return package if (folder / "config.json").is_file() else None


def find_model(name: str) -> Path:
    """The folder of a model: a folder, a Python package that carries one as `model/`, or a name on Hugging Face's hub.

    Raises:
        OptionError: there is none of these.
    """
    if (Path(name) / "config.json").is_file() or has_config(Path(name)):
        return Path(name)
    if Path(name).exists():
        raise OptionError(f"{name}: no config.json in it; expected the folder of a transformers model.")
    package = package_of(name)
    if package is not None:
        return Path(str(resources.files(package) / "model"))
    try:
        return Path(transformers_library().utils.cached_file(name, "config.json")).parent
    except (OSError, ValueError) as error:
        raise OptionError(
            f"{name!r} is no model: neither a folder with config.json, nor an installed package that carries one, nor "
            f"to be had from the hub ({str(error).splitlines()[0]})"
        ) from error


def load_model(
    name: str,
    *,
    task: LanguageTask | None = None,
    labels: Sequence[str] = (),
    head: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> LanguageModel:
    """Load a model for a task.

    Args:
        name: see `find_model`.
        task: what it is to do; None: what its architecture was made for, an encoder without a head for similarity.
        labels: of a classifier; where its head in use is not for exactly these, it gets a new one, and keeps its own.
        head: without `labels` the name of the head that is used, if it is not to be the last one that learned; with
            `labels` the name of the new head.
        device: where to.
        dtype: of the weights.

    Raises:
        OptionError: no model of this name, or no use for this task.
        UnknownNameError: it has no head of this name.
        FileFormatError: its weights or a head are damaged or truncated.
        ModelMismatchError: its tokenizer knows tokens that it has no embedding for.
    """
    folder = find_model(name)

    def load(place: Path) -> LanguageModel:
        found = _loaded(name, place, task=task, labels=tuple(labels), head=head, dtype=dtype)
        return replace(found, folder=folder)

    found = read_model_folder(folder, load)
    return replace(found, module=found.module.to(device=device, dtype=dtype))


def _loaded(
    name: str, folder: Path, *, task: LanguageTask | None, labels: tuple[str, ...], head: str | None, dtype: torch.dtype
) -> LanguageModel:
    """The model in a folder whose files may be read, on the CPU."""
    config = config_of(folder / "config.json")
    made_for = " ".join(config.get("architectures") or [])
    own = _task_of(made_for, folder)
    asked = task or ("classification" if head and own != "causal-lm" else own)
    transformers = transformers_library()
    own_labels = _own_labels(folder, config, own)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        if asked == "causal-lm":
            if own != "causal-lm":
                raise OptionError(f"{name} is a {made_for or 'model of an unnamed kind'}, no causal language model.")
            module = base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        elif asked == "classification" and ("ForSequenceClassification" in made_for or own == "causal-lm"):
            counted = {} if own_labels else {"num_labels": len(labels)} if labels else {}
            module = base = transformers.AutoModelForSequenceClassification.from_pretrained(
                folder, dtype=dtype, **counted
            )
        else:
            base = transformers.AutoModel.from_pretrained(folder, dtype=dtype)
            if getattr(base, "pooler", None) is not None:
                base.pooler = None  # mean pooling goes past it: it would be weights without a use
            module = SentenceEncoder(base)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        base.config.pad_token_id = tokenizer.pad_token_id  # by which a causal classifier finds the last token
        _check_tokens(name, base, tokenizer)
    except HoldfastError:
        raise
    except (SafetensorError, EOFError) as error:
        raise FileFormatError(f"{name}: its weights are truncated or damaged ({error}). Copy it again.") from error
    except Exception as error:  # whatever foreign libraries can say of a damaged folder
        told = " ".join(str(error).split())[:300] or type(error).__name__
        raise OptionError(f"{name} cannot be loaded: {told}") from error
    found = LanguageModel(
        name=name,
        folder=folder,
        task="similarity" if isinstance(module, SentenceEncoder) else asked,
        module=module,
        base=base,
        tokenizer=tokenizer,
        revision=revision_of(folder),
    )
    return _headed(found, own_labels, made_for, asked=asked, labels=labels, head=head)


def _headed(
    found: LanguageModel,
    own_labels: tuple[str, ...],
    made_for: str,
    *,
    asked: LanguageTask,
    labels: tuple[str, ...],
    head: str | None,
) -> LanguageModel:
    """The model with the head that was asked for, and all others beside it."""
    if head is not None and asked != "classification":
        raise OptionError(f"--head {head} is of a classifier, and the task of {found.name} is {asked}. Leave it out.")
    if asked == "causal-lm":
        return found
    current, kept = read_heads(found.folder)
    if not isinstance(found.module, SentenceEncoder):
        if not own_labels:  # a causal model, with a head that is new by its nature
            if not labels:
                raise OptionError(_no_head(found.name))
            name_labels(found.module.config, labels)
            return replace(found, labels=labels, new_head=True, head=head or "new")
        found = replace(found, labels=own_labels, head=current, heads=kept)
    elif (found.folder / f"{HEAD}.json").is_file():
        weights, _ = read_state(found.folder / f"{HEAD}.safetensors")
        found = replace(found, heads={**kept, current: ClassifierHead(own_labels, weights)})
        found = found.with_head(current) if asked == "classification" else found
    elif "ForSequenceClassification" not in made_for:
        found = replace(found, heads=kept)
    if asked == "similarity":
        return found
    if labels and labels != found.labels:
        return found.with_new_head(head or free_name("new", found.head_labels), labels)
    if head is not None:
        return found.with_head(head)
    if not found.labels:
        raise OptionError(_no_head(found.name))
    return found


def free_name(wished: str, taken: Container[str]) -> str:
    """The name, or with a number behind it where it is taken."""
    return next(name for n in count(1) if (name := wished if n == 1 else f"{wished}-{n}") not in taken)


def _no_head(name: str) -> str:
    return f"{name}: it has no head for classes. Fine-tune it on labelled data first."


def tokenizer_hash(tokenizer: Any) -> str:
    """The sha256 of its tokens and their numbers."""
    digest = hashlib.sha256()
    for token, number in sorted(tokenizer.get_vocab().items()):
        digest.update(f"{number} {token}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def _task_of(made_for: str, folder: Path) -> LanguageTask:
    if "ForCausalLM" in made_for or "LMHeadModel" in made_for:
        return "causal-lm"
    if "ForSequenceClassification" in made_for or (folder / f"{HEAD}.json").is_file():
        return "classification"
    return "similarity"


def _own_labels(folder: Path, config: dict[str, Any], own: LanguageTask) -> tuple[str, ...]:
    """The classes of the head that a model comes with."""
    if own != "classification":
        return ()
    if (folder / f"{HEAD}.json").is_file():
        found, mistakes = typed(read_json(folder / f"{HEAD}.json"), {"labels": list[str]})
        if mistakes:
            raise FileFormatError(f"{folder / f'{HEAD}.json'} is damaged: {listed_mistakes(mistakes)}. Copy it again.")
        return tuple(found["labels"])
    named = config.get("id2label") or {str(n): f"LABEL_{n}" for n in range(config.get("num_labels") or 2)}
    return tuple(str(named[number]) for number in sorted(named, key=int))


def _check_tokens(name: str, base: Any, tokenizer: Any) -> None:
    largest = max(tokenizer.get_vocab().values(), default=0)
    rows = base.get_input_embeddings().num_embeddings
    if largest >= rows:
        raise ModelMismatchError(
            f"{name}: its tokenizer gives numbers up to {largest}, and the model has embeddings for 0..{rows - 1}: "
            "they do not belong together. Put the tokenizer that the model was trained with into its folder."
        )
