from __future__ import annotations

import pytest

from holdfast.errors import UnknownNameError, nearest

STREAMS = ["permuted-digits", "permuted-mnist", "rotated-digits", "split-digits", "split-mnist"]
METHODS = ["agem", "der", "er", "ewc-fisher", "ewc-mas", "joint", "lwf", "none", "wva-fisher"]


@pytest.mark.parametrize(
    ("name", "known", "near"),
    [
        ("permuted-digit", STREAMS, "permuted-digits"),
        ("permtued-mnist", STREAMS, "permuted-mnist"),
        ("split-m", STREAMS, "split-mnist"),
        ("ewc-fischer", METHODS, "ewc-fisher"),
        ("lfw", METHODS, "lwf"),
        ("ewx", ["ewc", "wva"], "ewc"),
        ("lr", ["lrs", "seeds"], "lrs"),
        ("permuted-cifar", STREAMS, None),
        ("rotated-cifar", STREAMS, None),
        ("robots", STREAMS, None),
        ("packnet", METHODS, None),
        ("mode", ["method"], None),
        ("x", ["y"], None),
        ("", METHODS, None),
        ("anything", [], None),
    ],
)
def test_only_what_is_near_is_offered(name: str, known: list[str], near: str | None):
    assert nearest(name, known) == near
    assert ("Did you mean" in str(UnknownNameError("name", name, known))) == (near is not None)
