"""Losses that mix the examples of a batch are refused, and right ones are measured without a word."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import holdfast as hf
from holdfast.errors import BatchError, CoupledExamplesError, LossShapeError

Loss = Callable[[Any, Any], Tensor]
X, Y, W = (
    torch.randn(18, 5, generator=torch.Generator().manual_seed(0)),
    torch.arange(18) % 3,
    torch.linspace(0.5, 2, 18),
)


class Net(nn.Sequential):
    """Takes whatever else a batch holds."""

    def __init__(self, out: int = 3) -> None:
        torch.manual_seed(1)
        super().__init__(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, out))

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        return super().forward(x)


def pairs(size: int, *, inputs: Tensor = X, targets: Tensor = Y) -> list[tuple[Tensor, Tensor]]:
    return list(zip(inputs.split(size), targets.split(size)))


def mappings(size: int, extra: Callable[[slice], Any]) -> list[dict[str, Any]]:
    places = [slice(start, start + size) for start in range(0, len(X) - size + 1, size)]
    return [{"x": X[place], "labels": Y[place], "w": extra(place)} for place in places]


def oracle(model: nn.Module, nll: Callable[[Tensor, int], Tensor], count: int = len(X)) -> dict[str, Tensor]:
    """The empirical Fisher by a loop; `nll(outputs of one example, its number)`."""
    named = dict(model.named_parameters())
    totals = {name: torch.zeros_like(p) for name, p in named.items()}
    for b in range(count):
        for name, g in zip(named, torch.autograd.grad(nll(model(X[b : b + 1])[0], b), list(named.values()))):
            totals[name] += g.square() / count
    return totals


def close(found: Any, expected: Any) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-6)


def each(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="none")


def one(outputs: Tensor, b: int) -> Tensor:
    return F.cross_entropy(outputs, Y[b])


WEIGHTS = torch.tensor([1.0, 2.0, 5.0])
RIGHT: dict[str, tuple[Loss, Callable[[Tensor, int], Tensor]]] = {
    "class weights": (
        lambda out, batch: F.cross_entropy(out, batch[1], weight=WEIGHTS, reduction="none"),
        lambda out, b: one(out, b) * WEIGHTS[Y[b]],
    ),
    "label smoothing": (
        lambda out, batch: F.cross_entropy(out, batch[1], label_smoothing=0.2, reduction="none"),
        lambda out, b: F.cross_entropy(out, Y[b], label_smoothing=0.2),
    ),
    "by position": (lambda out, batch: -out.log_softmax(1)[torch.arange(len(out)), batch[1]], one),
    "a loop": (lambda out, batch: torch.stack([F.cross_entropy(o, y) for o, y in zip(out, batch[1])]), one),
    "reads its inputs": (
        lambda out, batch: each(out, batch[1]) * batch[0][:, 0],
        lambda out, b: one(out, b) * X[b, 0],
    ),
}


@pytest.mark.parametrize("size", [1, 2, 7, 18])
@pytest.mark.parametrize("name", RIGHT)
def test_right_losses(name: str, size: int):
    loss, expected = RIGHT[name]
    close(hf.fisher(Net(), pairs(size), kind="empirical", loss=loss), oracle(Net(), expected))


class Tagger(nn.Module):
    """One class for every position of a sequence."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embedding, self.head = nn.Embedding(9, 4), nn.Linear(4, 9)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embedding(ids).tanh())


IDS = torch.randint(9, (12, 6), generator=torch.Generator().manual_seed(0))
TAGS = IDS.roll(-1, 1).clone()
TAGS[:, -1], TAGS[::2, 3:], TAGS[[0, 7]] = -100, -100, -100  # two examples have no token that counts


