from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.replay.drawers import patterns

from holdfast.errors import CollapseError
from holdfast.replay import WGAN, MemoryReplayGAN
from holdfast.replay.mergan import num_new


def memory(**options: Any) -> MemoryReplayGAN:
    return MemoryReplayGAN(WGAN((1, 8, 8), num_classes=3, latent=4, width=4, lr=1e-3), **options)


def learn(learner: MemoryReplayGAN, classes: tuple[int, ...], *, steps: int = 2) -> None:
    learner.open_task(classes)
    for step in range(steps):
        learner.fit(*patterns(40, classes=classes, seed=step))
    learner.close_task()


def test_every_class_has_the_same_share():
    assert num_new(320, new=1, past=4) == 64
    assert num_new(64, new=2, past=2) == 32
    assert num_new(5, new=1, past=9) == 1


@pytest.mark.parametrize("options", [{"retraining": True}, {"alignment": 0.1}, {"retraining": True, "alignment": 0.1}])
def test_a_task_costs_the_same_however_many_there_were(options, monkeypatch):
    learner, seen = memory(**options), []
    fit = learner.gan.fit

    def spied(images: Any, classes: Any, **kwargs: Any) -> Any:
        seen.append((len(images), classes.bincount(minlength=3).tolist(), kwargs["alignment"]))
        return fit(images, classes, **kwargs)

    monkeypatch.setattr(learner.gan, "fit", spied)
    for label in range(3):
        learn(learner, (label,), steps=1)
    assert [size for size, _, _ in seen] == [40, 40, 40]
    counts = [counted for _, counted, _ in seen]
    if "retraining" in options:
        assert counts[0] == [40, 0, 0]
        assert counts[1] == [20, 20, 0]
        assert counts[2][2] == 13
        assert sum(counts[2][:2]) == 27
    else:
        assert counts == [[40, 0, 0], [0, 40, 0], [0, 0, 40]]
    aligned = [alignment is not None for _, _, alignment in seen]
    assert aligned == [False, *["alignment" in options] * 2]


def test_alignment_is_to_the_generator_as_it_was_at_the_end_of_the_task():
    learner = memory(alignment=0.1)
    learn(learner, (0,))
    kept = learner.gan.sample(3, classes=torch.zeros(3, dtype=torch.int64), generator=torch.Generator().manual_seed(0))
    learn(learner, (1,))
    previous = learner.previous
    learner.open_task((2,))
    learner.fit(*patterns(40, classes=(2,)))
    assert learner.previous is previous
    assert learner.past == (0, 1)
    assert kept.shape == (3, 1, 8, 8)


def test_optimizers_are_new_at_each_task():
    learner = memory()
    learn(learner, (0,))
    before = learner.optimizers
    learner.open_task((1,))
    assert all(new is not old for new, old in zip(learner.optimizers, before))
    assert not learner.optimizers[0].state


def test_a_collapsed_generator_is_not_kept():
    learner = memory()
    learn(learner, (0,))
    previous = learner.previous
    learner.open_task((1,))
    with torch.no_grad():
        learner.gan.generator.convolutions[-1].weight.zero_()
    with pytest.raises(CollapseError, match="MeRGAN, classes 1: the generator has collapsed"):
        learner.close_task()
    assert learner.previous is previous
    assert learner.past == (0,)
