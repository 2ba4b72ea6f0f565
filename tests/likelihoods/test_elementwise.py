import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import BatchError, OptionError
from holdfast.likelihoods.draws import Draws
from holdfast.likelihoods.elementwise import Bernoulli, Gaussian

LIKELIHOODS = [Gaussian(), Gaussian(variance=0.3), Bernoulli()]


def squared_gradients(scores, theta):
    return sum(torch.autograd.grad(score, theta, retain_graph=True)[0] ** 2 for score in scores)


def test_gaussian_by_hand():
    outputs, targets = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 4.0], [0.0, 0.0]])
    assert Gaussian().nll(outputs, (None, targets)).tolist() == [2.5, 0.0]
    assert Gaussian(variance=0.5).nll(outputs, (None, targets)).tolist() == [5.0, 0.0]
    assert Gaussian(variance=4.0).exact_scores(outputs, (None, None)).tolist() == [[0.5, 0.0], [1.0, 0.0]]


def test_bernoulli_by_hand():
    outputs, targets = torch.tensor([[0.0, math.log(3.0)]]), torch.tensor([[1, 0]])
    torch.testing.assert_close(Bernoulli().nll(outputs, (None, targets)), torch.tensor([math.log(2.0) + math.log(4.0)]))
    torch.testing.assert_close(
        Bernoulli().exact_scores(outputs, (None, None)), torch.tensor([[0.0], [math.sqrt(3 / 16) * math.log(3.0)]])
    )


@given(variance=st.floats(0.1, 10.0), j=st.integers(1, 3))
def test_gaussian_exact_scores_give_j_t_j_over_the_variance(variance, j):
    """E_y (d log p)^2 = sum_jk E[e_j e_k] f'_j f'_k / variance^2 = sum_j f'_j^2 / variance."""
    x, theta = torch.randn(3, dtype=torch.float64), torch.randn(j, 3, dtype=torch.float64, requires_grad=True)
    outputs = torch.tanh(theta @ x).unsqueeze(0)
    jacobian = [torch.autograd.grad(f, theta, retain_graph=True)[0] for f in outputs[0]]
    expected = sum(row**2 for row in jacobian) / variance
    scores = Gaussian(variance).exact_scores(outputs, (None, None))
    torch.testing.assert_close(squared_gradients(scores[:, 0], theta), expected)


@given(st.integers(1, 3))
def test_bernoulli_exact_scores_expect_over_all_answers(j):
    theta = torch.randn(j, j, dtype=torch.float64, requires_grad=True)
    outputs = (theta @ torch.randn(j, dtype=torch.float64)).unsqueeze(0)
    answers = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * j).reshape(-1, 1, j)
    losses = [Bernoulli().nll(outputs, (None, y))[0] for y in answers]
    expected = sum(
        torch.exp(-loss.detach()) * torch.autograd.grad(loss, theta, retain_graph=True)[0] ** 2 for loss in losses
    )
    scores = Bernoulli().exact_scores(outputs, (None, None))
    torch.testing.assert_close(squared_gradients(scores[:, 0], theta), expected)


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=repr)
def test_sampled_squared_gradients_average_to_the_exact(likelihood):
    n = 20_000
    outputs = torch.tensor([0.7, -1.5], dtype=torch.float64).expand(n, 2).clone().requires_grad_()
    losses = likelihood.sampled(outputs, (None, None), draws=Draws(range(n)))
    squares = torch.autograd.grad(losses.sum(), outputs)[0].square()
    scores = likelihood.exact_scores(outputs, (None, None))
    exact = torch.autograd.grad(scores.sum(), outputs)[0][0].square()  # score j depends on output j alone
    assert ((squares.mean(0) - exact).abs() <= 4 * squares.std(0) / n**0.5).all()


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=repr)
def test_any_output_axes_and_under_vmap(likelihood):
    outputs, targets = torch.randn(4, 2, 3), torch.rand(4, 2, 3)
    losses, scores = likelihood.nll(outputs, (None, targets)), likelihood.exact_scores(outputs, (None, targets))
    assert losses.shape == (4,)
    assert scores.shape == (6, 4)
    nll = torch.func.vmap(lambda f, y: likelihood.nll(f.unsqueeze(0), (None, y.unsqueeze(0)))[0])
    torch.testing.assert_close(nll(outputs, targets), losses)
    exact = torch.func.vmap(lambda f: likelihood.exact_scores(f.unsqueeze(0), (None, None))[:, 0])
    torch.testing.assert_close(exact(outputs).T, scores)
    draw = torch.func.vmap(lambda f: likelihood.sampled(f.unsqueeze(0), (None, None), draws=Draws([5]))[0])
    torch.testing.assert_close(draw(outputs), likelihood.sampled(outputs, (None, None), draws=Draws([5] * 4)))


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=repr)
def test_outputs_of_one_axis_and_narrow_types(likelihood):
    outputs, targets = torch.randn(4).bfloat16(), torch.tensor([0, 1, 1, 0])
    assert likelihood.nll(outputs, (None, targets)).shape == (4,)
    assert likelihood.nll(outputs, (None, targets)).dtype == torch.float32
    assert likelihood.exact_scores(outputs, (None, targets)).shape == (1, 4)


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=repr)
def test_shapes_must_be_equal(likelihood):
    outputs, targets = torch.randn(4, 1), torch.ones(4)
    with pytest.raises(BatchError) as caught:
        likelihood.nll(outputs, (None, targets))
    assert str(caught.value) == (
        f"{likelihood.name} loss: found outputs of shape [4, 1] with targets of shape [4], expected equal shapes. "
        "Reshape one, as with targets.unsqueeze(1)."
    )
    assert likelihood.nll(outputs, (None, targets.unsqueeze(1))).shape == (4,)


@pytest.mark.parametrize("found", ["2", "-0.5", "nan"])
def test_bernoulli_targets_are_probabilities(found):
    targets = torch.tensor([[0.0, float(found)]])
    with pytest.raises(BatchError, match=f"bernoulli loss: found the target {found}, expected targets in 0..1."):
        Bernoulli().nll(torch.randn(1, 2), (None, targets))


@pytest.mark.parametrize("variance", [0.0, -1.0, math.inf, math.nan])
def test_the_variance_is_positive(variance):
    with pytest.raises(OptionError, match=f"Gaussian: variance={variance}, expected a positive, finite number."):
        Gaussian(variance=variance)
