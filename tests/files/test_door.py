from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.files.folders import fill, listing

from holdfast import files
from holdfast.errors import OutputError
from holdfast.files import door


def refused(root, path, match, **options):
    before = listing(root)
    with pytest.raises(OutputError, match=match):
        fill(path, **options)
    with pytest.raises(OutputError, match=match):
        files.check_output(path, reading=options.get("reading", ()))
    assert listing(root) == before


def test_a_save_is_replaced_and_what_it_listed_goes(tmp_path):
    target = tmp_path / "deep" / "skills"
    fill(target, "old", names=("text", "part/one", "part/two"))
    fill(target, "new", names=("text", "other/one"))
    assert {p.relative_to(target).as_posix() for p in target.rglob("*")} == {
        *("text", "other", "other/one", "holdfast.json")
    }
    assert (target / "text").read_text() == "new"
    assert [p.name for p in target.parent.iterdir()] == ["skills"]


def test_what_others_put_into_a_folder_of_ours_stays(tmp_path):
    target = tmp_path / "skills"
    fill(target, "old", names=("text", "part/one"))
    (target / "notes.md").write_text("mine")
    (target / "part" / "mine").write_text("mine")
    (target / "empty").mkdir()
    (target / "link").symlink_to("notes.md")
    fill(target)
    assert (target / "notes.md").read_text() == (target / "part" / "mine").read_text() == "mine"
    assert (target / "empty").is_dir()
    assert os.readlink(target / "link") == "notes.md"
    assert not (target / "part" / "one").exists()


def test_a_name_that_another_has_taken_in_a_folder_of_ours_is_refused(tmp_path):
    target = tmp_path / "skills"
    fill(target)
    (target / "more").write_text("mine")
    before = listing(tmp_path)
    with pytest.raises(OutputError, match=r"more stands there already and was not written by holdfast; nothing was"):
        fill(target, names=("text", "more"))
    assert listing(tmp_path) == before


@pytest.mark.parametrize("name", ["notes.txt", ".hidden", "part/deep"])
def test_a_folder_with_something_in_it_is_refused(tmp_path, name):
    (tmp_path / "notes" / name).parent.mkdir(parents=True)
    (tmp_path / "notes" / name).write_text("precious")
    shown = re.escape(name.partition("/")[0])
    refused(tmp_path, tmp_path / "notes", rf"holds what holdfast did not write \({shown}\).* Give a new or an empty")


def test_many_entries_are_counted(tmp_path):
    for number in range(5):
        (tmp_path / f"{number}").write_text("precious")
    refused(tmp_path, tmp_path, r"\(0, 1, 2 and 2 more\)")


def test_the_working_directory_and_what_is_above_it_are_refused(tmp_path, monkeypatch):
    here = tmp_path / "a" / "b"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    refused(tmp_path, ".", "is the working directory; nothing is saved over it")
    refused(tmp_path, "..", "is above the working directory")
    refused(tmp_path, tmp_path, "is above the working directory")
    (tmp_path / "link").symlink_to(here)
    refused(tmp_path, tmp_path / "link", "is the working directory")
    fill("below")
    monkeypatch.chdir(here / "below")  # ours, and yet not to be taken from under a shell
    refused(tmp_path, ".", "is the working directory")


@pytest.mark.parametrize("is_ours", [True, False])
def test_a_repository_is_refused_also_where_it_is_ours(tmp_path, is_ours):
    target = tmp_path / "repository"
    if is_ours:
        fill(target)
    (target / ".git").mkdir(parents=True)
    refused(tmp_path, target, "contains .git: a repository is not written over")
    fill(target / "skills")  # inside it there is room


def test_what_is_read_is_refused(tmp_path):
    model = tmp_path / "models" / "gpt2"
    fill(model, names=("config.json",))
    refused(tmp_path, model, r"is read from \(.*gpt2\).* Give another folder", reading=[model])
    refused(tmp_path, model, "is read from", reading=[model / "config.json"])
    (tmp_path / "link").symlink_to(model)
    refused(tmp_path, model, "is read from", reading=[tmp_path / "link"])
    refused(tmp_path, tmp_path / "link", "is read from", reading=["none", model])
    fill(
        model, names=("config.json",), reading=[tmp_path / "models"]
    )  # of a folder that is read, a folder of ours inside it


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "skills").write_text("precious")
    refused(tmp_path, tmp_path / "skills", "skills is a file; a folder is to be written there. Give another path")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path, tmp_path / "pipe", "pipe is a file")


