"""Ways back from weights that were trained on a second task without a keeper, and what each keeps of both skills."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from holdfast.curvature import AnyImportance
from holdfast.errors import DataFileError
from holdfast.importance import kfac, measure, probes_of
from holdfast.lab.streams import Examples, Stream
from holdfast.lab.training import accuracy, build_net, build_optimizer, train_epoch
from holdfast.language.batches import batches
from holdfast.language.models import LanguageModel
from holdfast.language.skills import evaluate
from holdfast.retention import EWC
from holdfast.tensors import TensorMap, all_parameters, copies
from recipes.elephants.encoder import PACES, TASK, Encoder, by_length, drawn, singles
from recipes.elephants.learning import learn, shuffled

DAMPING, NUM_PROBES, RATE = 0.01, 128, 1e-3
AVERAGING, ALONE, INFORMED = "averaging", "rewind", "rewind, importance"
"""Linear averaging with the weights of the first task; along its curvature; and along both tasks'."""

NUM_MEASURED, NUM_HELD_OUT, NUM_INTENTS = 512, 256, 1000
"""Of the encoder: sentences that each importance is of, test sentences that its rise is of, and intents tested."""

LossFigures = Callable[[], dict[str, float]]


def digits(
    stream: Stream, hidden: tuple[int, ...], epochs: int, budgets: Sequence[float], shares: Sequence[float], seed: int
) -> dict[str, Any]:
    """An MLP learns two tasks of a stream plainly, one after the other, and goes back; see `frontier`."""
    first, second = stream[0], stream[1]
    net = build_net("mlp", stream.input_shape, stream.num_classes, hidden=hidden, seed=seed)

    def learn_task(examples: Examples, start: int) -> None:
        optimizer = build_optimizer("adam", net.parameters(), lr=RATE)
        for epoch in range(epochs):
            train_epoch(net, optimizer, examples, batch_size=32, seed=1000 * seed + start + epoch)

    learn_task(first.train, 0)
    probes = probes_of(net, first.validation, num_examples=NUM_PROBES)
    keeper = EWC(net, strength=1.0).retain(kfac(net, first.train, damping=DAMPING), probes=probes)
    held_out, anchors = probes_of(net, first.test, num_examples=None), copies(all_parameters(net))
    learn_task(second.train, epochs)

    def figures() -> dict[str, float]:
        old, new = accuracy(net, first.test), accuracy(net, second.test)
        return {"rise": round(held_out.rise(net), 6), "old": round(old, 4), "new": round(new, 4)}

    return frontier(net, keeper, anchors, kfac(net, second.train), budgets, shares, figures)


def frontier(
    model: nn.Module,
    keeper: EWC,
    anchors: TensorMap,
    importance: AnyImportance,
    budgets: Sequence[float],
    shares: Sequence[float],
    figures: LossFigures,
) -> dict[str, Any]:
    """What every way back keeps.

    Args:
        model: where training ended, and left there.
        keeper: of it; holds the first task with its probes.
        anchors: the weights of before.
        importance: of the second task.
        budgets: of each way, in nats per target on the probes; those that are kept already are left out.
        shares: of the way from the anchors, for averaging without probes.
        figures: measures the model as it is.

    Returns:
        "trained" and "ready", the figures at both ends; "points", those of each way and budget, or share.
    """
    weights, (skill,) = all_parameters(model), keeper.skills
    trained = copies(weights)

    @torch.no_grad()
    def put(share: float) -> None:
        for name, weight in weights.items():
            weight.copy_(torch.lerp(anchors[name], trained[name], share))

    def is_kept(share: float, budget: float) -> bool:
        put(share)
        return skill.probes.rise(model) <= budget

    found = {"trained": figures(), "points": []}
    put(0.0)
    found["ready"] = figures()
    for budget in budgets:
        if is_kept(1.0, budget):
            continue
        for way in (AVERAGING, ALONE, INFORMED):
            put(1.0)
            if way == AVERAGING:
                put(largest(lambda share, budget=budget: is_kept(share, budget)))
            else:
                keeper.rewind(budget, importance=importance if way == INFORMED else None)
            found["points"].append({"way": way, "budget": budget, **figures()})
    for share in shares:
        put(share)
        found["points"].append({"way": AVERAGING, "share": share, **figures()})
    put(1.0)
    return found


