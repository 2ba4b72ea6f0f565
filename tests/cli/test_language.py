"""`holdfast importance`, `finetune` and `evaluate`, one after the other, and what they say to bad input."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tests.language import tiny

from holdfast import Importance
from holdfast.cli import main
from holdfast.curvature.factored import load_importance
from holdfast.language import Dreams
from holdfast.language.models import load_model


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
                "--calibrate",
                "--calibrate-budget",
                "0.02",
            ]
        )
        == 0
    )
    said = capsys.readouterr().out
    assert "calibration: rise predicted" in said
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
    assert re.search(r"the old loss (rose|fell) by [\d.]+ nats a target \(standard error .*a rise of .* was fore", said)
    assert "held: step 20/20, loss" in said
    assert "predicted rise" in said

    assert main(["evaluate", str(tmp_path / "out"), str(place / "intents.jsonl")]) == 0
    assert "accuracy" in capsys.readouterr().out
    assert main(["evaluate", str(tmp_path / "out"), str(place / "pairs.csv")]) == 0
    assert "Spearman" in capsys.readouterr().out


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_a_model_dreams(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model = tiny.causal(tmp_path / "causal")
    dreams = tmp_path / "dreams"
    asked = ("dream", model, "-o", dreams, "--count", 20, "--length", 16, "--temperatures", 1.0, 1.5)
    assert run(*asked) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "20 texts of 32 written: 0 duplicates and" in said
    assert f"written to {dreams}" in said
    found = Dreams.load(dreams)
    assert sorted(file.name for file in dreams.iterdir() if file.name.startswith(".")) == []
    assert (len(found), found.info.temperatures) == (20, (1.0, 1.5))
    assert run(*asked) == 0  # again, in its place
    assert run("dream", tiny.encoder(tmp_path / "encoder"), "-o", tmp_path / "other") == 2
    assert run("dream", model, "-o", tmp_path / "other", "--length", 16, "--chat", "yes") == 2
    assert "no chat template" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("kind", ["sampled", "kfac", "mas"])
def test_a_model_is_measured_on_what_it_writes_itself(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    model, keep = tiny.causal(tmp_path / "causal"), tmp_path / "keep"
    asked = ("importance", model, "--self", 64, "-o", keep, "--kind", kind, "--length", 16)
    asked += ("--calibrate", "--calibrate-budget", 0.002)
    with monkeypatch.context() as patched:
        patched.setattr("holdfast.cli.importance.measure_importance", lambda *_, **__: 1 / 0)
        assert run(*asked) == 1
    assert [file.name for file in keep.iterdir()] == [".holdfast-dreams.safetensors"]
    capsys.readouterr()
    assert run(*asked) == 0
    said = capsys.readouterr().out
    assert f"goes on from {keep / '.holdfast-dreams.safetensors'}" in " ".join(said.split())
    assert "data: 64 texts that it wrote itself, of which 16 are not measured on" in said
    assert "calibration: rise predicted" in said
    assert sorted(file.name for file in keep.iterdir() if file.name.startswith(".")) == []
    found, dreams = load_importance(keep), Dreams.load(keep / "dreams")
    assert (found.info.num_examples, len(dreams), dreams.info.length) == (48, 64, 16)
    assert (found.info.calibration, found.info.calibrated_at) == ("made-up lessons", 0.002)
    assert bool(found.layers) == (kind == "kfac")
    assert run(*asked) == 0  # again, in its place


def test_a_causal_model_stays_one_whatever_columns_the_data_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model, data = tiny.causal(tmp_path / "causal"), tiny.intents(tmp_path / "intents.jsonl")
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    data.write_text("".join(json.dumps({"text": row["text"], "category": row["label"]}) + "\n" for row in rows))
    assert run("importance", model, data, "-o", tmp_path / "keep", "--length", 16, "--examples", 20) == 0
    said = capsys.readouterr().out
    assert f"task: causal-lm ({model} was made for it)" in said
    assert "label 'category'; the labels are not read (--task classification makes a classifier)" in said
    assert "examples: 20 at most, drawn in random order from all of the data under seed 0" in said
    assert "sample: '" in said
    given = ["--keep", tmp_path / "keep", "--strength", 1, "--steps", 4, "--length", 16]
    assert run("finetune", model, data, *given, "-o", tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "task: causal-lm" in said
    assert re.search(r"examples: \d+ blocks of tokens, of which every tenth measures the new skill", said)
    assert re.search(
        r"The old skill was not measured; a rise of \S+ was foreseen by the quadratic model. Give --old-data", said
    )
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == ["GPT2LMHeadModel"]
    assert run("evaluate", tmp_path / "out", data, "--length", 16) == 0
    said = capsys.readouterr().out
    assert "task: causal-lm" in said
    assert "perplexity" in said
    asked = [*given, "--task", "classification", "-o", tmp_path / "classifier"]
    assert run("finetune", model, data, *asked) == 0
    said = capsys.readouterr().out
    assert "task: classification (as --task says)" in said
    assert "head: 'intents', new, 3 classes ('card', 'dog', 'money')" in said
    assert load_model(str(tmp_path / "classifier")).labels == ("card", "dog", "money")


def test_a_classifier_learns_other_labels_and_both_heads_can_be_had(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model = tiny.classifier(tmp_path / "classifier", kind="distilbert")
    old, new = tiny.intents(tmp_path / "old.jsonl", names=("card", "money")), tiny.intents(tmp_path / "new.jsonl")
    renamed = old.read_text().replace('"text"', '"said"').replace('"label"', '"kind"')
    old.write_text(renamed)
    columns = ["--text", "said", "--label", "kind"]
    assert run("importance", model, old, *columns, "-o", tmp_path / "keep") == 0
    assert "head: 'original', as it is, 2 classes ('card', 'money')" in capsys.readouterr().out
    asked = ["finetune", model, new, "--keep", tmp_path / "keep", "--strength", 1, "--steps", 4, "--old-data", old]
    asked += ["--old-text", "said", "--old-label", "kind", "--compare", "-o", tmp_path / "out"]
    assert run(*asked) == 0
    said = capsys.readouterr().out
    assert "head: 'new', new, 3 classes" in said
    assert "old skill: classification, head 'original', on 60 examples" in said
    assert "old skill: accuracy, head 'original'" in said
    assert "new skill: accuracy, head 'new'" in said
    assert "with the head 'new' in use, and 'original' kept: --head NAME takes one of these" in said
    assert f"plain fine-tuning, to compare with, written to {tmp_path / 'out' / 'plain'}" in said
    for folder in ("out", "out/plain"):
        assert run("evaluate", tmp_path / folder, new) == 0
        assert run("evaluate", tmp_path / folder, old, *columns, "--head", "original") == 0
        said = capsys.readouterr().out
        assert "head: 'new', as it is, 3 classes" in said
        assert "head: 'original', as it is, 2 classes ('card', 'money'); kept beside it: 'new'" in said


def test_what_is_rehearsed_is_chosen_told_and_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model, old = tiny.causal(tmp_path / "causal"), tiny.prose(tmp_path / "old.txt")
    dreams, out = tmp_path / "dreams", tmp_path / "out"
    assert run("dream", model, "-o", dreams, "--count", 48, "--length", 16) == 0
    given = ["finetune", model, old, "--steps", 20, "--length", 16, "-o", out]
    capsys.readouterr()
    assert run(*given, "--rehearse", dreams, "--share", 0.25) == 0
    said = capsys.readouterr().out
    assert f"rehearsal: 48 dreams of {model}; one step of 4 learns a batch of them again" in said
    assert "of the past" in said
    assert f"rehearsed 48 dreams of {model}, a share of 0.25 of the batches" in said
    assert "The old skill was not measured; rehearsal foresees nothing." in said
    assert run(*given, "--rehearse", dreams, "--method", "auto") == 0
    said = capsys.readouterr().out
    assert "auto: one step of 10 rehearses (share 0.1)" in said
    assert "auto: EWC on an importance of what is rehearsed, by hf.measure: none was given" in said
    assert "auto: a budget of 0.02 nats a target, the default; measured on a part of the past that is set apart" in said
    assert "EWC: 1 task held, 20 steps" in said
    assert len(json.loads((out / "kept_and_learned.json").read_text())["choices"]) == 3


def test_a_budget_is_measured_on_the_dreams_that_an_importance_brings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    model, keep = tiny.causal(tmp_path / "causal"), tmp_path / "keep"
    assert run("importance", model, "--self", 64, "-o", keep, "--kind", "kfac", "--length", 16) == 0
    given = ["finetune", model, tiny.prose(tmp_path / "new.txt"), "--keep", keep, "--steps", 20, "--length", 16]
    capsys.readouterr()
    assert run(*given, "--budget", 0.01, "-o", tmp_path / "out") == 0
    assert re.search(r"skill 0 measured \S+ of 0.01 nats in this lesson", " ".join(capsys.readouterr().out.split()))
    assert run(*given, "--method", "auto", "-o", tmp_path / "out") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "auto: EWC on Kronecker factors of the importance that was given" in said
    assert "auto: a budget of 0.02 nats a target, the default; measured on the importance's probes" in said
    assert "rehears" not in said
    assert run(*given, "--strength", 1, "--task", "classification", "-o", tmp_path / "other") == 2
    assert "needs a label in each row" in capsys.readouterr().err


def test_old_data_are_rehearsed_by_their_own_columns(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model, old = tiny.classifier(tmp_path / "classifier"), tiny.intents(tmp_path / "old.jsonl", names=("card", "money"))
    old.write_text(old.read_text().replace('"text"', '"said"').replace('"label"', '"kind"'))
    given = ["finetune", model, place / "intents.jsonl", "--rehearse", old, "--share", 0.5, "--steps", 4]
    given += ["--old-text", "said", "--old-label", "kind", "-o", tmp_path / "out"]
    assert run(*given) == 0
    assert f"rehearsal: 32 examples of {old}, head 'original'; one step of 2" in capsys.readouterr().out


def test_a_forecast_that_did_not_hold_is_shouted(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A causal model that learns another language, held too weakly."""
    model, old = tiny.causal(tmp_path / "causal"), tiny.prose(tmp_path / "old.txt")
    new = tmp_path / "new.txt"
    new.write_text("dog dog dog dog cat cat cat red red\n" * 60)
    assert run("importance", model, old, "-o", tmp_path / "keep", "--length", 16) == 0
    capsys.readouterr()
    asked = ["finetune", model, new, "--keep", tmp_path / "keep", "--strength", 1, "--steps", 60, "--lr", 0.01]
    assert run(*asked, "--length", 16, "--old-data", old, "-o", tmp_path / "out") == 0
    assert "THE FORECAST DID NOT HOLD" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("importance", "{model}", "{pairs}"), "importance: where to? Give -o DIR."),
        (("importance", "{model}", "-o", "{out}"), "importance: measured on what? Give DATA, or --self N for texts"),
        (
            ("importance", "{model}", "{pairs}", "-o", "{out}", "--self", "64"),
            "importance: --self beside DATA: a causal model writes what it is measured on. Leave out the one or the",
        ),
        (
            ("importance", "{model}", "-o", "{out}", "--self", "64", "--text", "said", "--task", "similarity"),
            "importance: --self beside --text, --task similarity: a causal model writes",
        ),
        (
            ("importance", "{model}", "-o", "{out}", "--self", "64"),
            "--self is for a causal language model, which can write, and {model} was made for similarity. Give DATA",
        ),
        (
            ("importance", "{model}", "-o", "{out}", "--self", "31"),
            "--self is 31; expected a whole number from 32: a quarter of the texts is not measured on",
        ),
        (("importance", "{model}", "{pairs}", "-o", "{pairs}"), "is a file; a folder is to be written there"),
        (("importance", "{model}", "{pairs}", "-o", "{out}", "--kind", "sampeld"), "Did you mean 'sampled'?"),
        (("importance", "{model}", "{pairs}", "-o", "{out}", "--dtype", "half"), "unknown dtype 'half'"),
        (("importance", "{model}", "nothing.csv", "-o", "{out}"), "no such file or folder"),
        (("importance", "{pairs}", "{pairs}", "-o", "{out}"), "no config.json in it"),
        (("importance", "{model}", "{pairs}", "-o", "{out}", "--label", "mark"), "no column 'mark'"),
        (
            ("importance", "{model}", "{pairs}", "-o", "{out}", "--calibrate", "--calibrate-budget", "0"),
            "--calibrate-budget is 0.0; expected a number above 0",
        ),
        (("finetune", "{model}", "{intents}"), "finetune: what is to be kept? Give --keep DIR"),
        (
            ("finetune", "{model}", "{intents}", "--keep", "{out}"),
            "needs --budget, such as 0.05 nats a target, or --strength",
        ),
        (("finetune", "{model}", "{intents}", "--keep", "{out}", "--budget", "1"), "out: no such folder"),
        (
            ("finetune", "{model}", "{intents}", "--method", "ewx", "--keep", "x", "--budget", "1"),
            "unknown method 'ewx'",
        ),
        (
            ("finetune", "{model}", "{intents}", "--rehearse", "new", "--budget", "1"),
            "--budget beside --rehearse alone, and nothing to hold. Give --keep DIR, or --method auto",
        ),
        (
            ("finetune", "{model}", "{intents}", "--rehearse", "new", "--method", "wva"),
            "--method wva beside --rehearse alone",
        ),
        (
            ("finetune", "{model}", "{intents}", "--rehearse", "new", "--share", "0"),
            "--share is 0.0; expected a number",
        ),
        (("finetune", "{model}", "{intents}", "--method", "auto", "--share", "0.2"), "--share is of --rehearse, which"),
        (("finetune", "{model}", "{intents}", "--rehearse", "self"), "--rehearse self is for a causal language model"),
        (("finetune", "{model}", "{intents}", "--rehearse", "{out}"), "no such file or folder"),
        (("finetune", "{model}", "{intents}", "--rehearse", "{pairs}", "--old-text", "x"), "no column 'x'"),
        (("evaluate", "{model}", "{pairs}", "--task", "clasification"), "Did you mean 'classification'?"),
        (("evaluate", "{model}", "{intents}"), "for classes fine-tune it on labelled data first"),
        (("evaluate", "{model}", "{pairs}", "--head", "x"), "unknown head 'x'"),
        (("evaluate", "{model}", "{pairs}", "--task", "causal-lm"), "causal-lm needs one text in each row, and"),
        (
            ("evaluate", "{model}", "{intents}", "--task", "similarity"),
            "similarity needs two texts and a number in each",
        ),
        (
            ("finetune", "{model}", "{intents}", "--keep", "x", "--budget", "1", "--old-label", "kind"),
            "--old-text and --old-label are of --old-data, which is not given",
        ),
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
    assert told.format(**named) in said
    assert said.startswith("holdfast: ")
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "option", "value", "least"),
    [
        ("importance", "--batch-size", "0", "a whole number from 1"),
        ("importance", "--examples", "0", "a whole number from 1"),
        ("importance", "--tolerance", "-0.1", "a number above 0"),
        ("finetune", "--batch-size", "0", "a whole number from 1"),
        ("finetune", "--steps", "-3", "a whole number from 1"),
        ("finetune", "--accumulate", "0", "a whole number from 1"),
        ("finetune", "--save-every", "0", "a whole number from 1"),
        ("finetune", "--pull-every", "0", "a whole number from 1"),
        ("finetune", "--epochs", "nan", "a number above 0"),
        ("evaluate", "--batch-size", "-1", "a whole number from 1"),
        ("evaluate", "--length", "1", "a whole number from 2"),
    ],
)
def test_numbers_that_are_too_small_are_refused_before_any_work(
    command: str, option: str, value: str, least: str, capsys: pytest.CaptureFixture[str]
):
    assert main([command, "model", "data", option, value]) == 2
    assert capsys.readouterr().err == f"holdfast: {command}: {option} is {value}; expected {least}.\n"
