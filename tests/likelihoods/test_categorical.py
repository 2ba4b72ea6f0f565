"""Every expectation over labels is worked out the long way: a backward pass a label, weighted by its probability."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import BatchError, OptionError
from holdfast.likelihoods.categorical import Categorical
from holdfast.likelihoods.draws import Draws


def fisher(nll_of_label, p, theta):
    """sum_c p_c (d log p_c / d theta)^2 by autograd, one label at a time."""
    return sum(p_c * torch.autograd.grad(nll_of_label(c), theta, retain_graph=True)[0] ** 2 for c, p_c in enumerate(p))


def squared_gradients(scores, theta):
    """Of one example's scores [K]: the sum of their squared gradients."""
    return torch.stack([torch.autograd.grad(score, theta, retain_graph=True)[0] ** 2 for score in scores]).sum(0)


@given(b=st.integers(1, 4), c=st.integers(2, 5), scale=st.sampled_from([0.1, 1.0, 30.0]))
def test_exact_scores_give_the_fisher_of_the_outputs(b, c, scale):
    x = torch.randn(b, 3, dtype=torch.float64)
    theta = (scale * torch.randn(c, 3, dtype=torch.float64)).requires_grad_()
    logits = x @ theta.T
    scores = Categorical().exact_scores(logits, (x, torch.zeros(b, dtype=torch.int64)))
    assert scores.shape == (c - 1, b)
    for i in range(b):
        log_p = logits[i].log_softmax(0)
        expected = fisher(lambda k, log_p=log_p: -log_p[k], log_p.exp().tolist(), theta)
        torch.testing.assert_close(squared_gradients(scores[:, i], theta), expected, rtol=1e-9, atol=1e-12)


def test_exact_scores_of_a_logistic_regression_in_closed_form():
    x, theta = torch.tensor([[2.0]]), torch.tensor([[0.0], [0.5]], requires_grad=True)
    scores = Categorical().exact_scores(x @ theta.T, (x, torch.tensor([1])))
    p = torch.tensor(1.0).sigmoid()  # z = 0.5 * 2
    torch.testing.assert_close(squared_gradients(scores[:, 0], theta)[1, 0], p * (1 - p) * 4)


def test_restricted_classes_are_a_softmax_of_their_own():
    logits = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([5, 2, 2, 5])
    likelihood, narrow = Categorical(classes=[5, 2]), logits[:, [5, 2]]
    batch, narrow_batch = (None, targets), (None, torch.tensor([0, 1, 1, 0]))
    assert torch.equal(likelihood.nll(logits, batch), F.cross_entropy(narrow, narrow_batch[1], reduction="none"))
    assert torch.equal(likelihood.exact_scores(logits, batch), Categorical().exact_scores(narrow, narrow_batch))
    draws = [
        one.sampled(outputs, data, draws=Draws(range(4), seed=3))
        for one, outputs, data in [(likelihood, logits, batch), (Categorical(), narrow, narrow_batch)]
    ]
    assert torch.equal(*draws)
    (gradient,) = torch.autograd.grad(likelihood.nll(logits, batch).sum(), logits)
    assert gradient[:, [0, 1, 3, 4]].count_nonzero() == 0


def test_exact_scores_of_a_column_masked_by_minus_infinity():
    theta = torch.randn(3, requires_grad=True)
    logits = theta.masked_fill(torch.tensor([False, True, False]), -torch.inf).unsqueeze(0)
    scores = Categorical().exact_scores(logits, (None, torch.tensor([0])))
    narrow = Categorical(classes=(0, 2)).exact_scores(theta.unsqueeze(0), (None, torch.tensor([0])))
    torch.testing.assert_close(squared_gradients(scores[:, 0], theta), squared_gradients(narrow[:, 0], theta))


def test_sampled_squared_gradients_average_to_the_fisher():
    n, c = 20_000, 4
    theta = torch.randn(c, dtype=torch.float64)
    logits = theta.expand(n, c).clone().requires_grad_()
    loss = Categorical().sampled(logits, (None, torch.zeros(n, dtype=torch.int64)), draws=Draws(range(n)))
    (gradients,) = torch.autograd.grad(loss.sum(), logits)
    p = theta.softmax(0)
    error = gradients.square().std(0) / n**0.5
    assert ((gradients.square().mean(0) - p * (1 - p)).abs() <= 4 * error).all()


def test_sampling_leaves_torch_s_random_state_alone():
    logits, batch = torch.randn(50, 4), (None, torch.zeros(50, dtype=torch.int64))
    state = torch.get_rng_state()
    once, again = (Categorical().sampled(logits, batch, draws=Draws(range(50), seed=7)) for _ in range(2))
    assert torch.equal(once, again)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("axis", [1, -1])
