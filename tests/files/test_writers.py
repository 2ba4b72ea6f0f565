"""Every writer of a folder, called from Python: what is not its own is refused, and survives it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.files.folders import fill, listing
from tests.lab.made_up import result
from tests.language import tiny
from torch import nn

import holdfast as hf
from holdfast.errors import OutputError
from holdfast.lab.frame import runs_table
from holdfast.lab.report import write_report
from holdfast.language.importance_folder import write_importance_folder
from holdfast.language.measuring import MeasuringProgress
from holdfast.language.models import LanguageModel, load_model


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def data() -> list:
    return [(torch.randn(8, 3), torch.randint(2, (8,)))]


def ready(folder: Path) -> LanguageModel:
    return load_model(str(tiny.causal(folder)))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return ready(tmp_path_factory.mktemp("given") / "causal")


def _measured(model: LanguageModel, path: Path) -> None:
    weights = {name: torch.ones_like(value) for name, value in model.base.named_parameters()}
    importance = hf.Importance(weights, hf.ImportanceInfo(kind="fisher-sampled", num_examples=1, unit="nats/weight^2"))
    write_importance_folder(path, importance, model, data="x", progress=MeasuringProgress(1, None, None, 0.0))


WRITERS: dict[str, Callable[[LanguageModel, Path], object]] = {
    "importance": lambda _, path: hf.uniform(net()).save(path),
    "factors": lambda _, path: hf.kfac(net(), data()).save(path),
    "EWC": lambda _, path: hf.EWC(module := net(), strength=1.0).retain(hf.uniform(module)).save(path),
    "WVA": lambda _, path: hf.WVA(module := net(), strength=1.0).retain(hf.uniform(module)).save(path),
    "model": lambda model, path: model.save(path),
    "importance of a model": _measured,
    "report": lambda _, path: write_report(runs_table([result()]), path),
}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.lab.report.write.write_pictures", lambda section, folder: [])


@pytest.mark.parametrize("name", WRITERS)
def test_what_others_wrote_is_left_as_it_is(
    name: str, model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    project = tmp_path / "project"
    (project / "src" / "deep").mkdir(parents=True)
    (project / "src" / "main.py").write_text("precious")
    (project / ".git").mkdir()
    (project / ".git" / "HEAD").write_text("precious")
    (tmp_path / "link").symlink_to(project / "src")
    fill(tmp_path / "ours")
    (tmp_path / "ours" / ".git").mkdir()
    monkeypatch.chdir(project / "src" / "deep")
    before = listing(tmp_path)
    for path, told in (
        (".", "is the working directory"),
        ("..", "is above the working directory"),
        (project, "is above the working directory"),
        (project / "src", "is above the working directory"),
        (tmp_path / "ours", "contains .git"),
        (project / "src" / "main.py", "is a file"),
    ):
        with pytest.raises(OutputError, match=told):
            WRITERS[name](model, Path(path))
    monkeypatch.chdir(tmp_path)
    for path, told in (
        (project, "contains .git"),
        (project / "src", "holds what holdfast did not write"),
        (tmp_path / "link", "holds what holdfast did not write"),
    ):
        with pytest.raises(OutputError, match=told):
            WRITERS[name](model, path)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("name", WRITERS)
def test_an_empty_folder_is_filled_in_place_also_behind_a_link(name: str, model: LanguageModel, tmp_path: Path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    inode = (tmp_path / "disk").stat().st_ino
    WRITERS[name](model, tmp_path / "link")
    written = set(listing(tmp_path / "disk"))
    (tmp_path / "disk" / "precious").write_text("x")
    WRITERS[name](model, tmp_path / "link")
    assert (tmp_path / "disk").stat().st_ino == inode
    assert set(listing(tmp_path / "disk")) == {*written, "precious"}
    assert os.readlink(tmp_path / "link") == "disk"


@pytest.mark.parametrize("save", [LanguageModel.save, _measured])
def test_nothing_is_saved_over_the_model_itself(save: Callable[..., object], tmp_path: Path):
    model = ready(tmp_path / "models" / "causal")
    (tmp_path / "link").symlink_to("models/causal")
    before = listing(tmp_path)
    for place in (tmp_path / "models" / "causal", tmp_path / "models", tmp_path / "link"):
        with pytest.raises(OutputError, match="is read from"):
            save(model, place)
    assert listing(tmp_path) == before


def test_nothing_is_saved_over_anchors_that_are_read(tmp_path: Path):
    from safetensors.torch import save_file

    module = net()
    (tmp_path / "base").mkdir()
    save_file(module.state_dict(), tmp_path / "base" / "model.safetensors")
    keeper = hf.EWC(module, strength=1.0, anchors=tmp_path / "base").retain(hf.uniform(module))
    before = listing(tmp_path)
    with pytest.raises(OutputError, match="is read from"):
        keeper.save(tmp_path / "base")
    assert listing(tmp_path) == before
