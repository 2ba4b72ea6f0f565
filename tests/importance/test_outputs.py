"""What models return beside their predictions, such as a mean loss, counts for nothing."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.moments.zoo import Apply
from torch import Tensor, nn

import holdfast as hf
from holdfast.likelihoods.outputs import logits_of

Output = namedtuple("Output", "loss logits")

FORMS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tuple": lambda loss, logits: (loss, logits),
    "list": lambda loss, logits: [loss, None, logits],
    "loss last": lambda loss, logits: (logits, loss),
    "named tuple": Output,
    "without a loss": lambda loss, logits: Output(None, logits),
    "mapping": lambda loss, logits: {"loss": loss, "logits": logits},
    "namespace": lambda loss, logits: SimpleNamespace(loss=loss, logits=logits),
}


def model_of(form: str) -> nn.Module:
    def forward(self: nn.Module, x: Tensor) -> Any:
        logits = self.head(self.body(x).tanh())
        return FORMS[form](F.cross_entropy(logits, torch.zeros(len(x), dtype=torch.long)), logits)

    torch.manual_seed(3)
    return Apply(forward, body=nn.Linear(4, 5), head=nn.Linear(5, 3))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "measure",
    [
        hf.mas,
        hf.taylor,
        hf.signal,
        hf.fisher,
        lambda model, data: hf.fisher(model, data, kind="sampled"),
        lambda model, data: hf.fisher(model, data, kind="batched"),
        lambda model, data: hf.mas(model, data, batched=True),
        lambda model, data: hf.mas(model, data, local=True),
    ],
)
def test_a_loss_beside_the_logits_counts_for_nothing(measure: Any, form: str):
    torch.manual_seed(0)
    data = [(torch.randn(3, 4), torch.randint(3, (3,))) for _ in range(3)]
    plain = model_of(form)
    logits_alone = Apply(lambda self, x: self.head(self.body(x).tanh()), body=plain.body, head=plain.head)
    found, expected = measure(plain, data), measure(logits_alone, data)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_factors_of_a_model_that_returns_its_loss():
    torch.manual_seed(0)
    data = [(torch.randn(3, 4), torch.randint(3, (3,))) for _ in range(3)]
    model = model_of("tuple")
    logits_alone = Apply(lambda self, x: self.head(self.body(x).tanh()), body=model.body, head=model.head)
    found, expected = hf.kfac(model, data), hf.kfac(logits_alone, data)
    for name, factors in expected.items():
        torch.testing.assert_close(found[name].outputs, factors.outputs)


def test_a_scalar_is_no_prediction():
    with pytest.raises(hf.errors.BatchError, match="found a tuple without logits"):
        logits_of((torch.tensor(1.0), None))
