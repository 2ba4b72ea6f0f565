"""What the pages written by hand say in numbers, recomputed from the committed results.

A claim is a page and a text that stands in it, with every number in it from a file below docs/results. Texts wrap as
they like.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.claims import derivations, hand_written, readme
from tests.claims.numbers import Claim


def claims() -> Iterator[Claim]:
    for module in (readme, derivations, hand_written):
        for page, writers in module.SAID.items():
            yield from ((page, text) for write in writers for text in write())
