from types import SimpleNamespace

import pytest
import torch

from holdfast.errors import BatchError, LossShapeError
from holdfast.likelihoods.outputs import check_per_example, logits_of, seen_any, widened

Z = torch.randn(4, 3)


class ModelOutput(dict):
    """As of Hugging Face: a mapping whose first entry, with labels given, is the loss."""

    @property
    def logits(self):
        return self["logits"]


@pytest.mark.parametrize(
    "outputs",
    [
        Z,
        SimpleNamespace(logits=Z),
        {"loss": torch.tensor(1.0), "logits": Z},
        ModelOutput(loss=torch.tensor(1.0), logits=Z),
        (Z, torch.zeros(1)),
        [None, Z],
    ],
)
def test_logits_of_every_form(outputs):
    assert logits_of(outputs) is Z


@pytest.mark.parametrize(
    ("outputs", "found"), [({"prediction": Z}, "dict"), (("a", "b"), "tuple"), (SimpleNamespace(), "SimpleNamespace")]
)
def test_logits_of_says_what_it_found(outputs, found):
    with pytest.raises(BatchError, match=f"outputs: found a {found} without logits. Return a tensor"):
        logits_of(outputs)


def test_one_loss_per_example_passes():
    losses = torch.rand(4)
    assert check_per_example(losses, 4, "fisher") is losses


@pytest.mark.parametrize(
    ("losses", "found"),
    [
        (torch.tensor(0.5), "shape [] (a mean or sum over the batch)"),
        (torch.rand(4, 3), "shape [4, 3]"),
        (torch.rand(1), "shape [1]"),
        (0.5, "float"),
    ],
)
def test_any_other_loss_is_an_error(losses, found):
    with pytest.raises(LossShapeError) as caught:
        check_per_example(losses, 4, "fisher")
    assert str(caught.value) == (
        f"fisher: the loss returned {found}, expected one value per example, shape [4]. "
        "Pass reduction='none' to torch's losses, and sum over every axis but the first."
    )


def test_widened_to_float32_at_least():
    assert widened(Z.bfloat16()).dtype == torch.float32
    assert widened(Z) is Z
    assert widened(Z.double()).dtype == torch.float64


def test_flags_are_seen_outside_vmap_only():
    assert seen_any(torch.tensor([False, True]))
    assert not seen_any(torch.tensor([False]))
    seen = []
    torch.func.vmap(lambda flag: seen.append(seen_any(flag)) or flag)(torch.tensor([True]))
    assert seen == [False]


def test_other_errors_are_not_swallowed():
    with pytest.raises(RuntimeError, match="meta"):
        seen_any(torch.ones(1, device="meta"))
