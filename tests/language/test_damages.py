"""Whatever happens to models, trainings, measurements and data: one line of refusal, or what was saved."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.damages import Kind, check, check_beside, print_of
from tests.files.folders import listing
from tests.lab.tiny import Killed
from tests.language import tiny

from holdfast.curvature.factored import load_importance
from holdfast.errors import DataFileError, FileFormatError, HoldfastError
from holdfast.files import write_state
from holdfast.language.batches import examples
from holdfast.language.checkpoints import last_checkpoint
from holdfast.language.finetuning import FineTuneSettings, HoldOptions
from holdfast.language.importance_folder import read_importance, write_importance_folder
from holdfast.language.keeping import keep_and_learn
from holdfast.language.measuring import MeasuringProgress, measure_importance
from holdfast.language.models import LanguageModel, load_model
from holdfast.language.rows import Source, read_rows
from holdfast.records import Importance, ImportanceInfo

SETTINGS = FineTuneSettings(steps=4, lr=5e-3, batch_size=8, save_every=1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier with two heads, a causal model, data, and an importance of the causal model."""
    folder = tmp_path_factory.mktemp("place")
    tiny.classifier(folder / "classifier")
    tiny.causal(folder / "causal")
    tiny.encoder(folder / "encoder")
    tiny.prose(folder / "prose.txt", lines=60)
    tiny.intents(folder / "intents.jsonl", count=24)
    with_heads = load_model(str(folder / "classifier"), task="classification", labels=("card", "dog", "money"))
    with_heads.save(folder / "heads")
    _measured(folder, folder / "keep")
    encoder = load_model(str(folder / "encoder"))
    weights = {name: torch.ones_like(value) for name, value in encoder.base.named_parameters()}
    found = Importance(weights, ImportanceInfo(kind="fisher-sampled", num_examples=1, unit="nats/weight^2"))
    write_importance_folder(
        folder / "keep-encoder", found, encoder, data="x", progress=MeasuringProgress(1, None, None, 0.0)
    )
    return folder


def _measured(place: Path, path: Path, **options: Any) -> None:
    model = load_model(str(place / "causal"))
    found, progress = measure_importance(model, lambda: _blocks(place, model), kind="empirical", **options)
    write_importance_folder(path, found, model, data="prose.txt", progress=progress)


def _blocks(place: Path, model: LanguageModel) -> Any:
    return examples(model, read_rows(str(place / "prose.txt")), length=4, labelled=False)


def _learned(place: Path, output: Path, *, killed_at: int = 0) -> None:
    """An encoder that learns intents; killed before that step where it is not 0."""
    seen = 0

    def step(work: str, *_: Any) -> None:
        nonlocal seen
        seen += work.startswith("training")
        if killed_at and seen == killed_at:
            raise Killed

    keep_and_learn(
        str(place / "encoder"),
        Source(str(place / "intents.jsonl")),
        keep=place / "keep-encoder",
        output=output,
        settings=SETTINGS,
        holding=HoldOptions(strength=1.0),
        length=8,
        on_progress=step,
    )


def _model(path: Path) -> Any:
    """Every head of a model, and its weights and tokens."""
    model = load_model(str(path))
    heads = {name: (head.labels, dict(head.tensors)) for name, head in model.heads.items()}
    return model.module.state_dict(), model.labels, model.head, heads, model.tokenizer.get_vocab()


def _interrupted(place: Path, path: Path) -> None:
    with pytest.raises(Killed):
        _learned(place, path / "out", killed_at=3)


def _resumed(place: Path, path: Path) -> Any:
    _learned(place, path / "out")
    return _model(path / "out")


def _half_measured(place: Path, path: Path) -> None:
    def kill(progress: Any) -> None:
        if progress.num_examples > 64:
            raise Killed

    with pytest.raises(Killed):
        _measured(
            place, path, checkpoint=path / ".holdfast-measuring.safetensors", checkpoint_seconds=0.0, on_part=kill
        )


def _fully_measured(place: Path, path: Path) -> Any:
    _measured(place, path, checkpoint=path / ".holdfast-measuring.safetensors", checkpoint_seconds=1e9)
    (path / ".holdfast-measuring.safetensors").unlink(missing_ok=True)
    found = load_importance(path)
    return dict(found), found.info.num_examples


def _kept(place: Path, path: Path) -> Any:
    found = read_importance(path, load_model(str(place / "causal")))
    return dict(found), found.info


