"""The networks that are held to a budget, each with the tasks that it learns."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path

import torch
from torch import nn

from holdfast.errors import DataFileError
from holdfast.lab.streams import Examples
from holdfast.lab.streams.catalog import build_stream
from holdfast.lab.streams.split import split
from holdfast.lab.streams.stream import Task
from holdfast.lab.training import OptimizerName, build_net
from holdfast.lab.training.nets import AttentionNet, convolution_net
from holdfast.language.batches import Example
from holdfast.language.rows import Row, read_rows
from recipes.elephants.gpt import LENGTH, Gpt
from recipes.lessons import Holding, LessonSetting
from recipes.lines import Size

BUDGETS = (0.02, 0.05, 0.2)
RATES: dict[OptimizerName, float] = {"sgd": 0.1, "momentum": 0.03, "adam": 1e-3}

NUM_WORDS = 16
"""Of a sentence; the rest is cut off."""
INTENTS = 10
"""A task."""


def settings_of(size: Size) -> tuple[LessonSetting, ...]:
    """The networks that see images, each with its tasks."""
    full = size.name == "full"
    epochs = size.settings.get("epochs", 12)
    num_tasks = size.settings.get("num_tasks", 5)
    rates: Mapping[OptimizerName, float] = RATES if full else {"adam": RATES["adam"]}
    budgets = _budgets(size)
    mlp = LessonSetting(
        name="MLP",
        build=partial(_permuted_digits, num_tasks, size.settings.get("hidden", (300, 150))),
        tasks=f"{num_tasks} permutations of digits",
        rates=rates,
        holdings=[
            *(*budgets, ("plain", 0.0), ("joint", 0.0)),
            *(*_strengths(1, 10, 100, 1000), *([("forecast", 0.05)] if full else []), ("calibrated", 0.05)),
        ],
        epochs=epochs,
    )
    convolution = LessonSetting(
        name="ConvNet",
        build=partial(_split_digits, num_tasks),
        tasks=f"{num_tasks} pairs of digits, told as the first or the second (at higher rates fixed strengths diverge "
        "where batch norm is held; rates and strengths were chosen under seeds 7 to 9, on the same test examples)",
        rates={"adam": 1e-3} if not full else {"sgd": 0.03, "momentum": 0.01, "adam": 1e-3},
        holdings=[*budgets, ("plain", 0.0), *_strengths(10, 100, 1000, 10000)],
        epochs=epochs,
    )
    return mlp, convolution


def texts_of(size: Size) -> tuple[LessonSetting, ...]:
    """The networks that read texts, which do not come with the package."""
    budgets = _budgets(size)
    num_tasks = min(3, size.settings.get("num_tasks", 3))
    intents = LessonSetting(
        name="Transformer",
        build=partial(_intents, num_tasks),
        tasks=f"{num_tasks} times {INTENTS} intents of sentences, told as the first to the last of them (this scenario "
        "and the number of tasks were chosen under seed 9, on figures of test sentences)",
        rates=RATES if size.name == "full" else {"adam": RATES["adam"]},
        holdings=[*budgets, ("plain", 0.0), *_strengths(10, 100, 1000, 10000, 100000)],
        epochs=6,
    )
    gpt = LessonSetting(
        name="GPT",
        build=_english_then_python,
        tasks="English, then Python",
        rates={"adam": 2e-3},
        holdings=[*budgets, ("plain", 0.0), *_strengths(1, 10, 100, 1000, 10000, 100000)],
        epochs=2,
        batch_size=8,
        judged="perplexity",
    )
    return intents, gpt


def _budgets(size: Size) -> list[tuple[Holding, float]]:
    return [("budget", value) for value in (BUDGETS if size.name == "full" else (0.05,))]


def _strengths(*values: float) -> list[tuple[Holding, float]]:
    return [("strength", value) for value in values]


def _permuted_digits(
    num_tasks: int, hidden: Sequence[int], seed: int, data_dir: str | None
) -> tuple[nn.Module, list[Task]]:
    stream = build_stream("permuted-digits", num_tasks=num_tasks, seed=seed, data_dir=data_dir)
    return build_net("mlp", stream.input_shape, stream.num_classes, hidden=hidden, seed=seed), list(stream)


def _split_digits(num_tasks: int, seed: int, data_dir: str | None) -> tuple[nn.Module, list[Task]]:
    """Two digits a task, told as the first or the second of them; batch norm after each convolution."""
    stream = build_stream("split-digits", num_tasks=num_tasks, scenario="domain", data_dir=data_dir)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = convolution_net(stream.input_shape[-1], stream.num_classes, batch_norm=True)
    return net, list(stream)


def _intents(num_tasks: int, seed: int, data_dir: str | None) -> tuple[nn.Module, list[Task]]:
    """Some intents a task, another choice of them under each seed, told as the first to the last of the task's."""
    rows = _rows(_texts(data_dir) / "clinc150")
    labels = sorted({str(row.label) for row in rows["train"]})
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = [labels[number] for number in order[: INTENTS * num_tasks]]
    words = Counter(word for row in rows["train"] for word in row.texts[0].split())
    numbers = {word: number for number, word in enumerate(sorted(words), start=2)}
    train, valid, test = (_numbered(rows[part], numbers, chosen) for part in ("train", "valid", "test"))
    stream = split(Task("intents", train, valid, test, tuple(range(len(chosen)))), INTENTS, scenario="domain")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = AttentionNet(NUM_WORDS, INTENTS, vocabulary=2 + len(numbers))
    return net, list(stream)


def _english_then_python(seed: int, data_dir: str | None) -> tuple[nn.Module, list[Task]]:
    """The small GPT of `python -m recipes elephants gpt`, in its smallest size: English, then Python."""
    story = Gpt(_texts(data_dir).parent, Path(), "quick")
    with torch.random.fork_rng(devices=[]):
        model = story.untrained(seed)
    blocks = {key: _whole(found) for key, found in story.blocks_of(model).items()}
    tasks = [
        Task(name, blocks[name, "train"], blocks[name, "validation"], blocks[name, "test"], ())
        for name in ("english", "python")
    ]
    return model.module, tasks


def _whole(blocks: Sequence[Example]) -> Examples:
    """The blocks that are full, as inputs that are their own targets."""
    tokens = torch.tensor([block.tokens[0] for block in blocks if len(block.tokens[0]) == LENGTH])
    return Examples(tokens, tokens)


@cache
def _rows(folder: Path) -> dict[str, list[Row]]:
    return {part: list(read_rows(str(folder / part))) for part in ("train", "valid", "test")}


def _numbered(rows: Sequence[Row], numbers: Mapping[str, int], labels: Sequence[str]) -> Examples:
    """The sentences of these labels as word numbers: 0 where there is none, 1 for one that is not known."""
    places = {label: place for place, label in enumerate(labels)}
    inputs, targets = [], []
    for row in rows:
        if str(row.label) in places:
            found = [numbers.get(word, 1) for word in row.texts[0].split()][:NUM_WORDS]
            inputs.append(found + [0] * (NUM_WORDS - len(found)))
            targets.append(places[str(row.label)])
    return Examples(torch.tensor(inputs), torch.tensor(targets))


def _texts(data_dir: str | None) -> Path:
    given = data_dir or os.environ.get("HOLDFAST_DATA")
    if given is None:
        raise DataFileError(
            "promise-texts: the networks read texts, and nobody said where these are. Give --data-dir, the parent of "
            "text/, or set HOLDFAST_DATA."
        )
    return Path(given) / "text"