def largest(is_kept: Callable[[float], bool], *, halvings: int = 10) -> float:
    """The largest share of the way, to a thousandth, at which the budget is kept; it is at 0, and is not at 1."""
    low, high = 0.0, 1.0
    for _ in range(halvings):
        middle = (low + high) / 2
        low, high = (middle, high) if is_kept(middle) else (low, middle)
    return low


# --- a ready sentence encoder


def encoder(
    size: str, budgets: Sequence[float], shares: Sequence[float], seed: int, data_dir: str | None
) -> dict[str, Any]:
    """A ready sentence encoder learns intents plainly, and goes back; see `frontier`."""
    story = _story(data_dir, size)
    similarity, classifier, figures = _learner(story, seed)
    keeper = EWC(similarity.module, strength=1.0).retain(_importance(story.data_dir, size))
    anchors = copies(all_parameters(similarity.module))
    _learn_intents(story, classifier, seed)
    some = drawn(story.sentences(classifier, TASK, "train"), seed)[:NUM_MEASURED]
    importance = kfac(classifier.module, batches(classifier, some, 32), kind="sampled", seed=seed)
    return frontier(similarity.module, keeper, anchors, importance, budgets, shares, figures)


def encoder_held(size: str, rhythm: int, seed: int, data_dir: str | None) -> dict[str, Any]:
    """The same encoder learns intents under the default budget; its figures before and after.

    Args:
        size: "full" or "quick".
        rhythm: steps from one pull, and from one measurement, to the next.
        seed: of the head and of the order of the data.
        data_dir: with text/stsb and text/banking77.
    """
    story = _story(data_dir, size)
    similarity, classifier, figures = _learner(story, seed)
    keeper = EWC(similarity.module, every=rhythm, probe_every=rhythm, new_parameters="free")
    keeper.retain(_importance(story.data_dir, size))
    before = figures()
    _learn_intents(story, classifier, seed, keeper=keeper)
    trained = figures()
    keeper.close()
    (skill,) = keeper.skills
    return {"ready": before, "trained": trained, "closed": {**figures(), "probes": round(skill.increment, 6)}}


def _story(data_dir: str | None, size: str) -> Encoder:
    folder = data_dir or os.environ.get("HOLDFAST_DATA")
    if folder is None:
        raise DataFileError("encoder: where are the texts? Give --data-dir, the parent of text/, or set HOLDFAST_DATA.")
    return Encoder(Path(folder), work=Path(folder), size=size)


@cache
def _importance(folder: Path, size: str) -> AnyImportance:
    """Of the ready encoder, what its similarities rest on, with probes of pairs that are not used elsewhere."""
    story = Encoder(folder, work=folder, size=size)
    ready, seen, unseen = story.ready, drawn(story.pairs("train"), 0), drawn(story.pairs("validation"), 0)
    return measure(
        ready.module,
        singles(ready, seen[: NUM_MEASURED // 2], 32),
        loss="similarity",
        form="kronecker",
        probes=singles(ready, unseen[: NUM_PROBES // 2], 64),
        num_probes=NUM_PROBES,
    )


def _learner(story: Encoder, seed: int) -> tuple[LanguageModel, LanguageModel, LossFigures]:
    """Copies of the encoder under one head for similarities and one for intents, and what measures both on test data.

    "rise" is of the single test sentences against the ready encoder's similarities, "old" Spearman's correlation.
    """
    fresh = story.fresh()
    similarity, classifier = story.over(fresh), story.classifier(TASK, fresh, 1000 * seed)
    pairs = drawn(story.pairs("test"), 0)
    some = singles(similarity, pairs[: NUM_HELD_OUT // 2], 64)
    held_out = probes_of(similarity.module, some, loss="similarity", num_examples=None)
    pairs = by_length(pairs)
    intents = by_length(drawn(story.sentences(classifier, TASK, "test"), 0)[:NUM_INTENTS])

    def figures() -> dict[str, float]:
        old = evaluate(similarity, batches(similarity, pairs, 64)).value
        new = evaluate(classifier, batches(classifier, intents, 64)).value
        return {"rise": round(held_out.rise(similarity.module), 6), "old": round(old, 4), "new": round(new, 4)}

    return similarity, classifier, figures


def _learn_intents(story: Encoder, classifier: LanguageModel, seed: int, *, keeper: EWC | None = None) -> None:
    pace = PACES[story.size]
    train = story.sentences(classifier, TASK, "train")
    stream = shuffled(classifier, train, size=pace.batch_size, seed=1000 * seed)
    learn(classifier, stream, pace, keeper=keeper)
