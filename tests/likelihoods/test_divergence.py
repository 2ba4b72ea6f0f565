"""How far answers are from earlier ones, against torch's own distributions."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Normal, kl_divergence

from holdfast.errors import BatchError, OptionError
from holdfast.likelihoods import Bernoulli, Categorical, Gaussian, Similarity
from holdfast.likelihoods.draws import Draws
from holdfast.likelihoods.likelihood import AtTargets, PerExample


def outputs(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    return 2 * torch.randn(shape), 2 * torch.randn(shape)


def kl(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    return kl_divergence(TorchCategorical(logits=old), TorchCategorical(logits=new))


def test_classes():
    old, new = outputs(7, 5)
    batch = (None, torch.randint(5, (7,)))
    loss = Categorical()
    torch.testing.assert_close(loss.divergence(new, loss.answers(old, batch), batch), kl(old, new))
    assert loss.num_targets(batch) == 7


def test_the_classes_that_were_there_then():
    old, new = outputs(7, 5)
    batch = (None, torch.randint(5, (7,)))
    answers = Categorical().answers(old, batch)
    grown = torch.cat([new, torch.full((7, 3), 9.0)], dim=1)
    torch.testing.assert_close(Categorical().divergence(grown, answers, batch), kl(old, new))
    with pytest.raises(BatchError, match="4 classes, where the earlier answers have 5"):
        Categorical().divergence(new[:, :4], answers, (None, batch[1].clamp(max=3)))


def test_some_of_the_classes():
    old, new = outputs(7, 5)
    loss, batch = Categorical(classes=(1, 3)), (None, torch.tensor([1, 3, 1, 3, 1, 1, 3]))
    expected = kl(old[:, [1, 3]], new[:, [1, 3]])
    torch.testing.assert_close(loss.divergence(new, loss.answers(old, batch), batch), expected)


def test_tokens_are_summed_shifted_and_skipped():
    old, new = outputs(3, 6, 11)
    labels = torch.randint(11, (3, 6))
    labels[0, 3:] = -100
    batch, loss = {"labels": labels}, Categorical(causal=True)
    each = kl(old, new)
    counts = torch.zeros(3, 6)
    counts[:, :-1] = (labels[:, 1:] != -100).float()
    torch.testing.assert_close(loss.divergence(new, loss.answers(old, batch), batch), (each * counts).sum(1))
    assert loss.num_targets(batch) == counts.sum() == 12


def test_of_many_classes_those_kept_tell_the_whole():
    old, new = outputs(6, 1500)
    old[:, :40] += 12  # 40 of them have nearly all of the mass
    batch, loss = (None, torch.randint(1500, (6,))), Categorical()
    answers = loss.answers(old, batch)
    assert answers["log_p"].shape == (6, 1, 65)
    found, exact = loss.divergence(new, answers, batch), kl(old, new)
    torch.testing.assert_close(found, exact, rtol=1e-2, atol=0)
    torch.testing.assert_close(loss.divergence(old, answers, batch), torch.zeros(6), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shift", [0.1, 1.0])
def test_of_many_classes_the_rest_is_told_by_those_drawn_from_it(shift):
    """Half of the mass is in the rest: over positions neither the divergence nor its gradient is off by much."""
    torch.manual_seed(0)
    old = 1.5 * torch.randn(40, 1500)
    move = torch.randn(1500)  # the same everywhere, so that the gradients add up
    batch, loss = (None, torch.randint(1500, (40,))), Categorical()
    answers = loss.answers(old, batch)
    assert float(answers["log_p"][..., -1].exp().mean()) > 0.4
    by_top = {name: answers[name] for name in ("log_p", "classes")}

    def found(how):
        moved = (shift * move).requires_grad_()
        value = how(old + moved).mean()
        return value.detach(), torch.autograd.grad(value, moved)[0]

    exact, slope = found(lambda new: kl(old, new))
    value, own_slope = found(lambda new: loss.divergence(new, answers, batch))
    one_mass, _ = found(lambda new: loss.divergence(new, by_top, batch))
    assert 0.93 * exact < value < 1.02 * exact
    assert one_mass < 0.7 * exact
    assert F.cosine_similarity(own_slope, slope, dim=0) > 0.85
    assert loss.divergence(old, answers, batch).abs().max() < 1e-5


def test_of_many_classes_most_may_be_masked():
    old, new = outputs(3, 1500)
    old[:, 10:] = new[:, 10:] = -torch.inf
    new.requires_grad_()
    batch, loss = (None, torch.randint(10, (3,))), Categorical()
    answers = loss.answers(old, batch)
    found = loss.divergence(new, answers, batch)
    torch.testing.assert_close(found, kl(old[:, :10], new[:, :10]))
    (slope,) = torch.autograd.grad(found.sum(), new)
    assert slope.isfinite().all()


def test_a_class_that_could_not_be():
    old, new = outputs(4, 3)
    old[:, 1] = -math.inf
    new[:, 1] = -math.inf
    batch, loss = (None, torch.tensor([0, 2, 0, 2])), Categorical()
    expected = kl(old[:, [0, 2]], new[:, [0, 2]])
    torch.testing.assert_close(loss.divergence(new, loss.answers(old, batch), batch), expected)


def test_several_labels():
    old, new = outputs(7, 4)
    loss, batch = Bernoulli(), (None, torch.randint(2, (7, 4)))
    expected = kl_divergence(TorchBernoulli(logits=old), TorchBernoulli(logits=new)).sum(1)
    torch.testing.assert_close(loss.divergence(new, loss.answers(old, batch), batch), expected, atol=1e-5, rtol=1e-4)


def test_real_numbers():
    old, new = outputs(7, 4)
    loss, batch = Gaussian(variance=0.3), (None, torch.randn(7, 4))
    expected = kl_divergence(Normal(old, 0.3**0.5), Normal(new, 0.3**0.5)).sum(1)
    torch.testing.assert_close(loss.divergence(new, loss.answers(old, batch), batch), expected)


def test_a_loss_of_ones_own_rises_and_falls():
    old, new = outputs(7, 1)
    loss = AtTargets(PerExample(lambda found, batch: (found - batch[1]).abs().sum(1)))
    batch = (None, torch.randn(7, 1))
    expected = (new - batch[1]).abs().sum(1) - (old - batch[1]).abs().sum(1)
    torch.testing.assert_close(loss.divergence(new, loss.answers(old, batch), batch), expected)


def test_sentences_are_compared_with_the_next_one():
    old, new = outputs(3, 8)
    loss = Similarity()

    def cosine(found: torch.Tensor, i: int, j: int) -> float:
        return float(found[i] @ found[j] / found[i].norm() / found[j].norm())

    pairs = [(0, 1), (1, 2), (2, 0)]
    expected = [(cosine(new, i, j) - cosine(old, i, j)) ** 2 / (2 * 0.04) for i, j in pairs]
    found = loss.divergence(new, loss.answers(old, None), None)
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-5, rtol=1e-4)
    with pytest.raises(BatchError, match="embeddings"):
        loss.answers(old[:1], None)


def test_the_fisher_of_a_similarity_foresees_what_cosines_with_any_others_lose():
    H, loss = 6, Similarity()
    embedding, way = torch.randn(1, H).double(), 1e-3 * torch.randn(1, H).double()
    scores = torch.autograd.functional.jacobian(lambda e: loss.exact_scores(e, None)[:, 0], embedding)[:, 0]
    foreseen = 0.5 * (scores @ way[0]).square().sum()
    others = torch.randn(200_000, H).double()
    moved = F.cosine_similarity(embedding + way, others) - F.cosine_similarity(embedding, others)
    lost = 2 * moved.square().mean() / (2 * loss.variance)  # a target has two ends
    torch.testing.assert_close(foreseen, lost, rtol=0.03, atol=0)


def test_sampled_scores_of_a_similarity_have_the_exact_mean_square():
    loss, outputs = Similarity(), torch.randn(2, 5)
    exact = loss.exact_scores(outputs, None).square().sum(dim=0)
    drawn = torch.stack([loss.sampled(outputs, None, draws=Draws(range(2), seed=seed)) for seed in range(4000)])
    torch.testing.assert_close(drawn.square().mean(dim=0), exact, rtol=0.1, atol=0)
    with pytest.raises(OptionError, match="no target"):
        loss.nll(outputs, None)
