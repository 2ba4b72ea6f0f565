"""Which numbers of a page read like measurements, and whether something bears them out.

A number that nothing committed bears out is listed in `EXEMPT`, under the reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

README, STRENGTH, REPLAY, STATISTICS = "README.md", "docs/strength.md", "docs/replay.md", "docs/statistics.md"
INTEGRATIONS, CLASSES = "docs/integrations.md", "docs/classes.md"
KFAC, GENERATION = "docs/results/kfac/README.md", "docs/results/generation/README.md"
PAGES = (
    README,
    STRENGTH,
    REPLAY,
    STATISTICS,
    "docs/own.md",
    INTEGRATIONS,
    CLASSES,
    "docs/results/README.md",
    KFAC,
    GENERATION,
)
"""The pages that are held against the results; docs/elephants.md is not yet among them."""


Claim = tuple[str, str]
_N = r"\d[\d,]*(?:\.\d+)?"
_UNIT = r"(?: ?%| points?\b| seconds?\b| ms\b| s\b| minutes?\b| hours?\b| budgets?\b| times\b)"
MEASURED = re.compile(
    rf"[-+]?{_N} ± {_N}"
    rf"|(?<![\w.]){_N}(?:(?: to | and | or |, |/){_N})*{_UNIT}"
    rf"|(?<=\| )[-+]?{_N}(?: ?%|(?: ± | to | / ){_N})*(?= \|)"
)
"""What reads like a measurement: a number with an interval or a unit, or alone in a cell of a table."""


def paragraphs(text: str) -> str:
    """A page without code, a paragraph or table a line."""
    prose = re.sub(r"^```.*?^```$|^    [^\n]*$", "", text, flags=re.MULTILINE | re.DOTALL)
    return "\n".join(" ".join(block.split()) for block in re.split(r"\n\s*\n", prose))


def unclaimed(text: str, borne_out: Iterable[str]) -> list[str]:
    """The measurements of `paragraphs` outside of these texts, each with what stands around it.

    A text that begins a table's heading stands for the whole table.
    """
    claimed = bytearray(len(text))
    for said in borne_out:
        for match in re.finditer(re.escape(said), text):
            end = match.end()
            if said.startswith("| ") and text[match.start() - 1 : match.start()] in ("", "\n"):
                end = text.find("\n", end) if "\n" in text[end:] else len(text)
            claimed[match.start() : end] = b"\1" * (end - match.start())
    found = MEASURED.finditer(text)
    return [text[max(0, m.start() - 50) : m.end() + 30] for m in found if not all(claimed[m.start() : m.end()])]


EXEMPT: Mapping[str, Sequence[Claim]] = {
    "what an interval is": [(page, "95% interval") for page in (README, GENERATION)] + [(KFAC, "95%, three seeds")],
    "a table of what code does: sizes and errors that the tests of the codes check": [
        (README, "| form | bytes a weight |")
    ],
    "a table of settings": [(REPLAY, "| method | x in the critic's batch | lambda_RA | old data |")],
    "tests/test_docs.py runs the page and checks them": [
        ("docs/own.md", "the network knew 94 % of the old digits"),
        ("docs/own.md", "| | old digits | new digits |"),
    ],
    "in print, from docs/results/generation/README.md's source": [
        (GENERATION, "| in print, with the full protocol: joint retraining | | 97.93 | 97.00 | | |"),
        (GENERATION, "| replay alignment | | 98.19 | 97.01 | | |"),
        (GENERATION, "| plain fine-tuning | | 19.87 | 10.06 | | |"),
    ],
    "a share of the formula beside it": [
        (STRENGTH, "the real rise is at most 1.5 budgets"),
        (STRENGTH, "How many steps it takes to within 1%"),
        (STRENGTH, "for 1.4 times the cost"),
    ],
    "printed by python -m benchmarks.factors, held or kfac_memory, which keep no file": [
        (STRENGTH, "| network | trace: expand |"),
        (STRENGTH, "| network | whole | blocks of 32 |"),
        (STRENGTH, "| held in | a basis a layer |"),
        (STRENGTH, "a diagonal 19% off"),
        (STRENGTH, "0.7 to 1.2 times that of expand with sampled labels, and 1.5 to 1.7 times with exact ones"),
        (STRENGTH, "1.3 to 1.5 times off"),
        (STRENGTH, "orthogonal to about 0.3%"),
        (STRENGTH, "0.9 to 1.8 times what a training pass"),
    ],
    "trials of which no file was kept, and which the page calls so or says what they were": [
        (STRENGTH, "the new task fell from 92% to 5% correct"),
        (STRENGTH, "10 to 1,500 times the one foreseen"),
        (STRENGTH, "70 to 150 times"),
        (STRENGTH, "0.5 to 0.7 times"),
        (STRENGTH, "3 and 1,400 times too far"),
        (STRENGTH, "96.6% on average against 96.7"),
        ("docs/integrations.md", "takes 27 ms where"),
        ("docs/own.md", "about 10 ms for these 330 parameters"),
        ("docs/integrations.md", "12 ms at r = 8, 19 ms at r = 16 and 280 ms at r = 64"),
        ("docs/integrations.md", "tokens takes 12 ms"),
    ],
    "the parts of a run whose sum alone is in the file": [
        (GENERATION, "222, 244, 257, 245, 251, 256, 251, 254, 245 and 256 seconds")
    ],
}
"""Reason -> what no committed file bears out."""
