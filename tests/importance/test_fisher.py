"""The Fisher information: closed forms, its four kinds, and what it must not depend on."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from tests.moments.test_state import assert_same, snapshot
from torch import Tensor, nn

from holdfast.errors import (
    BatchError,
    CoupledExamplesError,
    EmptyDataError,
    LossShapeError,
    NotFiniteError,
    OptionError,
    UnknownNameError,
)
from holdfast.importance import fisher, mas, signal, taylor, uniform
from holdfast.likelihoods.likelihood import Categorical

Data = list[tuple[Tensor, Tensor]]


def classifier() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(6, 3))


def plain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))


def examples(num: int = 23) -> tuple[Tensor, Tensor]:
    return torch.randn(num, 5), torch.randint(0, 3, (num,))


def batches(x: Tensor, y: Tensor, size: int) -> Data:
    return list(zip(x.split(size), y.split(size)))


def close(a: object, b: object, *, rtol: float = 1e-4) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=rtol, atol=rtol * float(b[name].abs().max()))


def test_exact_fisher_of_logistic_regression():
    model, (x, _) = nn.Linear(4, 1).double(), (torch.randn(50, 4, dtype=torch.float64), None)
    y = (torch.rand(50, 1) > 0.5).double()
    found = fisher(model, batches(x, y, 16), loss="bernoulli")
    p = model(x).sigmoid().detach()
    torch.testing.assert_close(found["weight"], (p * (1 - p) * x.square()).mean(0, keepdim=True).float())
    torch.testing.assert_close(found["bias"], (p * (1 - p)).mean(0).float())
    assert found.info.kind == "fisher-exact"
    assert found.info.num_examples == 50
    assert (found.info.loss, found.info.unit, found.info.nats_per_unit) == ("bernoulli", "nats/weight^2", 1.0)
    assert found.info.model == "Linear"


def test_exact_fisher_of_softmax_regression_is_the_sum_over_classes():
    model, (x, y) = nn.Linear(5, 3), examples()
    found = fisher(model, batches(x, y, 7))
    p = model(x).softmax(1).detach()
    expected = torch.einsum("bj,bi->ji", p * (1 - p), x.square()) / len(x)
    torch.testing.assert_close(found["weight"], expected)


def test_exact_fisher_of_regression_does_not_see_the_targets():
    model, (x, _) = nn.Linear(5, 2), examples()
    found = fisher(model, [(x, torch.randn(len(x), 2))], loss="gaussian")
    torch.testing.assert_close(found["weight"], x.square().mean(0).expand(2, 5))
    torch.testing.assert_close(found["bias"], torch.ones(2))


def test_empirical_fisher_is_the_mean_squared_gradient_at_the_labels():
    model, (x, y) = plain(), examples()
    found = fisher(model, batches(x, y, 5), kind="empirical")
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for b in range(len(x)):
        gradients = torch.autograd.grad(F.cross_entropy(model(x[b : b + 1]), y[b : b + 1]), list(model.parameters()))
        for name, value in zip(expected, gradients):
            expected[name] += value.square() / len(x)
    close(found, expected)


def test_a_function_of_the_users_own_is_the_named_likelihood():
    model, (x, y) = plain(), examples()
    mine = lambda outputs, batch: F.cross_entropy(outputs, batch[1], reduction="none")  # noqa: E731
    close(fisher(model, [(x, y)], kind="empirical", loss=mine), fisher(model, [(x, y)], kind="empirical"))


def test_sampled_fisher_is_within_four_standard_errors_of_exact():
    model, (x, y) = plain(), examples()
    exact = fisher(model, [(x, y)])
    runs = [fisher(model, [(x, y)], kind="sampled", num_draws=10, seed=seed) for seed in range(30)]
    for name in exact:
        found = torch.stack([run[name] for run in runs])
        error = found.std(0) / len(runs) ** 0.5
        assert ((found.mean(0) - exact[name]).abs() <= 4 * error + 1e-7).all()
    again = fisher(model, [(x, y)], kind="sampled", num_draws=10, seed=0)
    assert all(torch.equal(again[name], runs[0][name]) for name in again)
    assert not torch.equal(runs[0]["0.weight"], runs[1]["0.weight"])


def test_top_classes_exactly_and_one_draw_for_the_others():
    model, (x, y) = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 8)), examples()
    exact = fisher(model, [(x, y)])
    runs = [fisher(model, [(x, y)], top_k=3, seed=seed) for seed in range(200)]
    for name in exact:
        found = torch.stack([run[name] for run in runs])
        error = found.std(0) / len(runs) ** 0.5
        assert ((found.mean(0) - exact[name]).abs() <= 5 * error + 1e-7).all()
    assert runs[0].info.details == {"top_k": 3, "seed": 0}
    close(fisher(model, [(x, y)], top_k=7), exact)
    for options in ({"top_k": 2, "kind": "sampled"}, {"top_k": 2, "loss": "gaussian"}):
        with pytest.raises(OptionError, match=r"fisher: top_k=2 with kind=.*which belongs to .* Leave it out"):
            fisher(model, [(x, y)], **options)


def test_top_classes_of_sequences_are_unbiased():
    model, ids = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 6)), torch.randint(0, 6, (5, 4))
    data = [(ids, ids)]
    exact = fisher(model, data)
    found = torch.stack([fisher(model, data, top_k=2, seed=seed)["1.weight"] for seed in range(400)])
    assert ((found.mean(0) - exact["1.weight"]).abs() <= 5 * found.std(0) / len(found) ** 0.5 + 1e-7).all()


def test_per_token_every_position_is_squared_on_its_own():
    model = nn.Sequential(nn.Embedding(6, 4, padding_idx=0), nn.LayerNorm(4), nn.Linear(4, 6))
    ids, labels = torch.randint(0, 6, (5, 7)), torch.randint(0, 6, (5, 7))
    found = fisher(model, [(ids[:2], labels[:2]), (ids[2:], labels[2:])], kind="empirical", per="token")
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for one, label in zip(ids.flatten(), labels.flatten()):  # here positions meet in no layer
        loss = F.cross_entropy(model(one[None]), label[None])
        for total, value in zip(expected.values(), torch.autograd.grad(loss, list(model.parameters()))):
            total += value.square() / ids.numel()
    close(found, expected)
    assert found.info.details["per"] == "token"
    with pytest.warns(UserWarning, match='per="token" has no effect with kind="batched"'):
        fisher(model, [(ids, labels)], kind="batched", per="token")


def test_batched_is_the_squared_gradient_of_batch_means():
    model, (x, y) = plain(), examples(20)
    found = fisher(model, batches(x, y, 10), kind="batched")
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for some, labels in batches(x, y, 10):
        gradients = torch.autograd.grad(F.cross_entropy(model(some), labels), list(model.parameters()))
        for name, value in zip(expected, gradients):
            expected[name] += value.square() / 2
    close(found, expected)
    assert found.info.nats_per_unit is None
    assert found.info.unit == "nats^2/weight^2"


ESTIMATORS = {
    "fisher exact": lambda model, data, **more: fisher(model, data, **more),
    "fisher sampled": lambda model, data, **more: fisher(model, data, kind="sampled", **more),
    "fisher empirical": lambda model, data, **more: fisher(model, data, kind="empirical", **more),
    "fisher batched": lambda model, data, **more: fisher(model, data, kind="batched", **more),
    "taylor": taylor,
    "mas": mas,
    "mas softmax": lambda model, data, **more: mas(model, data, output="softmax", **more),
    "mas batched": lambda model, data, **more: mas(model, data, batched=True, **more),
    "mas local": lambda model, data, **more: mas(model, data, local=True, others="zero", **more),
    "signal": lambda model, data, **more: signal(model, data, others="zero", **more),
    "signal activation": lambda model, data, **more: signal(model, data, bias="activation", others="zero", **more),
}
DRAWS_OR_BATCHES = {"fisher sampled", "fisher batched"}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_what_no_importance_depends_on(name: str):
    estimator, model, (x, y) = ESTIMATORS[name], classifier(), examples()
    model(x)  # moves the batch norm statistics off their start
    found = estimator(model, batches(x, y, 23))
    assert all(value.dtype == torch.float32 and (value >= 0).all() for value in found.values())
    assert list(found) == [key for key, _ in model.named_parameters()]
    close(estimator(model.eval(), batches(x, y, 23)), found)
    if name not in DRAWS_OR_BATCHES:
        close(estimator(model, batches(x.flip(0), y.flip(0), 4)), found)
        close(estimator(model, iter(batches(x, y, 5))), found)  # read once
        close(estimator(model, batches(x, y, 4), num_examples=10), estimator(model, batches(x[:10], y[:10], 10)))


@pytest.mark.parametrize("fail", [False, True])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_model_is_left_as_it_was(name: str, fail: bool):
    model, (x, y) = classifier(), examples()
    model[1].eval()
    model[0].bias.requires_grad_(False)
    F.cross_entropy(model(x), y).backward()
    before = snapshot(model)
    weights = copy.deepcopy(model.state_dict())
    if fail:
        with pytest.raises(BatchError):
            ESTIMATORS[name](model, [(x, y), "nonsense"])
    else:
        ESTIMATORS[name](model, [(x, y)])
    assert_same(before, snapshot(model))
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ESTIMATORS)
def test_bad_data_is_named(name: str):
    estimator, model, (x, y) = ESTIMATORS[name], plain(), examples()
    where = name.split()[0]
    with pytest.raises(
        EmptyDataError, match=f"{where}: the data held no example. Pass an iterable of non-empty batches"
    ):
        estimator(model, [])
    with pytest.raises(BatchError, match=r"Pass \(inputs, targets\)"):
        estimator(model, [x])
    with pytest.raises(BatchError, match=rf"{where}: data is one batch \(a tuple\).*Pass \[batch\]"):
        estimator(model, (x, y))
    estimator(model, [(x, y)])
    with pytest.raises(OptionError, match="num_examples=0, expected a whole number >= 1"):
        estimator(model, [(x, y)], num_examples=0)
    with pytest.raises(OptionError, match="Sequential has no trainable parameters"):
        estimator(plain().requires_grad_(False), [(x, y)])
    mixing = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6, affine=False, track_running_stats=False), nn.Linear(6, 3))
    with pytest.raises(CoupledExamplesError, match=rf"{where}: .*'1' \(BatchNorm1d, no running statistics\)"):
        estimator(mixing, [(x, y)])


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_nan_is_an_error(name: str):
    model, (x, y) = plain(), examples()
    x[3, 2] = float("nan")
    with pytest.raises(NotFiniteError):
        ESTIMATORS[name](model, [(x, y)])


def test_a_mapping_as_language_models_take_it():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(7, 4)
            self.head = nn.Linear(4, 7, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.head(self.embedding(input_ids))
            return {"loss": F.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}

    ids = torch.randint(0, 7, (6, 5))
    labels = ids.clone()
    labels[0, :3] = -100
    model = Model()
    data = [{"input_ids": ids[i : i + 4], "labels": labels[i : i + 4]} for i in (0, 4)]
    found = fisher(model, data, kind="empirical")
    assert list(found) == ["embedding.weight"]
    expected = torch.zeros(7, 4)
    for one, targets in zip(ids, labels):
        logits = model(one[None], targets[None])["logits"]
        nll = F.cross_entropy(logits[0, :-1], targets[1:], reduction="sum")
        expected += torch.autograd.grad(nll, model.embedding.weight)[0].square() / (6 * 4 - 2)
    torch.testing.assert_close(found["embedding.weight"], expected, rtol=1e-4, atol=1e-6)
    exact = fisher(model, data, chunk_bytes=1000)
    assert (exact.info.num_examples, exact.info.num_targets) == (6, 22)


def test_only_some_classes_take_part():
    model, (x, y) = nn.Linear(5, 3), examples()
    found = fisher(model, [(x, y.clamp(max=1))], loss=Categorical(classes=(0, 1)))
    assert (found["weight"][2] == 0).all()
    assert (found["weight"][:2] > 0).all()


@pytest.mark.parametrize("kind", ["empirical", "batched"])
def test_a_loss_that_returns_a_mean(kind: str):
    model, (x, y) = plain(), examples()
    mean = lambda outputs, batch: F.cross_entropy(outputs, batch[1])  # noqa: E731
    with pytest.raises(LossShapeError, match=r"returned shape \[\] \(a mean or sum.*Pass reduction='none'"):
        fisher(model, [(x, y)], kind=kind, loss=mean)
    with pytest.raises(LossShapeError, match="Pass reduction='none'"):
        taylor(model, [(x, y)], loss=mean)


def test_options_without_meaning():
    model, (x, y) = plain(), examples()
    with pytest.raises(UnknownNameError, match="unknown kind of fisher 'empiricl'. Did you mean 'empirical'"):
        fisher(model, [(x, y)], kind="empiricl")
    with pytest.raises(UnknownNameError, match="Did you mean 'categorical'"):
        fisher(model, [(x, y)], loss="categoricl")
    with pytest.raises(OptionError, match='Pass kind="empirical"'):
        fisher(model, [(x, y)], loss=lambda outputs, batch: outputs.sum(1))
    with pytest.raises(OptionError, match="num_draws=0"):
        fisher(model, [(x, y)], kind="sampled", num_draws=0)
    with pytest.warns(UserWarning, match='num_draws=3 has no effect with kind="exact"; it belongs to kind="sampled"'):
        fisher(model, [(x, y)], num_draws=3)


def test_wrapped_models_have_the_names_of_the_bare_one():
    model, (x, y) = plain(), examples()
    expected = fisher(model, [(x, y)])
    close(fisher(nn.DataParallel(model), [(x, y)]), expected)
    close(fisher(torch.compile(model, backend="eager"), [(x, y)]), expected)


def test_uniform_is_one_everywhere():
    model = plain()
    model[0].bias.requires_grad_(False)
    found = uniform(model)
    assert list(found) == ["0.weight", "2.weight", "2.bias"]
    assert all((value == 1).all() and value.dtype == torch.float32 for value in found.values())
    assert not any(value.requires_grad for value in found.values())


def test_progress_is_shown_when_asked(capsys: pytest.CaptureFixture[str]):
    model, (x, y) = plain(), examples()
    fisher(model, [(x, y)])
    assert not capsys.readouterr().err
    fisher(model, [(x, y)], progress=True)
    assert "fisher: 100%" in capsys.readouterr().err
