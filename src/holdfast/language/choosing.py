"""What a command is about to do with a model and data: the task, the head, and what the model will see of the data."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

from holdfast.errors import OptionError
from holdfast.language.batches import Example, examples
from holdfast.language.heads import listed_labels
from holdfast.language.models import LanguageModel, LanguageTask, free_name
from holdfast.language.rows import DECLINED, Row, Source, is_unnamed

_SHOWN = 160
"""Characters of a sample."""
_LOOKED_AT = 1000
"""Rows from which the sample is made."""
_PARTS = ("train", "valid", "validation", "dev", "test")


def choose_task(
    model: LanguageModel, source: Source, *, asked: LanguageTask | None, learns: bool, labelled: bool
) -> tuple[LanguageTask, str]:
    """The task, and in words why it is this one.

    A model stays what it was made for. An encoder has several uses: with two texts in a row it is similarity, and where
    it learns labels of single texts it becomes a classifier.

    Args:
        model: as it was loaded, for its own task.
        source: the data.
        asked: by the user; None: what model and data make of it.
        learns: whether the data are learned, so that a head may be new; else a skill is looked at that is there.
        labelled: whether labels are read, but of a causal model.

    Raises:
        OptionError: the data cannot serve the task.
    """
    row = source.first()
    task, why = _chosen(model, row, asked=asked, learns=learns)
    if row is not None:
        _check_serves(model, source, row, task, labelled=labelled, learns=learns)
    return task, why


def _chosen(
    model: LanguageModel, row: Row | None, *, asked: LanguageTask | None, learns: bool
) -> tuple[LanguageTask, str]:
    if asked is not None:
        return asked, "as --task says"
    own = f"{model.name} was made for it"
    if row is None or model.base is model.module:
        return model.task, own
    if len(row.texts) == 2:
        return "similarity", "the rows hold two texts"
    if learns and _has_label(row) and model.task == "similarity":
        return "classification", "the rows hold one text and its label; an encoder gets a head for labels"
    return model.task, own


def _check_serves(
    model: LanguageModel, source: Source, row: Row, task: LanguageTask, *, labelled: bool, learns: bool
) -> None:
    texts = f"{len(row.texts)} text{'s' * (len(row.texts) > 1)}"
    why = f" ({row.unlabelled})" if row.unlabelled and not _has_label(row) else ""
    found = f"{source.path} has {texts} and {'a' if _has_label(row) else 'no'} label{why}"
    if task == "similarity" and labelled and (len(row.texts) != 2 or not _has_label(row)):
        trained = "fine-tune it on labelled data first" if not model.heads else f"give --head {next(iter(model.heads))}"
        classes = "" if learns or len(row.texts) != 1 or not _has_label(row) else f"; for classes {trained}"
        remedy = _naming(source, "the columns with --text and --label")
        raise OptionError(f"similarity needs two texts and a number in each row, and {found}. {remedy}{classes}.")
    if task != "similarity" and len(row.texts) != 1:
        remedy = _naming(source, "its column with --text")
        raise OptionError(f"{task} needs one text in each row, and {found}. {remedy}.")
    if task == "classification" and labelled and not _has_label(row):
        remedy = _naming(source, "its column with --label")
        raise OptionError(f"classification needs a label in each row, and {found}. {remedy}.")


def _naming(source: Source, what: str) -> str:
    """That columns be named, of those there are; or where there are none, that there should be some."""
    columns = source.rows().chosen.names
    if not columns:
        return "A file of text has no columns: give CSV, JSON Lines or Parquet"
    return f"Its columns are {', '.join(map(repr, columns))}: name {what}"


def _has_label(row: Row) -> bool:
    return row.label is not None or row.unlabelled == DECLINED


def head_for(model: LanguageModel, labels: Sequence[str], source: Source, *, asked: str | None) -> tuple[str, bool]:
    """The name of the head that learns these labels, and whether it is new.

    Args:
        model: a classifier, or an encoder that becomes one.
        labels: of the data.
        source: the data, after which a new head is called.
        asked: name of the head by the user; None: a head whose labels are these or include them, else a new one.

    Raises:
        OptionError: the head that was asked for has other labels.
    """
    known = model.head_labels
    if asked is None:
        fitting = next((name for name, own in known.items() if fits(own, labels)), None)
        return (fitting, False) if fitting is not None else (free_name(_named_after(source), known), True)
    if not re.fullmatch(r"[\w.-]+", asked) or asked.startswith("."):
        raise OptionError(f"--head is {asked!r}; expected a name of letters, digits, '-', '_' and '.'.")
    if asked in known and not fits(known[asked], labels, by_number=True):
        foreign = [label for label in labels if label not in known[asked]]
        raise OptionError(
            f"the head {asked!r} of {model.name} has the classes {listed_labels(known[asked])}, and {source.path} has "
            f"others: {listed_labels(foreign)}. Give the new head another name, or leave out --head."
        )
    return asked, asked not in known


def fits(own: Sequence[str], labels: Iterable[str], *, by_number: bool = False) -> bool:
    """Whether a head of these classes is one for the labels: they are among them, or numbers of unnamed ones.

    Args:
        own: classes of the head.
        labels: of the data.
        by_number: whether unnamed classes are those of any labels that are not more of them.
    """
    labels = set(labels)
    if is_unnamed(own) and ({str(n) for n in range(len(own))} >= labels or (by_number and len(labels) <= len(own))):
        return True
    return bool(labels) and labels <= set(own)


def plan(
    model: LanguageModel,
    source: Source,
    *,
    why: str,
    length: int,
    labelled: bool,
    examples_read: str,
) -> list[str]:
    """What is about to be done, in lines: task, head, data with columns and split, examples, and a sample.

    Args:
        model: for the task.
        source: the data.
        why: the reason for the task.
        length: tokens of an example at most.
        labelled: whether labels are read.
        examples_read: how many examples are read, and in what order, in words.
    """
    lines = [f"task: {model.task} ({why})"]
    if model.task == "classification":
        kept = [f"{name!r}" for name in model.heads]
        beside = f"; kept beside it: {', '.join(kept)}" if kept else ""
        state = "new" if model.new_head else "as it is"
        lines.append(
            f"head: {model.head!r}, {state}, {len(model.labels)} classes ({listed_labels(model.labels)}){beside}"
        )
    found = source.rows()
    shown = next(iter(examples(model, islice(found, _LOOKED_AT), length=length, labelled=labelled)), None)
    lines.append(f"data: {found.describe()}{_unread(model, found.chosen.label, labelled=labelled)}")
    lines.append(f"examples: {examples_read}")
    if shown is not None:
        lines.append(f"sample: {sample(model, shown)}")
    return lines


def sample(model: LanguageModel, example: Example) -> str:
    """What the model sees of an example: its tokens, read back as text, and the label by its name."""
    texts = [repr(shortened(model.tokenizer.decode(tokens))) for tokens in example.tokens]
    counts = " and ".join(str(len(tokens)) for tokens in example.tokens)
    told = f"{' and '.join(texts)} ({counts} tokens)"
    if example.target is None:
        return told
    if model.task == "classification":
        return f"{told}, label {model.labels[int(example.target)]!r}"
    return f"{told}, similarity {example.target:.2f} of 1"


def number_of(count: int, noun: str) -> str:
    """A number and what there are so many of."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def number_read(model: LanguageModel, count: int) -> str:
    """A number of examples, and what they are."""
    return f"{number_of(count, 'block')} of tokens" if model.task == "causal-lm" else number_of(count, "row")


def shortened(text: str) -> str:
    """At most `_SHOWN` characters."""
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _unread(model: LanguageModel, label: str | None, *, labelled: bool) -> str:
    """That the labels are not read, where there are some."""
    if label is None or (labelled and model.task != "causal-lm"):
        return ""
    hint = " (--task classification makes a classifier)" if model.task == "causal-lm" else ""
    return f"; the labels are not read{hint}"


def _named_after(source: Source) -> str:
    """A name for a head by where its data are: of `banking77/train` "banking77", of `intents.jsonl` "intents"."""
    path = Path(source.path)
    pieces = [piece for piece in (path.name.split(".")[0], path.resolve().parent.name) if piece]
    name = next((piece for piece in pieces if piece not in _PARTS), "new")
    return re.sub(r"[^\w-]+", "-", name).strip("-") or "new"
