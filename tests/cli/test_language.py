"""`holdfast importance`, `finetune` and `evaluate`, one after the other, and what they say to bad input."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.experiments.language import tiny

from holdfast import Importance
from holdfast.cli import main


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    tiny.encoder(folder / "encoder")
    tiny.pairs(folder / "pairs.csv", count=150)
    tiny.intents(folder / "intents.jsonl")
    return folder


def test_an_importance_is_measured_kept_and_used(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model, keep = str(place / "encoder"), str(tmp_path / "keep")
    assert (
        main(
            [
                "importance",
                model,
                str(place / "pairs.csv"),
                "-o",
                keep,
                "--kind",
                "exact",
                "--examples",
                "130",
                "--rehearse",
                "--rehearse-budget",
                "0.02",
            ]
        )
        == 0
    )
    said = capsys.readouterr().out
    assert "rehearsal: rise predicted" in said
    assert "128 examples: relative error about" in said
    assert f"written to {keep}" in said
    assert Importance.load(keep).info.num_examples == 130
    assert [path.name for path in tmp_path.iterdir()] == ["keep"]

    assert main(["evaluate", model, str(place / "pairs.csv")]) == 0
    assert "Spearman" in capsys.readouterr().out

    asked = ["finetune", model, str(place / "intents.jsonl"), "--keep", keep, "--budget", "0.01", "--steps", "20"]
    asked += ["--lr", "1e-3", "--old-data", str(place / "pairs.csv"), "--compare", "-o", str(tmp_path / "out")]
    assert main(asked) == 0
    said = capsys.readouterr().out
    assert "kept and learned" in said
    assert "old skill: Spearman" in said
    assert "new skill: accuracy" in said
    assert "EWC: 1 task held, 20 steps" in said
    assert re.search(r"the old loss (rose|fell) by [\d.]+ nats an example \(standard error .*foreseen was a rise", said)
    assert "held: step 20/20, loss" in said
    assert "predicted rise" in said

    assert main(["evaluate", str(tmp_path / "out"), str(place / "intents.jsonl")]) == 0
    assert "accuracy" in capsys.readouterr().out
    assert main(["evaluate", str(tmp_path / "out"), str(place / "pairs.csv")]) == 0
    assert "Spearman" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("importance", "{model}", "{pairs}"), "importance: where to? Give -o DIR."),
        (("importance", "{model}", "{pairs}", "-o", "{pairs}"), "is a file; a folder is to be written there"),
        (("importance", "{model}", "{pairs}", "-o", "{out}", "--kind", "sampeld"), "Did you mean 'sampled'?"),
        (("importance", "{model}", "{pairs}", "-o", "{out}", "--dtype", "half"), "unknown dtype 'half'"),
        (("importance", "{model}", "nothing.csv", "-o", "{out}"), "no such file or folder"),
        (("importance", "{pairs}", "{pairs}", "-o", "{out}"), "no config.json in it"),
        (("importance", "{model}", "{pairs}", "-o", "{out}", "--label", "mark"), "no column 'mark'"),
        (
            ("importance", "{model}", "{pairs}", "-o", "{out}", "--rehearse", "--rehearse-budget", "0"),
            "--rehearse-budget is 0.0; expected nats above 0",
        ),
        (("finetune", "{model}", "{intents}"), "finetune: what is to be kept? Give --keep DIR"),
        (("finetune", "{model}", "{intents}", "--keep", "{out}"), "needs --budget, such as 0.05 nats, or --strength"),
        (("finetune", "{model}", "{intents}", "--keep", "{out}", "--budget", "1"), "out: no such folder"),
        (
            ("finetune", "{model}", "{intents}", "--method", "ewx", "--keep", "x", "--budget", "1"),
            "unknown method 'ewx'",
        ),
        (("evaluate", "{model}", "{pairs}", "--task", "clasification"), "Did you mean 'classification'?"),
    ],
)
def test_bad_input_is_one_clear_line(
    place: Path, tmp_path: Path, arguments: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
):
    named = {
        "model": place / "encoder",
        "pairs": place / "pairs.csv",
        "intents": place / "intents.jsonl",
        "out": tmp_path / "out",
    }
    assert main([argument.format(**named) for argument in arguments]) == 2
    said = capsys.readouterr().err
    assert told in said
    assert said.startswith("holdfast: ")
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
