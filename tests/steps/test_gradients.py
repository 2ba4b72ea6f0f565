"""What a backward pass left in `.grad`, whatever happens to it before the step; replicas: tests/integrations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from holdfast.steps import BackwardGradients


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def named(model: nn.Module) -> dict[str, nn.Parameter]:
    return dict(model.named_parameters())


def loss_of(model: nn.Module, seed: int = 0) -> Tensor:
    return model(torch.randn(5, 4, generator=torch.Generator().manual_seed(seed))).square().mean()


def expected_of(*seeds: int) -> dict[str, Tensor]:
    model = net()
    sum(loss_of(model, seed) for seed in seeds).backward()  # pyright: ignore[reportAttributeAccessIssue]
    return {name: parameter.grad for name, parameter in named(model).items()}


def assert_kept(kept: BackwardGradients, expected: dict[str, Tensor]) -> None:
    for name, gradient in expected.items():
        torch.testing.assert_close(kept.take(name), gradient)
        assert kept.take(name) is None  # once


@pytest.mark.parametrize("change", ["clip", "zero", "none"])
def test_what_changes_gradients_later_does_not_change_what_was_kept(change):
    model = net()
    kept = BackwardGradients(named(model))
    loss_of(model).backward()
    if change == "clip":
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    else:
        model.zero_grad(set_to_none=change == "none")
    assert_kept(kept, expected_of(0))


def test_accumulated_gradients_are_the_sum():
    model = net()
    kept = BackwardGradients(named(model))
    for seed in (0, 1, 2):
        loss_of(model, seed).backward()
    assert_kept(kept, expected_of(0, 1, 2))


def test_a_parameter_that_a_pass_does_not_reach_keeps_what_an_earlier_one_left():
    model = net()
    kept = BackwardGradients(named(model))
    loss_of(model).backward()
    nn.utils.clip_grad_norm_(model[2].parameters(), 1e-3)
    first = expected_of(0)
    model[0](torch.ones(1, 4)).sum().backward()  # through the first layer alone
    for name in ("2.weight", "2.bias"):
        torch.testing.assert_close(kept.take(name), first[name])
    torch.testing.assert_close(kept.take("0.bias"), first["0.bias"] + 1)


def test_a_pass_that_failed_is_as_if_it_had_not_been():
    model = net()
    kept = BackwardGradients(named(model))

    def fail(_: Tensor) -> None:
        raise RuntimeError("out of memory")

    handle = model[0].bias.register_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        loss_of(model, 3).backward()
    handle.remove()
    model.zero_grad()
    loss_of(model).backward()
    assert_kept(kept, expected_of(0))


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_recomputed_layers(use_reentrant):
    model = net()
    kept = BackwardGradients(named(model))
    inputs = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    hidden = checkpoint(model[0], inputs, use_reentrant=use_reentrant)
    checkpoint(model[1:], hidden, use_reentrant=use_reentrant).square().mean().backward()  # pyright: ignore
    assert_kept(kept, expected_of(0))


def test_the_scale_is_divided_out():
    model = net()
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    kept = BackwardGradients(named(model), scaler=scaler)
    scaler.scale(loss_of(model)).backward()
    assert_kept(kept, expected_of(0))


def test_removed_it_leaves_no_trace():
    model = net()
    kept = BackwardGradients(named(model))
    kept.remove()
    assert all(not parameter._post_accumulate_grad_hooks for parameter in model.parameters())
    loss_of(model).backward()
    assert kept.take("0.weight") is None