def _data(path: Path) -> None:
    from datasets import Dataset
    from pyarrow import csv as arrow_csv
    from pyarrow import feather, parquet

    path.mkdir()
    rows = [{"text": tiny.sentence(n), "label": ("card", "dog")[n % 2]} for n in range(12)]
    tiny.intents(path / "a.jsonl", count=12)
    (path / "b.json").write_text(json.dumps(rows))
    (path / "c.csv").write_text("text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows))
    (path / "d.tsv").write_text((path / "c.csv").read_text().replace(",", "\t"))
    table = arrow_csv.read_csv(path / "c.csv")
    parquet.write_table(table, path / "e.parquet")
    feather.write_feather(table, path / "f.arrow", compression="uncompressed")
    with gzip.open(path / "g.jsonl.gz", "wt") as file:
        file.write((path / "a.jsonl").read_text())
    tiny.prose(path / "h.txt", lines=12)
    Dataset.from_list(rows).save_to_disk(path / "saved")
    (path / "intents").mkdir()
    (path / "intents" / "seq.in").write_text("".join(f"{row['text']}\n" for row in rows))
    (path / "intents" / "label").write_text("".join(f"{row['label']}\n" for row in rows))


def _rows(path: Path) -> Any:
    """The rows of every source; where one is refused, that is raised when all have been read."""
    found, refused = [], None
    for source in sorted(p for p in path.iterdir()):
        try:
            rows = read_rows(str(source))
            found.append((rows.describe().replace(str(path), ""), [(row.texts, row.label) for row in rows]))
        except Exception as error:
            if type(error).__module__ != "holdfast.errors":
                raise
            refused = refused or error
    if refused is not None:
        raise refused
    return found


def kinds(place: Path) -> dict[str, tuple[Kind, int]]:
    """Of folders, and how many damages of it make the slow test."""

    def copied(name: str) -> Any:
        return lambda path: shutil.copytree(place / name, path)

    def resumed(path: Path) -> Any:
        return _resumed(place, path)

    found = [
        (Kind("heads", copied("heads"), _model), 120),
        (Kind("foreign-classifier", copied("classifier"), _model, has_digests=False), 120),
        (Kind("foreign-causal", copied("causal"), _model, has_digests=False), 100),
        (Kind("finetuned", lambda path: _learned(place, path), _model), 100),
        (Kind("finetuning", lambda path: _interrupted(place, path), resumed, goes_on=True), 60),
        (Kind("measuring", lambda path: _half_measured(place, path), lambda path: _fully_measured(place, path),
              goes_on=True), 60),
        (Kind("keep", copied("keep"), lambda path: _kept(place, path)), 100),
        (Kind("data", _data, _rows, has_digests=False), 300),
    ]  # fmt: skip
    return {kind.name: (kind, times) for kind, times in found}


NAMES = ["heads", "foreign-classifier", "foreign-causal", "finetuned", "finetuning", "measuring", "keep", "data"]


def _beside(place: Path, work: Path, *, times: int) -> None:
    """Two models of other heads and weights, saved in turn."""
    two = load_model(str(place / "heads"))
    one = load_model(str(place / "heads"), head="original")
    with torch.no_grad():
        for weight in one.base.parameters():
            weight.add_(1)
    check_beside(Kind("model", one.save, _model), two.save, work, times=times)
    encoder, causal = load_model(str(place / "encoder")), load_model(str(place / "causal"))
    check_beside(Kind("encoder", encoder.save, _model), causal.save, work, times=times // 3)


def test_a_reader_beside_a_writer_finds_one_model_whole(place: Path, tmp_path: Path):
    _beside(place, tmp_path, times=6)


@pytest.mark.slow
def test_many_loads_beside_a_writer(place: Path, tmp_path: Path):
    _beside(place, tmp_path, times=300)


@pytest.mark.parametrize("moved", [0, 1, 3])
def test_a_model_whose_writer_was_killed_while_its_files_moved(
    place: Path, tmp_path: Path, moved: int, monkeypatch: pytest.MonkeyPatch
):
    """It is read from both places, and the next save finishes it."""
    model = load_model(str(place / "heads"))
    model.save(tmp_path / "x")
    right = print_of(_model(tmp_path / "x"))
    files = sorted((tmp_path / "x").iterdir(), key=lambda path: path.name == "holdfast.json")  # which moves last
    (tmp_path / "x" / ".holdfast-commit").mkdir()
    for path in files[moved:]:
        path.rename(path.parent / ".holdfast-commit" / path.name)
    before = listing(tmp_path)
    assert print_of(_model(tmp_path / "x")) == right
    assert listing(tmp_path) == before
    moving = tmp_path / "x" / ".holdfast-commit" / files[-2].name
    content = moving.read_bytes()
    moving.write_bytes(b"{}")
    with pytest.raises(FileFormatError, match=f"{files[-2].name} is damaged, truncated or edited"):
        load_model(str(tmp_path / "x"))
    moving.write_bytes(content)
    model.save(tmp_path / "x")
    assert set((tmp_path / "x").iterdir()) == set(files)
    assert print_of(_model(tmp_path / "x")) == right


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("config.json", '{"architectures": 3}', "architectures is 3, expected a list"),
        ("config.json", '{"id2label": {"x": "a"}}', "id2label has the keys 'x', expected whole numbers"),
        ("tokenizer.json", "{}", "classifier cannot be loaded: "),
        ("tokenizer.json", "[" * 50_000, "classifier cannot be loaded: "),
        ("tokenizer_config.json", "[]", "classifier cannot be loaded: "),
        ("model.safetensors", "x", "classifier: its weights are truncated or damaged"),
    ],
)
def test_what_transformers_cannot_read_is_one_line(place: Path, tmp_path: Path, name: str, content: str, told: str):
    shutil.copytree(place / "classifier", tmp_path / "classifier")
    (tmp_path / "classifier" / name).write_text(content)
    with pytest.raises(HoldfastError, match=told) as error:
        load_model(str(tmp_path / "classifier"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors", "generation_config.json", "more"])
def test_a_pipe_among_the_files_of_a_model_is_not_waited_for(place: Path, tmp_path: Path, name: str):
    shutil.copytree(place / "classifier", tmp_path / "classifier")
    (tmp_path / "classifier" / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / "classifier" / name)
    with pytest.raises(FileFormatError, match=f"classifier: {name} is a pipe or a device; expected files. Take it"):
        load_model(str(tmp_path / "classifier"))


@pytest.mark.parametrize("name", ["data-00000-of-00001.arrow", "state.json.more"])
def test_a_pipe_in_a_saved_data_set_is_not_waited_for(tmp_path: Path, name: str):
    _data(tmp_path / "data")
    (tmp_path / "data" / "saved" / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / "data" / "saved" / name)
    with pytest.raises(DataFileError, match=f"saved: {name} is a pipe or a device; expected files. Take it away"):
        read_rows(str(tmp_path / "data" / "saved"))


def test_a_checkpoint_that_was_half_written_is_swept_and_a_damaged_one_refused(place: Path, tmp_path: Path):
    _interrupted(place, tmp_path)
    training = tmp_path / "out" / ".holdfast-training"
    last = last_checkpoint(training / "held")
    assert last is not None
    shutil.copytree(last, training / "held" / "checkpoint-10")
    (training / "held" / "checkpoint-10" / "holdfast.json").unlink()
    (training / "held" / "checkpoint-10" / "optimizer.pt").write_bytes(b"half")
    assert last_checkpoint(training / "held") == last
    assert not (training / "held" / "checkpoint-10").exists()
    content = (last / "optimizer.pt").read_bytes()
    (last / "optimizer.pt").write_bytes(content[:-1] + b"x")
    before = listing(tmp_path)
    with pytest.raises(FileFormatError, match=r"optimizer.pt is damaged, .*Delete .*checkpoint-\d to go on from"):
        _learned(place, tmp_path / "out")
    assert listing(tmp_path) == before
    (last / "optimizer.pt").write_bytes(content)
    (training / "training.json").unlink()
    with pytest.raises(FileFormatError, match=r"training.json is missing beside checkpoints. Delete .* to begin anew"):
        _learned(place, tmp_path / "out")
    shutil.rmtree(training)
    _learned(place, tmp_path / "out")


def test_the_checkpoint_of_something_else_is_no_measurement(place: Path, tmp_path: Path):
    write_state(tmp_path / "state", {"x": torch.ones(1)}, {"key": 1})
    with pytest.raises(FileFormatError, match="state is the checkpoint of something else. Delete it to begin anew"):
        _measured(place, tmp_path / "out", checkpoint=tmp_path / "state")
    (tmp_path / "state").unlink()
    _measured(place, tmp_path / "out", checkpoint=tmp_path / "state")


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_folder_is_refused_or_gives_what_was_saved(place: Path, tmp_path: Path, name: str):
    check(kinds(place)[name][0], tmp_path, times=8, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_many_damages(place: Path, tmp_path: Path, name: str):
    kind, times = kinds(place)[name]
    check(kind, tmp_path, times=times, seed=1)