def test_positions_are_summed_and_minus_100_skipped(axis):
    logits = torch.randn(2, 3, 5, dtype=torch.float64)  # [B, T, C]
    targets = torch.tensor([[1, -100, 4], [-100, -100, 0]])
    outputs = logits if axis == -1 else logits.movedim(-1, 1)
    losses = Categorical().nll(outputs, (None, targets))
    expected = F.cross_entropy(logits.movedim(-1, 1), targets, reduction="none").sum(1)
    torch.testing.assert_close(losses, expected)

    scores = Categorical().exact_scores(outputs, (None, targets))
    assert scores.shape == (12, 2)
    assert scores.reshape(3, 4, 2).ne(0).any(1).tolist() == [[True, False], [False, False], [True, True]]
    drawn = Categorical().sampled(outputs, (None, targets), draws=Draws(range(2)))
    assert drawn[0] > 0
    skipped = Categorical().sampled(outputs, (None, torch.full_like(targets, -100)), draws=Draws(range(2)))
    assert skipped.tolist() == [0, 0]


def test_exact_scores_of_a_sequence_expect_over_all_its_labelings():
    t, c = 2, 3
    theta = torch.randn(t, c, dtype=torch.float64, requires_grad=True)
    mix = torch.randn(t * c, t * c, dtype=torch.float64)
    logits = (mix @ theta.flatten()).view(1, t, c)  # every weight reaches every position
    log_p = logits[0].log_softmax(-1)
    expected = sum(
        (log_p[0, i] + log_p[1, j]).exp().detach()
        * torch.autograd.grad(log_p[0, i] + log_p[1, j], theta, retain_graph=True)[0] ** 2
        for i in range(c)
        for j in range(c)
    )
    scores = Categorical().exact_scores(logits, (None, torch.zeros(1, t, dtype=torch.int64)))
    torch.testing.assert_close(squared_gradients(scores[:, 0], theta), expected)


def test_images_of_labels_as_torch_has_them():
    logits, targets = torch.randn(2, 4, 3, 5), torch.randint(0, 4, (2, 3, 5))
    expected = F.cross_entropy(logits, targets, reduction="none").sum((1, 2))
    torch.testing.assert_close(Categorical().nll(logits, (None, targets)), expected)


def test_a_causal_batch_is_shifted():
    ids, logits = torch.randint(0, 7, (2, 5)), torch.randn(2, 5, 7)
    labels = ids.clone()
    labels[0, :2] = -100
    expected = F.cross_entropy(logits[:, :-1].mT, labels[:, 1:], reduction="none").sum(1)
    batch = {"input_ids": ids, "labels": labels}
    torch.testing.assert_close(Categorical().nll(logits, batch), expected)
    torch.testing.assert_close(Categorical(causal=True).nll(logits, (ids, labels)), expected)
    assert Categorical().exact_scores(logits, batch).reshape(5, 6, 2)[-1].count_nonzero() == 0


def test_other_batches_are_not_shifted():
    ids, logits = torch.randint(0, 7, (2, 5)), torch.randn(2, 5, 7)
    own = (ids + 1) % 7
    plain = F.cross_entropy(logits.mT, own, reduction="none").sum(1)
    torch.testing.assert_close(Categorical().nll(logits, {"input_ids": ids, "labels": own}), plain)
    torch.testing.assert_close(Categorical().nll(logits, (ids, own)), plain)
    same = F.cross_entropy(logits.mT, ids, reduction="none").sum(1)
    torch.testing.assert_close(Categorical(causal=False).nll(logits, {"input_ids": ids, "labels": ids}), same)
    torch.testing.assert_close(
        Categorical().nll(logits[:, 0], {"input_ids": ids, "labels": ids[:, 0]}),
        F.cross_entropy(logits[:, 0], ids[:, 0], reduction="none"),
    )


def test_without_a_model_a_batch_is_shifted_as_a_whole_or_not():
    ids, logits = torch.randint(0, 7, (2, 5)), torch.randn(2, 5, 7)
    labels = torch.stack([ids[0], (ids[1] + 1) % 7])  # the first could be a causal model's
    plain = F.cross_entropy(logits.mT, labels, reduction="none").sum(1)
    torch.testing.assert_close(Categorical().nll(logits, {"input_ids": ids, "labels": labels}), plain)


@pytest.mark.parametrize("classes", [None, (4, 0, 2)])
def test_under_vmap_as_in_a_batch(classes):
    likelihood, ids, logits = Categorical(classes=classes), torch.randint(0, 3, (4, 6)) * 2, torch.randn(4, 6, 5)

    def single(method, output, row, **options):
        batch = {"input_ids": row.unsqueeze(0), "labels": row.unsqueeze(0)}
        return getattr(likelihood, method)(output.unsqueeze(0), batch, **options)

    batch = {"input_ids": ids, "labels": ids}
    nll = torch.func.vmap(lambda output, row: single("nll", output, row)[0])(logits, ids)
    torch.testing.assert_close(nll, likelihood.nll(logits, batch))
    scores = torch.func.vmap(lambda output, row: single("exact_scores", output, row)[:, 0])(logits, ids)
    torch.testing.assert_close(scores.T, likelihood.exact_scores(logits, batch))
    draw = torch.func.vmap(lambda output, row: single("sampled", output, row, draws=Draws([5]))[0])
    torch.testing.assert_close(draw(logits, ids), likelihood.sampled(logits, batch, draws=Draws([5] * 4)))


