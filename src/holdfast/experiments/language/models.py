"""From a name to a ready language model with its tokenizer, and the hashes that tell it from others."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module, resources
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import nn

from holdfast.errors import FileFormatError, ModelMismatchError, OptionError
from holdfast.experiments.language.encoders import SentenceClassifier, SentenceEncoder
from holdfast.files import new_folder, read_json, read_state, write_json, write_state

Task = Literal["causal-lm", "classification", "similarity"]

_HEAD = "holdfast_head"


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
    """

    name: str
    folder: Path
    task: Task
    module: nn.Module
    base: nn.Module
    tokenizer: Any
    revision: str
    labels: tuple[str, ...] = ()
    new_head: bool = False

    @property
    def prefix(self) -> str:
        """What stands before a name of `base` in the names of `module`."""
        return "" if self.base is self.module else "encoder."

    def save(self, path: Path) -> None:
        """Write weights, configuration and tokenizer as transformers reads them, and beside them the head.

        Raises:
            OutputError: as `holdfast.files.new_folder`, or the model itself was read from there.
        """
        with new_folder(path, reading=[self.folder]) as folder:
            bare: Any = self.base
            bare.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
            if isinstance(self.module, SentenceClassifier):
                write_state(folder / f"{_HEAD}.safetensors", self.module.head.state_dict(), {})
                write_json(folder / f"{_HEAD}.json", {"labels": list(self.labels)})


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


def find_model(name: str) -> Path:
    """The folder of a model: a folder, a Python package that carries one as `model/`, or a name on Hugging Face's hub.

    Raises:
        OptionError: there is none of these.
    """
    if (Path(name) / "config.json").is_file():
        return Path(name)
    if Path(name).exists():
        raise OptionError(f"{name}: no config.json in it; expected the folder of a transformers model.")
    package = name.replace("-", "_")
    if package.isidentifier():
        try:
            import_module(package)
            folder = Path(str(resources.files(package) / "model"))
        except (ImportError, TypeError):
            pass
        else:
            if (folder / "config.json").is_file():
                return folder
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
    task: Task | None = None,
    labels: Sequence[str] = (),
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> LanguageModel:
    """Load a model for a task.

    Args:
        name: see `find_model`.
        task: what it is to do; None: what its architecture was made for, an encoder without a head for similarity.
        labels: of a classifier; where the model has no head for exactly these, it gets a new one.
        device: where to.
        dtype: of the weights.

    Raises:
        OptionError: no model of this name, or no use for this task.
        FileFormatError: its weights are damaged or truncated.
        ModelMismatchError: its tokenizer knows tokens that it has no embedding for.
    """
    folder = find_model(name)
    config = read_json(folder / "config.json")
    made_for = " ".join(config.get("architectures") or [])
    own = _task_of(made_for, folder)
    asked = task or own
    transformers = transformers_library()
    new_head = asked == "classification" and tuple(labels) != _own_labels(folder, config, own)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        if asked == "causal-lm":
            if own != "causal-lm":
                raise OptionError(f"{name} is a {made_for or 'model of an unnamed kind'}, no causal language model.")
            module = base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        elif asked == "classification" and ("ForSequenceClassification" in made_for or own == "causal-lm"):
            kept = {"ignore_mismatched_sizes": True, "num_labels": len(labels)} if labels and new_head else {}
            module = base = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype, **kept)
        else:
            base = transformers.AutoModel.from_pretrained(folder, dtype=dtype)
            if getattr(base, "pooler", None) is not None:
                base.pooler = None  # mean pooling goes past it: it would be weights without a use
            module = SentenceEncoder(base)
    except (SafetensorError, EOFError) as error:
        raise FileFormatError(f"{folder}: its weights are truncated or damaged ({error}). Copy it again.") from error
    except (OSError, ValueError, KeyError, ImportError) as error:
        if isinstance(error, OptionError):
            raise
        raise OptionError(f"{folder} cannot be loaded: {str(error).strip().splitlines()[0]}") from error
    own_labels = _own_labels(folder, config, own)
    if asked == "classification" and isinstance(module, SentenceEncoder):
        module = _classifier(base, folder, tuple(labels) or own_labels, new_head=new_head and bool(labels))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    base.config.pad_token_id = tokenizer.pad_token_id  # by which a causal classifier finds the last token
    _check_tokens(name, base, tokenizer)
    return LanguageModel(
        name=name,
        folder=folder,
        task=asked,
        module=module.to(device=device, dtype=dtype),
        base=base,
        tokenizer=tokenizer,
        revision=revision_of(folder),
        labels=tuple(labels) or own_labels if asked == "classification" else (),
        new_head=new_head and bool(labels),
    )


def revision_of(folder: Path) -> str:
    """The sha256 of a model's weights, shard after shard in the order of their names.

    Raises:
        OptionError: there are no weights.
    """
    files = sorted(path for path in folder.glob("*.safetensors") if not path.name.startswith(_HEAD))
    files = files or sorted(folder.glob("*.bin"))
    if not files:
        raise OptionError(f"{folder}: no weights in it; expected *.safetensors.")
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"


def tokenizer_hash(tokenizer: Any) -> str:
    """The sha256 of its tokens and their numbers."""
    digest = hashlib.sha256()
    for token, number in sorted(tokenizer.get_vocab().items()):
        digest.update(f"{number} {token}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def _task_of(made_for: str, folder: Path) -> Task:
    if "ForCausalLM" in made_for or "LMHeadModel" in made_for:
        return "causal-lm"
    if "ForSequenceClassification" in made_for or (folder / f"{_HEAD}.json").is_file():
        return "classification"
    return "similarity"


def _own_labels(folder: Path, config: dict[str, Any], own: Task) -> tuple[str, ...]:
    """The classes of the head that a model comes with."""
    if own != "classification":
        return ()
    if (folder / f"{_HEAD}.json").is_file():
        return tuple(read_json(folder / f"{_HEAD}.json")["labels"])
    named = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    return tuple(named[str(number)] for number in range(len(named)))


def _classifier(base: Any, folder: Path, labels: tuple[str, ...], *, new_head: bool) -> SentenceClassifier:
    if not labels:
        raise OptionError(f"{folder}: it has no head for classes. Fine-tune it on labelled data first.")
    module = SentenceClassifier(base, labels)
    if not new_head:
        head, _ = read_state(folder / f"{_HEAD}.safetensors")
        module.head.load_state_dict(head)
    return module


def _check_tokens(name: str, base: Any, tokenizer: Any) -> None:
    largest = max(tokenizer.get_vocab().values(), default=0)
    rows = base.get_input_embeddings().num_embeddings
    if largest >= rows:
        raise ModelMismatchError(
            f"{name}: its tokenizer gives numbers up to {largest}, and the model has embeddings for 0..{rows - 1}: "
            "they do not belong together. Put the tokenizer that the model was trained with into its folder."
        )
