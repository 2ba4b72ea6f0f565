import json

import pytest
from tests.files.folders import listing

from holdfast.errors import FileFormatError, OutputError, RunMismatchError
from holdfast.lab.config import configure
from holdfast.lab.folder import RunFolder, versions

CONFIG = configure("permuted-digits", "none", lr=0.1)


def test_nothing_is_written_before_it_is_opened(tmp_path):
    folder = RunFolder(tmp_path / "run", CONFIG)
    assert not folder.path.exists()
    folder.open()
    assert [path.name for path in folder.path.iterdir()] == ["config.json"]
    written = json.loads((folder.path / "config.json").read_text())
    assert written == {"config": CONFIG.to_dict(), "versions": versions()}
    assert set(versions()) == {"holdfast", "torch", "python"}


def test_it_is_found_again(tmp_path):
    RunFolder(tmp_path / "run", CONFIG).open()
    RunFolder(tmp_path / "run", CONFIG).open()


def test_events_are_lines_written_at_once(tmp_path):
    folder = RunFolder(tmp_path, CONFIG)
    folder.open()
    folder.append({"event": "start"})
    folder.append({"event": "epoch", "loss": 0.25})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"event": "start"}, {"event": "epoch", "loss": 0.25}]


@pytest.mark.parametrize(("kept", "expected"), [(0, ""), (1, '{"a": 1}\n'), (2, '{"a": 1}\n{"b": 2}\n')])
def test_events_after_the_checkpoint_are_cut_off_even_half_a_line(tmp_path, kept, expected):
    folder = RunFolder(tmp_path, CONFIG)
    folder.open()
    (tmp_path / "metrics.jsonl").write_text('{"a": 1}\n{"b": 2}\n{"c": ')
    folder.truncate(kept)
    assert (tmp_path / "metrics.jsonl").read_text() == expected


def test_a_new_run_has_no_events(tmp_path):
    folder = RunFolder(tmp_path, CONFIG)
    folder.open()
    folder.truncate(0)
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_what_a_killed_session_left_is_swept_out(tmp_path):
    folder = RunFolder(tmp_path, CONFIG)
    folder.open()
    folder.checkpoint.parent.mkdir()
    left = [
        tmp_path / ".holdfast-result.json.123.new",
        folder.checkpoint.parent / ".holdfast-state.safetensors.123.new",
    ]
    for path in left:
        path.write_text("half")
    folder.open()
    assert not any(path.exists() for path in left)
    assert (tmp_path / "config.json").exists()


def test_the_folder_of_another_configuration(tmp_path):
    RunFolder(tmp_path, CONFIG).open()
    other = configure("permuted-digits", "ewc-fisher", lr=0.3, strength=15)
    with pytest.raises(RunMismatchError) as caught:
        RunFolder(tmp_path, other)
    assert str(caught.value) == (
        f"{tmp_path} belongs to another configuration: lr 0.1 there, 0.3 here, method 'none' there, 'ewc-fisher' here, "
        "strength None there, 15.0 here. Choose another --output, or move the folder away."
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is no valid JSON"), ("{}", "holds no configuration: damaged. Move the folder away to start again.")],
)
def test_a_damaged_configuration(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(FileFormatError, match=message):
        RunFolder(tmp_path, CONFIG)


@pytest.mark.parametrize("name", ["notes.txt", "metrics.jsonl", "plots/accuracy.png", "checkpoint/state.safetensors"])
def test_a_folder_that_holds_no_run_is_refused(tmp_path, name):
    (tmp_path / "run" / name).parent.mkdir(parents=True)
    (tmp_path / "run" / name).write_text("precious")
    before = listing(tmp_path)
    with pytest.raises(OutputError, match="holds what holdfast did not write .* Give a new or an empty folder"):
        RunFolder(tmp_path / "run", CONFIG)
    assert listing(tmp_path) == before


def test_what_others_put_into_a_run_stays(tmp_path):
    folder = RunFolder(tmp_path / "run", CONFIG)
    folder.open()
    for name in ("notes.txt", "plots/mine.png", ".mine.new", ".holdfast-folder.new/mine"):
        (folder.path / name).parent.mkdir(exist_ok=True)
        (folder.path / name).write_text("precious")
    before = listing(tmp_path)
    RunFolder(tmp_path / "run", CONFIG).open()
    assert listing(tmp_path) == before


def test_a_finished_run_is_found_also_where_nothing_can_be_written(tmp_path, monkeypatch):
    RunFolder(tmp_path, CONFIG).open()
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(OutputError, match="there is no permission to write there"):
        RunFolder(tmp_path, CONFIG)
    (tmp_path / "result.json").write_text("{}")
    assert RunFolder(tmp_path, CONFIG).result.exists()


@pytest.mark.parametrize("name", ["plots", "checkpoint"])
def test_a_file_in_place_of_a_folder_of_the_run_is_refused(tmp_path, name):
    RunFolder(tmp_path, CONFIG).open()
    (tmp_path / name).write_text("precious")
    with pytest.raises(OutputError, match=rf"{name} is no folder; the run writes into one there. Move it away"):
        RunFolder(tmp_path, CONFIG)


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*run: .*file: that is no folder. Choose a folder"):
        RunFolder(tmp_path / "file" / "run", CONFIG)
    late = RunFolder(tmp_path / "late", CONFIG)
    (tmp_path / "late").write_text("")
    with pytest.raises(OutputError, match=r"cannot write the run folder .*late: .*Choose another --output."):
        late.open()
    folder = RunFolder(tmp_path / "run", CONFIG)
    folder.open()
    (folder.path / "metrics.jsonl").mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*metrics.jsonl: .*Run the same command again to resume."):
        folder.append({"event": "start"})


@pytest.mark.parametrize("line", [b"\xff\xfe", b"[1]", b"", b'{"a": '])
def test_a_damaged_event_before_the_checkpoint_is_named_and_without_the_file_it_goes_on(tmp_path, line):
    folder = RunFolder(tmp_path, CONFIG)
    folder.open()
    (tmp_path / "metrics.jsonl").write_bytes(b'{"a": 1}\n' + line + b'\n{"c": 1}\n')
    before = listing(tmp_path)
    with pytest.raises(FileFormatError, match=r"metrics.jsonl, line 2 is no event: damaged or edited. Delete the file"):
        folder.truncate(3)
    assert listing(tmp_path) == before
    (tmp_path / "metrics.jsonl").unlink()
    folder.truncate(3)
    assert (tmp_path / "metrics.jsonl").read_text() == ""
