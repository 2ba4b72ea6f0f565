from __future__ import annotations

import re

import pytest
import torch
from tests.retention.loops import network

from holdfast import EWC, WVA, fisher, kfac, mas, signal, taylor


class TestAStrengthMeantForNats:
    """1.0 is the Laplace value of an importance in nats, and says nothing over another."""

    @staticmethod
    def data() -> list:
        return [(torch.randn(16, 3), torch.randint(2, (16,)))]

    @pytest.mark.parametrize(
        "measure", [mas, signal, taylor, lambda model, data: fisher(model, data, kind="batched")], ids=range(4)
    )
    @pytest.mark.parametrize("options", [{"strength": 1.0}, {"pull": "penalty"}], ids=["given", "by default"])
    def test_it_is_said_once(self, measure, options):
        model, data = network(), self.data()
        importance = measure(model, data)
        keeper = EWC(model, **options)
        kind, unit = importance.info.kind, re.escape(importance.info.unit)
        told = rf"EWC.retain: a strength of 1.0 .* {kind!r} importance is {unit}: "
        with pytest.warns(UserWarning, match=told + r"it may freeze .* hf.calibrated\(model, importance, data\)"):
            keeper.retain(importance)
        keeper.retain(importance)  # a second warning would be an error

    def test_what_is_in_nats_or_of_the_users_own_is_left_alone(self):
        model, data = network(), self.data()
        found = fisher(model, data)
        own = mas(model, data).with_info(unit="1", nats_per_unit=1.0)
        for importance in (found, found * 3, kfac(model, data), dict(found), own, own * 2):
            EWC(model, strength=1.0).retain(importance)
        EWC(model, strength=0.01).retain(mas(model, data))
        WVA(model, strength=1.0).retain(mas(model, data))

    def test_the_remedy_is_the_same_hold_in_another_unit(self):
        model, data = network(), self.data()
        found = mas(model, data).with_info(nats_per_unit=0.02)
        with pytest.warns(UserWarning, match=r"strength=0.02 is the same in its unit"):
            EWC(model, strength=1.0).retain(found)
        nats, unit = EWC(model, strength=1.0), EWC(model, strength=0.02).retain(found)
        nats.retain(found * 0.02)  # in nats: no warning
        with torch.no_grad():
            next(model.parameters()).add_(0.1)
        assert nats.predicted_rise() == pytest.approx(unit.predicted_rise(), rel=1e-5)
        assert unit.held.nats_per_unit == pytest.approx(0.02)
        for name, value in nats.held.importance.items():
            torch.testing.assert_close(value, 0.02 * unit.held.importance[name])