def tokens(out: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(out.mT, targets, reduction="none").sum(1)


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("size", [1, 3, 12])
def test_padded_tokens_and_examples_without_any(size: int, mean: bool):
    def own_count(targets: Tensor) -> Tensor | int:
        return (targets != -100).sum(1).clamp(min=1) if mean else 1

    found = hf.fisher(
        Tagger(),
        pairs(size, inputs=IDS, targets=TAGS),
        kind="empirical",
        loss=lambda out, batch: tokens(out, batch[1]) / own_count(batch[1]),
    )
    model, totals = Tagger(), dict.fromkeys(found, 0.0)
    for ids, targets in zip(IDS.split(1), TAGS.split(1)):
        nll = (tokens(model(ids), targets) / own_count(targets)).sum()
        for name, g in zip(totals, torch.autograd.grad(nll, list(model.parameters()))):
            totals[name] += g.square() / len(IDS)
    close(found, totals)


@pytest.mark.parametrize(
    ("extra", "read"),
    [
        (lambda place: W[place], lambda w: w),
        (lambda place: W[place].numpy(), torch.from_numpy),
        (lambda place: W[place].tolist(), torch.tensor),
        (lambda place: {"inner": [W[place], "a note", None, 3]}, lambda w: w["inner"][0]),
        (lambda place: tuple({"w": float(w)} for w in W[place]), lambda ws: torch.tensor([w["w"] for w in ws])),
    ],
)
@pytest.mark.parametrize("size", [2, 6])
def test_what_a_loss_reads_beside_its_targets(extra: Any, read: Any, size: int):
    def loss(out: Tensor, batch: Any) -> Tensor:
        return each(out, batch["labels"]) * read(batch["w"])

    found = hf.fisher(Net(), mappings(size, extra), kind="empirical", loss=loss)
    close(found, oracle(Net(), lambda out, b: one(out, b) * W[b]))


def test_a_list_that_is_as_long_as_the_batch_by_chance():
    def loss(out: Tensor, batch: Any) -> Tensor:
        low, high = batch["w"]
        return each(out, batch["labels"]).clamp(low, high)

    found = hf.fisher(Net(), mappings(2, lambda _: (0.0, 9.0)), kind="empirical", loss=loss)
    close(found, oracle(Net(), one))


def test_objects_of_unknown_content_are_given_whole():
    """So only the first examples are compared, whose places in them are the same."""

    def loss(out: Tensor, batch: Any) -> Tensor:
        return each(out, batch["labels"]) * batch["w"].values[: len(out)]

    data = mappings(6, lambda place: SimpleNamespace(values=W[place]))
    close(hf.fisher(Net(), data, kind="empirical", loss=loss), oracle(Net(), lambda out, b: one(out, b) * W[b]))
    with pytest.raises(CoupledExamplesError, match="for example 0 of a batch of 6"):
        hf.fisher(Net(), data, kind="empirical", loss=lambda out, batch: loss(out, batch) / len(out))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_rounding_is_no_mixing(dtype: torch.dtype):
    wide = nn.Linear(5, 300).to(dtype)
    hf.fisher(wide, pairs(6, inputs=X.to(dtype)), kind="empirical", loss=lambda out, batch: each(out, batch[1]))
    sure = nn.Linear(5, 50)
    with torch.no_grad():
        sure.weight.mul_(200.0)
    answers = sure(X).argmax(1)
    sums = lambda out, batch: each(out @ torch.eye(50), batch[1])  # noqa: E731
    hf.fisher(sure, pairs(6, targets=answers), kind="empirical", loss=sums)
    barred = lambda out, batch: each(out.index_fill(1, torch.tensor([2]), -torch.inf), batch[1] % 2)  # noqa: E731
    hf.fisher(Net(), pairs(6), kind="empirical", loss=barred)


def nt_xent(out: Tensor, batch: Any) -> Tensor:
    """Chen et al. 2020: two views of an example in one row, all other rows as negatives."""
    views = F.normalize(torch.cat(out.chunk(2, dim=1)), dim=1)
    size = len(out)
    near = (views @ views.T / 0.5).masked_fill(torch.eye(2 * size, dtype=torch.bool), -1e9)
    losses = F.cross_entropy(near, torch.arange(2 * size).roll(size), reduction="none")
    return losses[:size] + losses[size:]


def triplet(out: Tensor, batch: Any) -> Tensor:
    """The hardest positive and negative within the batch."""
    away = torch.cdist(out, out) ** 2
    same = batch[1].unsqueeze(1) == batch[1]
    far = away.masked_fill(~same, 0.0).amax(1)
    return (far - away.masked_fill(same, 9.0).amin(1) + 1.0).relu()


def fixed_size(out: Tensor, batch: Any) -> Tensor:
    if len(out) not in (2, 6, 18):
        raise ValueError("an unexpected size")
    return F.cross_entropy(out @ out.T, torch.arange(len(out)), reduction="none")


def balanced(out: Tensor, batch: Any) -> Tensor:
    share = torch.bincount(batch[1], minlength=4).clamp(min=1)
    return F.cross_entropy(out, batch[1], weight=1.0 / share, reduction="none")


def barlow(out: Tensor, batch: Any) -> Tensor:
    return ((out - out.mean(0)) / out.std(0, correction=0)).square().sum(1) * each(out, batch[1])


MIXING: dict[str, Loss] = {
    "NT-Xent": nt_xent,
    "triplet": triplet,
    "a fixed size": fixed_size,
    "balanced by the batch": balanced,
    "standardised": barlow,
    "batch mean subtracted": lambda out, batch: each(out, batch[1]) - each(out, batch[1]).mean(),
    "advantage": lambda out, batch: each(out, batch[1]) * (W[: len(out)] - W[: len(out)].mean()),
    "mean expanded": lambda out, batch: F.cross_entropy(out, batch[1]).expand(len(out)),
    "mean over the batch": lambda out, batch: each(out, batch[1]) / len(out),
    "a gradient without a value": lambda out, batch: each(out, batch[1]) + 0.1 * (out.mean() - out.mean().detach()),
    "one in a thousand": lambda out, batch: each(out, batch[1]) * (1.001 if len(out) > 1 else 1.0),
}


@pytest.mark.parametrize("size", [2, 6, 18])
@pytest.mark.parametrize("name", MIXING)
def test_mixing_losses_are_refused(name: str, size: int):
    loss, targets = MIXING[name], Y.sort().values if name == "balanced by the batch" else Y
    with pytest.raises(CoupledExamplesError) as caught:
        hf.fisher(Net(4), pairs(size, targets=targets), kind="empirical", loss=loss)
    assert str(caught.value).startswith("fisher: the loss mixes the examples of a batch: ")
    assert str(caught.value).endswith("make the group one example, the first axis counting groups.")


@pytest.mark.parametrize(
    ("where", "estimate"),
    [
        ("fisher", lambda *a, **k: hf.fisher(*a, kind="empirical", per="token", **k)),
        ("fisher", lambda *a, **k: hf.fisher(*a, kind="batched", **k)),
        ("taylor", hf.taylor),
        ("kfac", lambda *a, **k: hf.kfac(*a, kind="empirical", **k)),
    ],
)
def test_every_estimator_refuses_them(where: str, estimate: Any):
    with pytest.raises(CoupledExamplesError, match=f"{where}: the loss mixes the examples of a batch"):
        estimate(Net(4), pairs(6), loss=nt_xent)


@pytest.mark.parametrize("size", [2, 4, 12])
def test_tokens_of_the_batch_and_the_remedy(size: int):
    def by_batch(out: Tensor, batch: Any) -> Tensor:
        return tokens(out, batch[1]) / (batch[1] != -100).sum()

    def by_example(out: Tensor, batch: Any) -> Tensor:
        return tokens(out, batch[1]) / (batch[1] != -100).sum(1).clamp(min=1)

    with pytest.raises(CoupledExamplesError, match="divide by its own count of tokens instead of the batch's"):
        hf.fisher(Tagger(), pairs(size, inputs=IDS, targets=TAGS), kind="empirical", loss=by_batch)
    hf.fisher(Tagger(), pairs(size, inputs=IDS, targets=TAGS), kind="empirical", loss=by_example)


def test_a_group_as_one_example_is_the_remedy_of_contrastive_losses():
    def within(out: Tensor, batch: Any) -> Tensor:
        near = out @ out.mT
        return torch.stack([F.cross_entropy(group, torch.arange(len(group)), reduction="sum") for group in near])

    groups = X.view(3, 6, 5)
    data = pairs(2, inputs=groups, targets=groups[:, 0, 0])
    found = hf.fisher(Net(4), data, kind="empirical", loss=within)
    model, totals = Net(4), dict.fromkeys(found, 0.0)
    for group in groups:
        for name, g in zip(
            totals, torch.autograd.grad(within(model(group[None]), None).sum(), list(model.parameters()))
        ):
            totals[name] += g.square() / 3
    close(found, totals)


@pytest.mark.parametrize(
    ("loss", "told"),
    [
        (MIXING["mean over the batch"], "for example 0 of a batch of 2 it gives "),
        (MIXING["one in a thousand"], "for the same example alone, from the same outputs. The Fisher information"),
        (
            nt_xent,
            "of 2 examples together, the gradient of its values for example 0 reaches the outputs for example 1.",
        ),
    ],
)
def test_what_was_found_is_told(loss: Loss, told: str):
    with pytest.raises(CoupledExamplesError) as caught:
        hf.fisher(Net(4), pairs(2), kind="empirical", loss=loss)
    assert told in str(caught.value)
    with pytest.raises(CoupledExamplesError, match="for examples 0 to 3 reaches the outputs for example"):
        hf.fisher(Net(4), pairs(18), kind="empirical", loss=nt_xent)


def test_a_first_batch_of_one_proves_nothing():
    loss = MIXING["mean over the batch"]
    data = [(X[:1], Y[:1]), (X[1:2], Y[1:2])]
    close(hf.fisher(Net(), data, kind="empirical", loss=loss), oracle(Net(), one, count=2))
    with pytest.raises(CoupledExamplesError):
        hf.fisher(Net(), [*data, (X[2:5], Y[2:5])], kind="empirical", loss=loss)


def test_a_batch_of_another_form_is_looked_at_again():
    def loss(out: Tensor, batch: Any) -> Tensor:
        return each(out, batch["labels"]) / (len(out) if "w" in batch else 1)

    plain = [{"x": X[:6], "labels": Y[:6]}] * 2
    hf.fisher(Net(), plain, kind="empirical", loss=loss)
    with pytest.raises(CoupledExamplesError):
        hf.fisher(Net(), [*plain, {"x": X[:6], "labels": Y[:6], "w": W[:6]}], kind="empirical", loss=loss)


def test_a_loss_that_mixes_later_is_seen_later():
    def loss(out: Tensor, batch: Any) -> Tensor:
        return each(out, batch[1]) / (len(out) if batch[0][0, 0] > 50 else 1)

    with pytest.raises(CoupledExamplesError):
        hf.fisher(Net(), [(X[:6], Y[:6])] * 3 + [(X[:6] + 100, Y[:6])], kind="empirical", loss=loss)


def test_a_loss_of_chance_is_measured_with_a_warning():
    def noisy(out: Tensor, batch: Any) -> Tensor:
        return each(out + 0.1 * torch.randn_like(out), batch[1])

    model = Net()
    torch.manual_seed(5)
    with pytest.warns(UserWarning, match="fisher: the loss gives other values for the same batch.*draws random num"):
        found = hf.fisher(model, pairs(18), kind="empirical", loss=noisy)
    torch.manual_seed(5)
    noise = 0.1 * torch.randn(18, 3)  # the check leaves the random state as it was
    close(found, oracle(Net(), lambda out, b: one(out + noise[b], b)))

    def seeded(out: Tensor, batch: Any) -> Tensor:  # the remedy
        noise = torch.randn(3, generator=torch.Generator().manual_seed(0))
        return each(out + 0.1 * noise, batch[1])

    hf.fisher(Net(), pairs(6), kind="empirical", loss=seeded)
    with pytest.raises(CoupledExamplesError):
        hf.fisher(Net(), pairs(6), kind="empirical", loss=lambda out, batch: noisy(out - out.mean(0), batch))


def test_a_loss_of_one_size_is_measured_with_a_warning():
    def sized(out: Tensor, batch: Any) -> Tensor:
        return each(out, batch[1]) * torch.ones(6)

    with pytest.warns(UserWarning, match=r"could not be called on the first example.*\(LossShapeError: .*of any size"):
        found = hf.fisher(Net(), pairs(6), kind="empirical", loss=sized)
    close(found, oracle(Net(), one))

    def picky(out: Tensor, batch: Any) -> Tensor:
        return each(out[[0, 1, 2, 3, 4, 5]], batch[1])

    with pytest.warns(UserWarning, match=r"alone \(IndexError: "):
        hf.fisher(Net(), pairs(6), kind="empirical", loss=picky)
    hf.fisher(Net(), pairs(6), kind="empirical", loss=lambda out, batch: each(out, batch[1]))


def test_outputs_beside_those_of_the_examples():
    """A tensor of as many entries as examples are looked at is not cut as if it were theirs."""

    class WithCentres(Net):
        def forward(self, x: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
            return super().forward(x), torch.arange(24.0).reshape(8, 3)

    def loss(out: Any, batch: Any) -> Tensor:
        return (out[0].unsqueeze(1) - out[1].detach()).square().sum((1, 2)) * 1e-3

    found = hf.fisher(WithCentres(), pairs(18), kind="empirical", loss=loss)
    centres = torch.arange(24.0).reshape(8, 3)
    close(found, oracle(Net(), lambda out, b: (out - centres).square().sum() * 1e-3))


def test_wrong_shapes_stay_their_own_error():
    with pytest.raises(LossShapeError, match="the loss returned shape"):
        hf.fisher(Net(), pairs(6), kind="empirical", loss=lambda out, batch: out)
    with pytest.raises(BatchError):
        hf.fisher(Net(), [(X, Y[:3])], kind="empirical", loss=lambda out, batch: out.sum(1))


def test_a_loss_is_called_on_few_examples_only():
    seen: list[int] = []

    def loss(out: Tensor, batch: Any) -> Tensor:
        seen.append(len(out))
        return each(out, batch[1])

    hf.fisher(Net(), [(X, Y)] * 20, kind="empirical", loss=loss)
    assert seen.count(18) == 20  # once a batch
    assert sorted(size for size in seen if size < 18) == [1] * 7 + [8] * 5


@pytest.mark.parametrize("size", [1, 4, 7])
def test_outputs_may_be_one_number_an_example(size):
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.value, self.spread = nn.Linear(X.shape[1], 1), nn.Linear(X.shape[1], 1)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"value": self.value(x)[:, 0], "spread": self.spread(x)[:, 0]}

    def loss(out: dict[str, Tensor], batch: Any) -> Tensor:
        return 0.5 * ((batch[1] - out["value"]) / out["spread"].exp()).square() + out["spread"]

    torch.manual_seed(0)
    model = Two()
    targets = torch.randn(len(X))
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for x, y in zip(X, targets):
        one = loss(model(x.unsqueeze(0)), (x.unsqueeze(0), y.unsqueeze(0))).sum()
        for total, g in zip(expected.values(), torch.autograd.grad(one, list(model.parameters()))):
            total += g.square() / len(X)
    close(hf.fisher(model, pairs(size, targets=targets), kind="empirical", loss=loss), expected)
