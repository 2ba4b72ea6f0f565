import json

import pytest
from transformers import LlamaConfig

from holdfast.cli import main


@pytest.fixture
def folder(tmp_path):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaConfig(vocab_size=100, **sizes).save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def _advise(folder, tmp_path, *given):
    return main(
        ["advise", str(folder), "--output", str(tmp_path / "runs"), "--length", "8", "--batch-size", "2", *given]
    )


def test_a_configuration_alone_will_do(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert _advise(folder, tmp_path, "--memory", "80GB", "--devices", "2") == 0
    told = capsys.readouterr().out
    assert "EWC, Kronecker factors" in told
    assert "in shards" in told
    joined = " ".join(told.split())
    assert f"torchrun --nproc-per-node 2 -m holdfast finetune {folder} NEW --keep KEEP --method ewc" in joined
    assert f"torchrun --nproc-per-node 2 -m holdfast importance {folder} DATA -o KEEP" in joined
    found = json.loads((tmp_path / "runs/advice/tiny-memory.json").read_text())
    assert {row["phase"] for row in found["rows"]} == {"measure", "train"}
    assert found["train"]["spread"] == "replicas"


def test_where_nothing_fits(folder, tmp_path, capsys):
    assert _advise(folder, tmp_path, "--memory", "1MB") == 0
    assert "nothing fits" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--memory", "much"], "--memory is 'much'; expected a size such as 80GB or 24GiB."),
        (["--memory", "80GB", "--hidden", "8"], "--hidden beside --memory, with which nothing is measured"),
        (
            ["--memory", "80GB", "--optimizer", "nesterov"],
            "--optimizer nesterov beside --memory; expected sgd or adamw",
        ),
        (["--devices", "2"], "--devices is of --memory, which is not given. Give it too"),
        (["--dtype", "float32"], "--dtype is of --memory, which is not given. Give it too"),
    ],
)
def test_what_does_not_go_together(given, told, folder, tmp_path, capsys):
    assert _advise(folder, tmp_path, *given) == 2
    assert told in " ".join(capsys.readouterr().err.split())
