"""What is measured of a likelihood is a mean over targets: against sums over single examples, and against training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import holdfast as hf
from holdfast.errors import EmptyDataError
from holdfast.likelihoods.draws import Draws
from holdfast.likelihoods.likelihood import Bernoulli, Categorical, Gaussian, PerExample, num_targets

V, LENGTHS = 5, (7, 2, 4, 7, 5, 3, 6)
CAUSAL = Categorical(causal=True, class_axis=-1)


class Reader(nn.Module):
    """Each position knows those before it; the embedding and the norm have a diagonal, the two others factors."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.table, self.norm = nn.Embedding(V, 6), nn.LayerNorm(6)
        self.inner, self.outer = nn.Linear(6, 4), nn.Linear(4, V)

    def forward(self, ids: Tensor) -> Tensor:
        return self.outer(self.inner(self.norm(self.table(ids)).cumsum(dim=1)).tanh())


def texts(lengths: Sequence[int] = LENGTHS) -> tuple[Tensor, Tensor]:
    """Token numbers, and labels: padding does not count, nor do two tokens of the third text."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(0, V, (len(lengths), max(lengths)), generator=generator)
    labels = ids.masked_fill(torch.arange(max(lengths)) >= torch.tensor(lengths).unsqueeze(1), -100)
    labels[2, 1:3] = -100
    return ids, labels


def split(ids: Tensor, labels: Tensor, *sizes: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(ids.split(sizes), labels.split(sizes)))


def summed(outputs: Tensor, batch: Any) -> Tensor:
    """The same loss, as a function that returns one value an example: so far one target."""
    return CAUSAL.nll(outputs, batch)


def oracle(model: nn.Module, ids: Tensor, labels: Tensor, phi: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Tensor]:
    """Name -> sum over examples of phi(gradient of the summed loss, weight), over the number of labels that count."""
    named = dict(model.named_parameters())
    totals, count = {name: torch.zeros_like(p) for name, p in named.items()}, 0
    for x, y in zip(ids, labels):
        logits = model(x[None])[0, :-1]
        loss = F.cross_entropy(logits, y[1:], reduction="sum", ignore_index=-100)
        count += int((y[1:] != -100).sum())
        for name, g in zip(named, torch.autograd.grad(loss, list(named.values()))):
            totals[name] += phi(g, named[name].detach())
    return {name: total / count for name, total in totals.items()}


def close(found: Any, expected: Any) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        atol = 1e-6 * float(value.abs().max())
        torch.testing.assert_close(found[name].double(), value.double(), rtol=1e-5, atol=atol)


@pytest.mark.parametrize("sizes", [(7,), (1,) * 7, (2, 5), (3, 1, 3)])
def test_squares_and_absolute_values_of_summed_losses_over_the_targets(sizes: tuple[int, ...]):
    model, (ids, labels) = Reader().double(), texts()
    data = split(ids, labels, *sizes)
    found = hf.fisher(model, data, kind="empirical", loss=CAUSAL)
    close(found, oracle(model, ids, labels, lambda g, w: g.square()))
    assert (found.info.num_examples, found.info.num_targets) == (7, sum(LENGTHS) - 7 - 2)
    close(hf.taylor(model, data, loss=CAUSAL), oracle(model, ids, labels, lambda g, w: (w * g).abs()))


def test_exact_and_sampled_fisher_over_the_targets():
    model, (ids, labels) = Reader().double(), texts()
    runs = [hf.fisher(model, [(ids, labels)], kind="sampled", num_draws=30, seed=n, loss=CAUSAL) for n in range(100)]
    drawn = {name: torch.stack([run[name] for run in runs]).mean(dim=0) for name in runs[0]}
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for x, y in zip(ids, labels):
        logs = model(x[None])[0, :-1][y[1:] != -100].log_softmax(-1)
        for log_p in logs.flatten():  # the labels of positions are independent given x
            found = torch.autograd.grad(log_p, list(model.parameters()), retain_graph=True)
            for name, g in zip(total, found):
                total[name] += log_p.detach().exp() * g.square()
    expected = {name: value / (sum(LENGTHS) - 9) for name, value in total.items()}
    close(hf.fisher(model, split(ids, labels, 4, 1, 2), loss=CAUSAL), expected)
    for name, value in expected.items():
        assert float((drawn[name] - value).norm() / value.norm()) < 0.1


def test_batched_is_of_the_mean_over_the_targets_of_a_batch():
    model, (ids, labels) = Reader().double(), texts()
    data = split(ids, labels, 4, 3)
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for x, y in data:
        loss = F.cross_entropy(model(x)[:, :-1].flatten(0, 1), y[:, 1:].flatten(), ignore_index=-100)
        for name, g in zip(expected, torch.autograd.grad(loss, list(model.parameters()))):
            expected[name] += g.square() / 2
    close(hf.fisher(model, data, kind="batched", loss=CAUSAL), expected)


@pytest.mark.parametrize("rule", ["auto", "matched", "expand", "reduce"])
@pytest.mark.parametrize("sizes", [(7,), (2, 1, 4)])
def test_products_of_factors_are_means_over_the_targets(rule: Any, sizes: tuple[int, ...]):
    model, (ids, labels) = Reader().double(), texts()
    data = split(ids, labels, *sizes)
    found = hf.kfac(model, data, kind="empirical", factors=rule, loss=CAUSAL)
    of_examples = hf.kfac(model, data, kind="empirical", factors=rule, loss=summed)
    assert (of_examples.info.num_targets, found.info.num_targets) == (7, 25)
    for name in ("inner.weight", "outer.weight"):
        own, other = (torch.kron(each[name].outputs, each[name].inputs) for each in (found, of_examples))
        torch.testing.assert_close(own, other * 7 / 25, rtol=1e-5, atol=1e-8)
    expected = oracle(model, ids, labels, lambda g, w: g.square())
    close(found.diagonal, {name: expected[name] for name in found.diagonal})
    if rule in ("auto", "matched"):
        diagonal = found.to_diagonal()
        for layer in ("inner", "outer"):
            names = (f"{layer}.weight", f"{layer}.bias")
            traces = [sum(float(each[name].sum()) for name in names) for each in (diagonal, expected)]
            assert traces[0] == pytest.approx(traces[1], rel=1e-5)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("estimator", [hf.fisher, hf.kfac])
def test_a_strength_of_examples_times_the_targets_of_an_example_takes_the_same_steps(estimator: Any, kind: Any):
    ids, labels = texts((6,) * 8)
    labels[2, 1:3] = ids[2, 1:3]  # so each has five
    ended = []
    for loss, strength in ((summed, 3.0), (CAUSAL, 3.0 * 5)):
        model = Reader()
        importance = estimator(model, [(ids, labels)], kind="empirical", loss=loss)
        optimizer = kind(model.parameters(), lr=1e-2)
        hf.EWC(model, strength=strength).retain(importance).attach(optimizer)
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(model(ids.flip(0))[:, 1:].flatten(0, 1), labels[:, :-1].flatten()).backward()
            optimizer.step()
        ended.append(dict(model.named_parameters()))
    for name, weight in ended[0].items():
        torch.testing.assert_close(ended[1][name], weight, rtol=1e-4, atol=1e-6)


def test_a_budget_is_in_nats_a_target():
    ids, labels = texts((6,) * 8)
    labels[2, 1:3] = ids[2, 1:3]
    ended = []
    for loss, budget in ((summed, 0.05), (CAUSAL, 0.01)):
        model = Reader()
        keeper = hf.EWC(model, budget=budget).retain(hf.fisher(model, [(ids, labels)], kind="empirical", loss=loss))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
        keeper.attach(optimizer)
        for _ in range(5):
            optimizer.zero_grad()
            F.cross_entropy(model(ids.flip(0))[:, 1:].flatten(0, 1), labels[:, :-1].flatten()).backward()
            optimizer.step()
        assert keeper.predicted_rise() == pytest.approx(budget, rel=1e-3)
        ended.append(dict(model.named_parameters()))
    for name, weight in ended[0].items():
        torch.testing.assert_close(ended[1][name], weight, rtol=1e-3, atol=1e-5)


class Triples:
    """A likelihood of a user's own, of three targets an example."""

    name = "triples"

    def nll(self, outputs: Tensor, batch: Any) -> Tensor:
        return (outputs - batch[1]).square().sum(dim=1) / 2

    def exact_scores(self, outputs: Tensor, batch: Any) -> Tensor:
        return outputs.T

    def sampled(self, outputs: Tensor, batch: Any, *, draws: Draws) -> Tensor:
        noise = draws.normal(outputs.shape, outputs)
        return (outputs - outputs.detach() - noise).square().sum(dim=1) / 2

    def num_targets(self, batch: Any) -> int:
        return batch[1].numel()