@pytest.mark.parametrize("label", [9, 1, -5])
def test_under_vmap_a_foreign_target_is_torch_s_error(label):
    likelihood = Categorical(classes=(0, 2))
    with pytest.raises(RuntimeError, match="out of bounds"):
        torch.func.vmap(lambda z, y: likelihood.nll(z.unsqueeze(0), (None, y.unsqueeze(0)))[0])(
            torch.randn(2, 5), torch.tensor([0, label])
        )


def test_narrow_outputs_and_targets_are_widened():
    logits, targets = torch.randn(3, 4), torch.tensor([0, 3, 1], dtype=torch.uint8)
    losses = Categorical().nll(logits.bfloat16(), (None, targets))
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, F.cross_entropy(logits.bfloat16().float(), targets.long(), reduction="none"))


@pytest.mark.parametrize(
    ("likelihood", "shape", "targets", "message"),
    [
        (
            Categorical(),
            [2, 3],
            torch.rand(2),
            "found targets of torch.float32, expected integer class numbers. For other",
        ),
        (Categorical(), [2, 3], torch.tensor([True, False]), "found targets of torch.bool, expected integer"),
        (
            Categorical(),
            [2, 3],
            torch.tensor([3, -1]),
            "found class -1, 3 among the targets, expected classes in 0..2, or",
        ),
        (
            Categorical((0, 2)),
            [2, 3],
            torch.tensor([1, 2]),
            "found class 1 among the targets, expected classes in (0, 2)",
        ),
        (Categorical((0, 3)), [2, 3], torch.tensor([0, 0]), "classes=(0, 3), but the outputs have 3 columns."),
        (
            Categorical(),
            [2, 3],
            torch.zeros(3, dtype=torch.int64),
            "found outputs of shape [2, 3] with targets of shape [3]",
        ),
        (Categorical(), [2], torch.zeros(2, dtype=torch.int64), "found outputs of shape [2] with targets of shape [2]"),
        (
            Categorical(class_axis=1),
            [2, 4, 3],
            torch.zeros(2, 4, dtype=torch.int64),
            "(class_axis=1), expected [B, C] with",
        ),
        (
            Categorical(causal=True),
            [2, 3],
            torch.tensor([0, 0]),
            "causal=True with targets of shape [2], expected [B, T].",
        ),
    ],
)
def test_what_does_not_fit_is_named(likelihood, shape, targets, message):
    for method in (likelihood.nll, likelihood.exact_scores):
        with pytest.raises(BatchError) as caught:
            method(torch.randn(shape), (None, targets))
        assert str(caught.value).startswith("categorical loss: ")
        assert message in str(caught.value)


def test_an_ambiguous_class_axis_is_asked_for():
    logits, targets = torch.randn(2, 3, 3), torch.randint(0, 3, (2, 3))
    with pytest.raises(BatchError) as caught:
        Categorical().nll(logits, (None, targets))
    assert str(caught.value) == (
        "categorical loss: outputs of shape [2, 3, 3] may have their classes on axis 1 or on the last. "
        "Pass loss=Categorical(class_axis=1) or loss=Categorical(class_axis=-1)."
    )
    first = F.cross_entropy(logits, targets, reduction="none").sum(1)
    last = F.cross_entropy(logits.mT, targets, reduction="none").sum(1)
    torch.testing.assert_close(Categorical(class_axis=1).nll(logits, (None, targets)), first)
    torch.testing.assert_close(Categorical(class_axis=-1).nll(logits, (None, targets)), last)


@pytest.mark.parametrize("classes", [(), (1, 1), (-1, 0)])
def test_classes_are_distinct_columns(classes):
    with pytest.raises(OptionError) as caught:
        Categorical(classes=classes)
    assert str(caught.value) == f"Categorical: classes={classes}, expected one or more distinct columns >= 0."


def test_the_class_axis_is_first_or_last():
    with pytest.raises(OptionError, match="Categorical: class_axis=2, expected 1, -1 or None."):
        Categorical(class_axis=2)  # pyright: ignore[reportArgumentType]


def test_likelihoods_compare_by_value():
    assert Categorical(classes=[1, 0]) == Categorical(classes=(1, 0))
    assert hash(Categorical(classes=[1, 0])) == hash(Categorical(classes=(1, 0)))
    assert Categorical().name == "categorical"
