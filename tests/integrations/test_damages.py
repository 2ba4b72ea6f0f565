"""Whatever happens to a Trainer's checkpoint, its keeper is refused with one line, or goes on as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

from tests.damages import Kind, check
from tests.integrations.tiny import gpt2, importance_of
from torch.optim import SGD
from transformers import TrainerControl, TrainerState, TrainingArguments

from holdfast import EWC
from holdfast.errors import FileFormatError
from holdfast.integrations.transformers import HoldfastCallback

STATE = TrainerState(global_step=2, log_history=[{"loss": 1.5, "step": 1}, {"loss": 1.25, "step": 2}])


def _arguments(path: Path) -> TrainingArguments:
    return TrainingArguments(str(path), report_to="none", use_cpu=True)


def _saved(path: Path) -> None:
    """What the Trainer writes of its state, and the callback beside it."""
    (path / "checkpoint-2").mkdir(parents=True)
    STATE.save_to_json(str(path / "checkpoint-2" / "trainer_state.json"))
    model = gpt2()
    callback = HoldfastCallback(EWC(model, strength=1.0).retain(importance_of(model)))
    callback.on_save(_arguments(path), STATE, TrainerControl())


def _resumed(path: Path) -> Any:
    model = gpt2()
    keeper = EWC(model, strength=1.0)
    callback = HoldfastCallback(keeper)
    callback.on_train_begin(_arguments(path), STATE, TrainerControl(), optimizer=SGD(model.parameters(), 0.1))
    keeper.detach()
    return keeper.state()


KIND = Kind("checkpoint", _saved, _resumed)


def test_a_damaged_checkpoint_is_refused_or_goes_on(tmp_path: Path):
    check(KIND, tmp_path, times=10, seed=0)


@pytest.mark.slow
def test_many_damages(tmp_path: Path):
    check(KIND, tmp_path, times=150, seed=1)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "is no valid JSON"),
        ("[1]", "holds a JSON list; expected an object"),
        ("[" * 50_000, "no valid JSON|deeply"),
    ],
)
def test_a_damaged_state_of_the_trainer_is_named(tmp_path: Path, content: str, told: str):
    _saved(tmp_path)
    (tmp_path / "checkpoint-2" / "trainer_state.json").write_text(content)
    with pytest.raises(FileFormatError, match=f"trainer_state.json .*({told})"):
        _resumed(tmp_path)


def test_a_file_in_place_of_the_keeper_is_no_checkpoint_without_one(tmp_path: Path):
    _saved(tmp_path)
    (tmp_path / "checkpoint-2" / "holdfast").rename(tmp_path / "elsewhere")
    (tmp_path / "checkpoint-2" / "holdfast").write_text("")
    with pytest.raises(FileFormatError, match="holdfast: no such folder; expected one that holdfast has saved"):
        _resumed(tmp_path)


def _adapted() -> Any:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(
        gpt2(), LoraConfig(r=2, target_modules=["c_attn"], modules_to_save=["ln_f"], fan_in_fan_out=True)
    )


def _saved_adapters(path: Path) -> None:
    from holdfast.integrations.peft import LoraEWC

    LoraEWC(_adapted(), importance_of(gpt2())).save(path)


def _loaded_adapters(path: Path) -> Any:
    from holdfast.integrations.peft import LoraEWC

    return LoraEWC.load(path, _adapted()).state()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_damaged_keeper_of_adapters_is_refused_or_goes_on(tmp_path: Path):
    pytest.importorskip("peft")
    check(Kind("adapters", _saved_adapters, _loaded_adapters), tmp_path, times=10, seed=0)