def test_a_likelihood_of_the_user_s_may_count_its_targets():
    model, data = nn.Linear(4, 3), [(torch.randn(6, 4), torch.randn(6, 3))]
    found, gaussian = hf.fisher(model, data, loss=Triples()), hf.fisher(model, data, loss="gaussian")
    assert (found.info.num_targets, gaussian.info.num_targets) == (18, 6)
    close(found, {name: value / 3 for name, value in gaussian.items()})


@pytest.mark.parametrize(
    ("likelihood", "batch", "count"),
    [
        (Categorical(), (None, torch.tensor([0, 2, -100])), 2),
        (Categorical(causal=False), (None, torch.tensor([[0, 2, 1], [1, -100, -100]])), 4),
        (Categorical(causal=True), (None, torch.tensor([[0, 2, 1], [1, -100, -100]])), 2),
        (Categorical(), {"input_ids": torch.zeros(2, 3).long(), "labels": torch.zeros(2, 3).long()}, 4),
        (Categorical(class_axis=1), (None, torch.zeros(2, 4, 5).long()), 40),
        (Gaussian(), (torch.zeros(2, 3), torch.zeros(2, 4)), 2),
        (Bernoulli(), (torch.zeros(2, 3), torch.zeros(2, 4)), 2),
        (PerExample(summed), (torch.zeros(2, 3), torch.zeros(2, 3).long()), 2),
    ],
)
def test_what_counts_as_a_target(likelihood: Any, batch: Any, count: int):
    assert num_targets(likelihood, batch) == count


