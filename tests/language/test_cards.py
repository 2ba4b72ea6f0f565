"""The lines of Python in an importance's card, as they stand."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.language import tiny
from transformers import AutoModel

import holdfast as hf
from holdfast.language.batches import examples
from holdfast.language.importance_folder import read_importance, write_importance_folder
from holdfast.language.measuring import Kind, measure_importance
from holdfast.language.models import load_model
from holdfast.language.rows import read_rows


def card_of(name: str, data: Path, *, kind: Kind = "sampled", head: str | None = None, folder: str = "keep") -> str:
    model = load_model(name, head=head)
    found, progress = measure_importance(
        model, lambda: examples(model, read_rows(str(data)), length=16, labelled=False), kind=kind, num_examples=16
    )
    write_importance_folder(Path(folder), found, model, data=data.name, progress=progress)
    read_importance(folder, load_model(name))
    return (Path(folder) / "README.md").read_text()


def run(card: str, **given: Any) -> dict[str, Any]:
    """What stands in the card's block of Python, after one step under the keeper."""
    lines = [line[4:] for line in card.splitlines() if line.startswith("    ") and "holdfast finetune" not in line]
    names: dict[str, Any] = given
    exec("\n".join(lines), names)
    names["model"].train()(input_ids=torch.tensor([[2, 5, 3]]))[0].square().sum().backward()
    names["optimizer"].step()
    assert names["keeper"].report().num_steps == 1
    assert names["keeper"].predicted_rise() >= 0
    return names


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("kind", ["sampled", "kfac"])
def test_an_encoder_is_held_as_transformers_loads_it_pooler_and_all(tmp_path: Path, kind: Kind):
    tiny.encoder(Path("encoder"))
    card = card_of("encoder", tiny.prose(tmp_path / "a.txt"), kind=kind)
    assert 'AutoModel.from_pretrained("encoder")' in card
    assert "`model = SentenceTransformer(...)[0].auto_model`" in card
    assert "--method ewc --budget 0.05 --old-data OLD-DATA" in card
    names = run(card)
    model = names["model"]
    assert (names["keeper"].budget, names["keeper"].strength) == (0.05, None)
    assert any("pooler" in name for name, _ in model.named_parameters())


def test_an_encoder_of_a_package_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / "packages" / "carried_encoder"
    tiny.encoder(package / "model")
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path / "packages")
    card = card_of("carried-encoder", tiny.prose(tmp_path / "a.txt"))
    assert 'str(files("carried_encoder") / "model")' in card
    run(card)
    sys.modules.pop("carried_encoder")


@pytest.mark.parametrize("kind", ["bert", "distilbert", "gpt2"])
def test_a_classifier_is_held_with_its_head(tmp_path: Path, kind: str):
    tiny.classifier(Path("classifier"), kind=kind)
    card = card_of("classifier", tiny.prose(tmp_path / "a.txt"))
    names = run(card)
    assert "AutoModelForSequenceClassification" in card
    assert set(names["importance"]) == {name for name, _ in names["model"].named_parameters()}


def test_a_causal_model_with_tied_weights_is_held(tmp_path: Path):
    tiny.causal(Path("models/causal"))
    card = card_of("models/causal", tiny.prose(tmp_path / "a.txt"))
    assert 'AutoModelForCausalLM.from_pretrained("models/causal")' in card
    names = run(card)
    assert names["model"].lm_head.weight is names["model"].transformer.wte.weight
    assert len(names["importance"]) == len(list(names["model"].parameters()))


def test_an_old_head_is_held_as_it_can_be_had(tmp_path: Path):
    tiny.classifier(Path("old"))
    load_model("old", task="classification", labels=("x", "y", "z"), head="letters").save(Path("new"))
    card = card_of("new", tiny.prose(tmp_path / "a.txt"), head="original")
    assert 'load_model("new", head="original").module' in card
    assert run(card)["importance"]["classifier.weight"].shape == (2, 16)
    card = card_of("new", tiny.prose(tmp_path / "a.txt"), head="letters", folder="other")
    assert run(card)["importance"]["classifier.weight"].shape == (3, 16)


def test_paths_of_this_machine_are_not_shared(tmp_path: Path):
    tiny.encoder(tmp_path / "encoder")
    card = card_of(str(tmp_path / "encoder"), tiny.prose(tmp_path / "a.txt"), folder=str(tmp_path / "keep"))
    assert str(tmp_path) not in card
    run(card)


def test_any_encoder_of_the_same_names_takes_it(tmp_path: Path):
    """As sentence-transformers hands it out: the same AutoModel, inside another module."""
    tiny.encoder(Path("encoder"))
    card_of("encoder", tiny.prose(tmp_path / "a.txt"))
    inside = torch.nn.Sequential(AutoModel.from_pretrained("encoder"))
    importance = hf.Importance.load("keep", model=inside[0])
    keeper = hf.EWC(inside[0], strength=1.0, new_parameters="free").retain(importance)
    assert keeper.report().num_tasks == 1


def test_an_importance_in_another_unit_is_held_to_a_measured_budget(tmp_path: Path):
    tiny.causal(Path("causal"))
    card = card_of("causal", tiny.prose(tmp_path / "a.txt"), kind="mas")
    assert "--method ewc --budget 0.05 --old-data OLD-DATA" in card
    tokens = torch.tensor([[2, 5, 3, 4]])
    names = run(card, old_batches=[{"input_ids": tokens, "labels": tokens}])
    assert [skill.budget for skill in names["keeper"].skills] == [0.05]


def test_what_was_calibrated_needs_no_old_data(tmp_path: Path):
    tiny.causal(Path("causal"))
    model = load_model("causal")
    data = tiny.prose(tmp_path / "a.txt")
    found, progress = measure_importance(
        model, lambda: examples(model, read_rows(str(data)), length=16, labelled=False), kind="mas", num_examples=16
    )
    found = found.with_info(nats_per_unit=0.5, calibration="made-up lessons", calibrated_at=0.05, scatter=1.5)
    write_importance_folder(Path("keep"), found, model, data=data.name, progress=progress)
    card = Path("keep/README.md").read_text()
    assert "--method ewc --budget 0.05\n" in card
    assert "old_batches" not in card
    assert run(card)["keeper"].held.scatter == 1.5