def test_links_are_followed(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    fill(tmp_path / "link")
    fill(tmp_path / "link")
    assert (tmp_path / "disk" / "text").read_text() == "new"
    assert (tmp_path / "link").is_symlink()
    (tmp_path / "dangling").symlink_to(tmp_path / "later")
    fill(tmp_path / "dangling")
    assert (tmp_path / "later" / "text").read_text() == "new"
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    with pytest.raises(OutputError, match="cannot write .*circle"):
        fill(tmp_path / "circle")


def test_a_link_inside_that_leads_out_is_not_followed(tmp_path):
    target, outside = tmp_path / "skills", tmp_path / "outside"
    fill(target, names=("part/text",))
    outside.mkdir()
    (outside / "text").write_text("precious")
    (target / "part" / "text").unlink()
    (target / "part").rmdir()
    (target / "part").symlink_to(outside)
    refused_before = listing(tmp_path)
    with pytest.raises(OutputError, match="part/text stands there already"):
        fill(target, names=("part/text",))
    assert listing(tmp_path) == refused_before
    fill(target, names=("text",))
    assert (outside / "text").read_text() == "precious"


def test_a_manifest_that_names_files_outside_deletes_nothing(tmp_path):
    target = tmp_path / "skills"
    fill(target)
    (tmp_path / "precious").write_text("x")
    for name in ("../precious", str(tmp_path / "precious"), "a/../../precious"):
        files.write_json(target / "holdfast.json", {"format_version": 2, "files": {name: "0" * 64}})
        refused(tmp_path, target, "is not written over, for it cannot be told what is ours in it: .*is no file with")


def test_an_empty_folder_is_filled_in_place(tmp_path):
    target = tmp_path / "skills"
    target.mkdir(mode=0o750)
    (target / "lost+found").mkdir()  # of a disk that was just mounted
    inode = target.stat().st_ino
    fill(target)
    fill(target)
    assert target.stat().st_ino == inode
    assert target.stat().st_mode & 0o777 == 0o750
    assert {p.name for p in target.iterdir()} == {"text", "holdfast.json", "lost+found"}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("before", ["none", "empty", "saved"])
def test_an_interrupted_save_leaves_what_was_there(tmp_path, error, before):
    target = tmp_path / "deep" / "skills"
    if before == "saved":
        fill(target, "old")
    if before == "empty":
        target.mkdir(parents=True)
    found = listing(tmp_path)

    def save():
        with files.new_folder(target) as folder:
            (folder / "text").write_text("half")
            raise error

    with pytest.raises(error):
        save()
    assert listing(tmp_path) == found


@pytest.mark.parametrize("moved", range(5))
def test_a_save_that_was_killed_while_its_files_moved_is_read_and_finished(tmp_path, monkeypatch, moved):
    target = tmp_path / "skills"
    fill(target, "old", names=("a", "b", "c", "gone"))

    class KilledError(BaseException):
        pass

    left = [moved]
    whole = Path.replace

    def replace(path, place):
        if path.parent.name == door.COMMIT:
            if left[0] == 0:
                raise KilledError
            left[0] -= 1
        return whole(path, place)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        if moved < 4:
            with pytest.raises(KilledError):
                fill(target, names=("a", "b", "c"))
        else:
            fill(target, names=("a", "b", "c"))
    found = files.read_folder(target, lambda saved: {name: saved.text(name) for name in saved.files})
    assert found == dict.fromkeys("abc", "new")
    fill(target, "newer", names=("b",))
    assert {p.name for p in target.iterdir()} == {"b", "holdfast.json"}


SAVER = """
import sys, time
from holdfast import files
with files.new_folder(sys.argv[1]) as folder:
    (folder / "text").write_text("half")
    print("half", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_left_is_swept_by_the_next_save(tmp_path):
    target = tmp_path / "skills"
    process = subprocess.Popen([sys.executable, "-c", SAVER, str(target)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "half\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert [p.name for p in target.iterdir()] == [f".holdfast-new-{process.pid}"]
    fill(target)
    assert {p.name for p in target.iterdir()} == {"text", "holdfast.json"}


def test_folders_of_a_user_with_names_like_temporary_ones_are_left_alone(tmp_path):
    for name in (".skills.old", f".skills.{os.getpid()}.new", ".skills.training"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "precious").write_text("x")
    before = listing(tmp_path)
    fill(tmp_path / "skills")
    fill(tmp_path / "skills")
    assert before.items() <= listing(tmp_path).items()


def _save_often(path, text, until):
    while time.time() < until:
        fill(path, text * 1000, names=("a", "b"))


def test_two_writers_and_a_reader_never_mix_saves(tmp_path):
    target, until = tmp_path / "skills", time.time() + 1.5
    fill(target, "0" * 1000, names=("a", "b"))
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    writers = [context.Process(target=_save_often, args=(target, text, until)) for text in "12"]
    for writer in writers:
        writer.start()
    seen = set()
    while time.time() < until:
        found = files.read_folder(target, lambda saved: (saved.text("a"), saved.text("b")))
        assert found[0] == found[1]
        seen.add(found[0][0])
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert seen & {"1", "2"}
    assert {p.name for p in target.iterdir()} == {"a", "b", "holdfast.json"}


def test_an_unwritable_place_is_an_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match=r"cannot write .*skills: .* Choose a folder that can be written"):
        fill(tmp_path / "file" / "skills")
    with pytest.raises(OutputError, match="cannot write"):
        fill("a\0b")
    fill(tmp_path / "folder" / "skills")


def test_folders_of_the_first_version_and_of_a_trainer_are_ours(tmp_path):
    first = tmp_path / "first"
    first.mkdir()
    for name in ("importance.safetensors", "README.md"):
        (first / name).write_text("old")
    content = {"format_version": 1, "kind": "mas", "num_examples": 1, "files": {"importance.safetensors": "0" * 64}}
    files.write_json(first / "importance_config.json", content)
    (first / "mine").write_text("x")
    fill(first, names=("text", "importance_config.json"))
    assert {p.name for p in first.iterdir()} == {"text", "importance_config.json", "mine", "holdfast.json"}
    for marker in ("kept_and_learned.json", "holdfast/keeper_config.json"):
        trained = tmp_path / "trained" / marker.partition(".")[0]
        (trained / marker).parent.mkdir(parents=True)
        for name in (marker, "config.json", "model.safetensors", "tokenizer.json", "mine"):
            (trained / name).write_text("old")
        fill(trained, names=("config.json", "model.safetensors"))
        assert (trained / "model.safetensors").read_text() == "new"
        assert (trained / "mine").read_text() == "old"
        assert not (trained / "tokenizer.json").exists()
