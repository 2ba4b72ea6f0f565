import pytest
import torch
import torch.nn.functional as F
from torch import nn

from holdfast.errors import LossShapeError, OptionError, UnknownNameError
from holdfast.likelihoods.draws import Draws
from holdfast.likelihoods.likelihood import (
    Bernoulli,
    Categorical,
    Gaussian,
    Likelihood,
    PerExample,
    resolve_likelihood,
)

OUTPUTS, BATCH = torch.randn(4, 3), (torch.randn(4, 2), torch.tensor([0, 2, 1, 1]))


def per_example(outputs, batch):
    return F.cross_entropy(outputs, batch[1], reduction="none")


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (None, Categorical()),
        ("categorical", Categorical()),
        ("gaussian", Gaussian()),
        ("bernoulli", Bernoulli()),
        (Gaussian(variance=2.0), Gaussian(variance=2.0)),
        (per_example, PerExample(per_example, "fisher")),
    ],
)
def test_every_form_of_loss(loss, expected):
    resolved = resolve_likelihood(loss, where="fisher")
    assert resolved == expected
    assert isinstance(resolved, Likelihood)


def test_an_unknown_name_is_offered_the_nearest():
    with pytest.raises(UnknownNameError, match="unknown loss 'gausian'. Did you mean 'gaussian'\\?"):
        resolve_likelihood("gausian", where="fisher")


@pytest.mark.parametrize(
    ("loss", "name"), [(nn.CrossEntropyLoss(), "CrossEntropyLoss"), (F.cross_entropy, "cross_entropy")]
)
def test_torch_s_own_losses_take_other_arguments(loss, name):
    with pytest.raises(OptionError) as caught:
        resolve_likelihood(loss, where="fisher")
    assert str(caught.value) == (
        f"fisher: loss={name} takes (prediction, target), not (outputs, batch). Pass loss='categorical', "
        "'gaussian', 'bernoulli' or 'similarity', or a function of (outputs, batch) that returns shape [B], such as "
        "lambda outputs, batch: F.cross_entropy(outputs, batch[1], reduction='none')."
    )
    remedy = resolve_likelihood(
        lambda outputs, batch: F.cross_entropy(outputs, batch[1], reduction="none"), where="fisher"
    )
    torch.testing.assert_close(remedy.nll(OUTPUTS, BATCH), Categorical().nll(OUTPUTS, BATCH))


@pytest.mark.parametrize("loss", [3, Gaussian])
def test_what_is_no_loss_is_named(loss):
    with pytest.raises(OptionError) as caught:
        resolve_likelihood(loss, where="fisher")
    assert str(caught.value).startswith(f"fisher: found loss={loss!r}. Pass loss='categorical'")


def test_a_function_has_values_at_the_batch_s_targets():
    loss = PerExample(per_example)
    assert loss.name == "custom"
    torch.testing.assert_close(loss.nll(OUTPUTS, BATCH), Categorical().nll(OUTPUTS, BATCH))


def test_a_function_that_returns_a_mean_is_an_error():
    loss = PerExample(lambda outputs, batch: F.cross_entropy(outputs, batch[1]), where="mas")
    with pytest.raises(LossShapeError, match="mas: the loss returned shape \\[\\] \\(a mean or sum over the batch\\)"):
        loss.nll(OUTPUTS, BATCH)


@pytest.mark.parametrize("kind", ["exact", "sampled"])
def test_a_function_has_no_distribution(kind):
    loss = PerExample(per_example, where="fisher")
    with pytest.raises(OptionError) as caught:
        loss.exact_scores(OUTPUTS, BATCH) if kind == "exact" else loss.sampled(OUTPUTS, BATCH, draws=Draws(range(4)))
    assert str(caught.value) == (
        f'fisher: kind="{kind}" needs the distribution of the targets, and loss= is a function, which knows only its '
        'value at the labels. Pass kind="empirical" or kind="batched", or name the distribution: loss="categorical", '
        '"gaussian" or "bernoulli".'
    )
