from dataclasses import fields

import pytest

from holdfast.errors import OptionError, UnknownNameError
from holdfast.lab.methods import METHODS, method_named
from holdfast.lab.options import NoOptions


def test_every_method_that_was_promised_has_its_name():
    importances = ("fisher", "mas", "si", "signal", "taylor")
    held = {f"{mechanism}-{importance}" for mechanism in ("ewc", "wva") for importance in importances}
    others = {
        "joint",
        "cumulative",
        "dgr",
        "dgr-distilled",
        "er",
        "der",
        "agem",
        "lwf",
        "ewc-kfac",
        "imm",
        "sfa",
        "hat",
        "progressive",
        "packnet",
        "pathnet",
        "lfl",
        "class-means",
        "slda",
        "ranpac",
        "l2",
        "frozen",
        "none",
    }
    assert set(METHODS) >= others | held
    assert all(method_named(name).name == name for name in METHODS)


def test_labels_and_summaries():
    labels = {name: method.label for name, method in METHODS.items()}
    assert len(set(labels.values())) == len(labels)
    assert (labels["none"], labels["ewc-fisher"], labels["wva-si"], labels["l2"]) == (
        "plain",
        "EWC Fisher",
        "WVA SI",
        "L2",
    )
    assert labels["ewc-kfac"] == "EWC K-FAC"
    assert all(method.summary for method in METHODS.values())


def test_what_a_name_is_made_of():
    assert (METHODS["wva-taylor"].mechanism, METHODS["wva-taylor"].importance) == ("wva", "taylor")
    assert (METHODS["l2"].mechanism, METHODS["l2"].importance) == ("ewc", "uniform")
    assert (METHODS["joint"].mechanism, METHODS["joint"].importance) == ("", "")


def test_what_a_method_leaves_open_is_its_own():
    assert {own.name for own in fields(METHODS["wva-signal"].options)} == {
        "strength",
        "attenuation",
        "attenuate",
        "accumulate",
        "weighting",
        "signal_bias",
    }
    assert [own.name for own in fields(METHODS["lwf"].options)] == ["temperature"]
    assert [own.name for own in fields(METHODS["ranpac"].options)] == ["adapt", "projection", "ridge"]
    assert METHODS["none"].options is NoOptions


def test_kronecker_factors_are_of_whole_layers_which_wva_cannot_slow():
    assert "wva-kfac" not in METHODS


def test_from_the_ceiling_to_the_floor():
    names = list(METHODS)
    assert names[:2] == ["joint", "cumulative"]
    assert names[-3:] == ["l2", "frozen", "none"]


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(
        UnknownNameError,
        match=r"unknown method 'ewc-fischer'. Did you mean 'ewc-fisher'\? Known: agem, class-means, cumulative, der, ",
    ):
        method_named("ewc-fischer")
    assert issubclass(UnknownNameError, OptionError)
