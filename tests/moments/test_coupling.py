"""Models that mix their examples are refused, and the named remedy is one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests.moments.zoo import ZOO, Apply, build
from torch import Tensor, nn

from holdfast import fisher
from holdfast.errors import CoupledExamplesError, RandomOutputsError
from holdfast.moments.calls import Call
from holdfast.moments.coupling import check_independent
from holdfast.moments.state import measuring
from holdfast.moments.sums import MomentSums


def check(model: nn.Module, *shape: int) -> None:
    with measuring(model):
        check_independent(model, Call((torch.randn(shape),), {}, shape[0]), where="fisher")


class KeptInTraining(nn.Sequential):
    """Its train() does not reach the named modules."""

    kept: tuple[int, ...] = ()

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        for index in self.kept:
            self[index].train()
        return self


@pytest.mark.parametrize("name", ZOO)
def test_models_that_keep_examples_apart_pass(name: str):
    check_independent(*build(name), where="fisher")


def test_batch_norm_without_running_statistics():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    words = r"fisher: Sequential mixes .* 3 examples together differ .*'1' \(BatchNorm2d, no running statistics\)"
    with pytest.raises(CoupledExamplesError, match=words):
        check(model, 5, 1, 6, 6)
    model[1] = nn.GroupNorm(2, 4)
    check(model, 5, 1, 6, 6)


def test_batch_norm_that_refuses_one_example():
    model = KeptInTraining(nn.Linear(3, 4), nn.BatchNorm1d(4))
    model.kept = (1,)
    with pytest.raises(CoupledExamplesError, match=r"refuses one example alone.*'1' \(BatchNorm1d, in training mode\)"):
        check(model, 5, 3)
    model.kept = ()
    check(model, 5, 3)


def test_dropout_that_stays_on():
    model = KeptInTraining(nn.Linear(3, 50), nn.Dropout())
    model.kept = (1,)
    with pytest.raises(
        RandomOutputsError, match=r"draws random numbers.*the next, and are the same.*'1' \(Dropout, in training mode\)"
    ):
        check(model, 5, 3)
    model.kept = ()
    check(model, 5, 3)


def test_functional_dropout():
    model = Apply(lambda self, x: F.dropout(self.a(x)), a=nn.Linear(3, 50))
    with pytest.raises(RandomOutputsError, match=r"draws random numbers.*pass training=self.training"):
        check(model, 5, 3)
    check(Apply(lambda self, x: F.dropout(self.a(x), training=self.training), a=nn.Linear(3, 50)), 5, 3)


def test_examples_mixed_by_hand():
    def centred(self: nn.Module, x: Tensor) -> Tensor:
        return self.a(x - x.mean(dim=0))

    with pytest.raises(CoupledExamplesError, match=r"mixes its examples.*No module of it .*: look at forward\(\)"):
        check(Apply(centred, a=nn.Linear(3, 2)), 5, 3)


class VAE(nn.Module):
    """Draws its latent, unless it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6, 4), nn.Linear(2, 6)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        noise = torch.randn_like(mean) if noise is None else noise
        return self.decoder(mean + noise * (log_variance / 2).exp()), mean, log_variance


def negative_elbo(outputs: tuple[Tensor, Tensor, Tensor], batch: dict[str, Tensor]) -> Tensor:
    drawn, mean, log_variance = outputs
    divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1) / 2
    return (drawn - batch["x"]).square().sum(dim=1) / 2 + divergence


@pytest.mark.parametrize("size", [1, 2, 7])
def test_a_vae_draws_and_does_not_mix(size: int):
    """And where the draws are in the batch, it is measured: as one example after the other."""
    model, x = VAE(), torch.randn(size, 6)
    before = torch.random.get_rng_state()
    with pytest.raises(
        RandomOutputsError, match=r"fisher: VAE draws .* take the draws as an input: forward\(x, noise\)"
    ):
        fisher(model, [{"x": x}], kind="empirical", loss=negative_elbo)
    assert torch.equal(torch.random.get_rng_state(), before)
    batch = {"x": x, "noise": torch.randn(size, 2)}
    found = fisher(model, [batch], kind="empirical", loss=negative_elbo)
    expected = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
    for b in range(size):
        one = {name: value[b : b + 1] for name, value in batch.items()}
        gradients = torch.autograd.grad(negative_elbo(model(**one), one).sum(), list(model.parameters()))
        for total, gradient in zip(expected.values(), gradients, strict=True):
            total += gradient.square() / size
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


@pytest.mark.parametrize("size", [2, 5])
def test_what_draws_and_mixes_is_said_to_mix(size: int):
    def both(self: nn.Module, x: Tensor) -> Tensor:
        return self.a(F.dropout(x) - x.sum(dim=0))

    model = Apply(both, a=nn.Linear(30, 2))
    with pytest.raises(CoupledExamplesError, match="mixes its examples .*: under the same random draws its outputs"):
        check(model, size, 30)


def test_what_keeps_a_state_is_not_said_to_draw_from_torch():
    calls = []

    def counting(self: nn.Module, x: Tensor) -> Tensor:
        calls.append(1)
        return self.a(x) * len(calls)

    with pytest.raises(RandomOutputsError, match="also where torch's random state is the same: it keeps a state"):
        check(Apply(counting, a=nn.Linear(3, 2)), 5, 3)
    check(Apply(lambda self, x: counting(self, x) if self.training else self.a(x), a=nn.Linear(3, 2)), 5, 3)


@pytest.mark.parametrize(
    ("name", "size"),
    [("chance", 1), ("chance", 2), ("chance", 5), ("company", 2), ("company", 5), ("batch norm", 1), ("batch norm", 5)],
)
def test_sums_are_refused_on_the_first_batch(name: str, size: int):
    """What the study of the first examples sees on its way is judged by the same check."""
    models = {
        "chance": Apply(lambda self, x: F.dropout(self.a(x)), a=nn.Linear(3, 50)),
        "company": Apply(lambda self, x: self.a(x - x.mean(dim=0)), a=nn.Linear(3, 2)),
        "batch norm": KeptInTraining(nn.Linear(3, 4), nn.BatchNorm1d(4)),
    }
    model = models[name]
    if isinstance(model, KeptInTraining):
        model.kept = (1,)
    with measuring(model):
        sums = MomentSums(model, phi="square", where="fisher")
        error, told = (
            (RandomOutputsError, "draws") if name == "chance" else (CoupledExamplesError, "mixes its examples")
        )
        with pytest.raises(error, match=told):
            sums.add(Call((torch.randn(size, 3),), {}, size), lambda outputs: outputs.sum(dim=1).unsqueeze(0))


def test_other_errors_of_the_model_stay_themselves():
    def broken(self: nn.Module, x: Tensor) -> Tensor:
        raise ValueError("of the user")

    with pytest.raises(ValueError, match="of the user"):
        check(Apply(broken, a=nn.Linear(3, 2)), 5, 3)


def test_rounding_is_no_coupling():
    model = Apply(lambda self, x: self.a(x.bfloat16()).float(), a=nn.Linear(300, 50).bfloat16())
    check(model, 5, 300)
    autocast = Apply(lambda self, x: self.a(x).float(), a=nn.Linear(300, 50))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        check(autocast, 5, 300)
