from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import holdfast as hf
from holdfast.errors import BatchError, OptionError, StateError


class Net(nn.Module):
    """A backbone with batch norm and dropout, a head with a name, and something without parameters after it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU())
        self.head = nn.Linear(8, 3)
        self.after = nn.Softmax(1)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.after(self.head(self.body(inputs)))


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def data() -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    return [(torch.randn(n, 5), torch.randint(3, (n,))) for n in (7, 2)]


def test_features_are_what_the_head_is_given_in_evaluation_mode():
    model = net()
    found = list(hf.features_of(model, data()))
    model.eval()
    for (features, labels), (inputs, targets) in zip(found, data(), strict=True):
        assert torch.equal(features, model.body(inputs))
        assert torch.equal(labels, targets)
        assert not features.requires_grad
        assert features.dtype == torch.float32


def test_the_model_is_left_as_it_was_after_each_batch():
    model = net().train()
    model.body[0].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batches, state = data(), torch.random.get_rng_state()
    for _ in hf.features_of(model, batches):
        assert model.training
        assert not model.body[0].training
        assert not model.head._forward_pre_hooks
        assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_also_after_an_error():
    model = net().train()
    with pytest.raises(RuntimeError):
        list(hf.features_of(model, [(torch.ones(2, 9), torch.zeros(2))]))
    assert model.training
    assert not model.head._forward_pre_hooks


def test_a_layer_by_its_name():
    model = net().eval()
    ((features, _), _) = hf.features_of(model, data(), layer="body.1")
    assert torch.equal(features, model.body[0](data()[0][0]))


def test_of_wrapped_and_wider_models():
    model = net().double()
    wrapped = nn.DataParallel(model)
    batches = [(inputs.double(), targets) for inputs, targets in data()]
    for (one, _), (other, _) in zip(hf.features_of(wrapped, batches, layer="head"), hf.features_of(model, batches)):
        assert torch.equal(one, other)
        assert one.dtype == torch.float64
    half = list(hf.features_of(net().bfloat16(), [(inputs.bfloat16(), targets) for inputs, targets in data()]))
    assert half[0][0].dtype == torch.float32


def test_mappings_as_language_models_take_them():
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.classifier = nn.Embedding(9, 4), nn.Linear(4, 2)

        def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor:
            return self.classifier(input=self.table(input_ids).mean(1))

    model, ids = Words(), torch.randint(9, (3, 6))
    ((features, labels),) = hf.features_of(model, [{"input_ids": ids, "labels": torch.tensor([0, 1, 1])}])
    assert torch.equal(features, model.table(ids).mean(1))
    assert labels.tolist() == [0, 1, 1]


def test_three_lines_learn_classes_one_after_the_other():
    model, head = net(), hf.AnalyticHead("slda")
    inputs = torch.randn(300, 5)
    labels = (inputs @ torch.randn(5, 4)).argmax(1)
    for c in range(4):
        for features, own in hf.features_of(model, [(inputs[labels == c], labels[labels == c])]):
            head.fit(features, own)
    ((features, _),) = hf.features_of(model, [(inputs, labels)])
    assert (head.predict(features) == labels).float().mean() > 0.5  # of an untrained net of 8 units


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unused, self.head = nn.Linear(5, 5), nn.Linear(5, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.head(inputs))


@pytest.mark.parametrize(
    ("model", "layer", "error", "message"),
    [
        (net(), "heed", OptionError, "features: Net has no layer 'heed'; its last ones are body, .*, head, after."),
        (nn.ReLU(), None, OptionError, "ReLU has no layer with parameters. Use its outputs as they are."),
        (Twice(), None, StateError, "the layer Linear is called 2 times in a forward pass; expected once"),
        (Twice(), "unused", StateError, "the layer Linear is called 0 times"),
        (nn.Sequential(nn.Unflatten(1, (1, 5)), nn.Linear(5, 2)), None, BatchError,
         r"the layer Linear is given \[7, 1, 5\]; expected \[B, d\], a row an example. Name a layer after the pooling"),
    ],
)  # fmt: skip
def test_what_it_refuses(model, layer, error, message):
    with pytest.raises(error, match=message):
        list(hf.features_of(model, data(), layer=layer))


def test_a_batch_without_labels():
    with pytest.raises(BatchError, match="expected|found"):
        list(hf.features_of(net(), [torch.ones(2, 5)]))