def test_data_without_a_target_are_refused():
    model, (ids, labels) = Reader(), texts()
    for data in ([(ids, labels.fill_(-100))], [(ids[:, :1], ids[:, :1])]):
        for measure in (hf.fisher, hf.taylor, hf.kfac):
            with pytest.raises(EmptyDataError, match=r"none of the 7 examples has a target: all labels are -100"):
                measure(model, data, loss=CAUSAL)
    hf.fisher(model, [(ids, ids)], loss=CAUSAL)  # what it says to do


ONE_CLASS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 4)),
    "mlp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 5), nn.ReLU(), nn.Linear(5, 4)),
    "convolution": lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4)),
}


@pytest.mark.parametrize("kind", ["exact", "sampled", "empirical"])
@pytest.mark.parametrize("net", ONE_CLASS)
def test_among_one_class_the_answer_is_certain_and_nothing_matters(net, kind):
    data = [(torch.randn(size, 1, 6, 6), torch.full((size,), 2)) for size in (7, 3, 1)]
    model, loss = ONE_CLASS[net](), hf.Categorical((2,))
    found = hf.fisher(model, data, kind=kind, loss=loss)
    assert set(found) == {name for name, _ in model.named_parameters()}
    assert not any(value.any() for value in found.values())
    factored = hf.kfac(model, data, kind=kind, loss=loss)
    assert all(layer.trace() == 0 for layer in factored.values())
