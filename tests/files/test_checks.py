from __future__ import annotations

import os

import pytest
from tests.files.folders import fill, listing

from holdfast import files
from holdfast.errors import DataFileError, OutputError
from holdfast.files import checks, door


def is_ours(path):
    return path.read_text().startswith("ours")


def refused(root, path, match, **options):
    before = listing(root)
    with pytest.raises(OutputError, match=match):
        files.check_output(path, **options)
    assert listing(root) == before


def test_a_folder_that_cannot_be_made_is_refused_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    refused(tmp_path, tmp_path / "file" / "a" / "b", r"cannot write .*b: .*file: that is no folder. Choose a folder")
    (tmp_path / "shut").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(tmp_path / "shut"))  # root may write anywhere
    for path in (tmp_path / "shut", tmp_path / "shut" / "a" / "b"):
        refused(tmp_path, path, r"cannot write .*shut: there is no permission to write there. Choose a folder")
    files.check_output(tmp_path / "a" / "b" / "c")
    assert not (tmp_path / "a").exists()


def test_a_place_that_is_mounted_twice_is_one_place(tmp_path, monkeypatch):
    for name in ("model", "same", "other"):
        (tmp_path / name).mkdir()
    whole = checks.Path.samefile
    monkeypatch.setattr(
        checks.Path, "samefile", lambda one, two: {one.name, two.name} == {"same", "model"} or whole(one, two)
    )
    refused(tmp_path, tmp_path / "same", r"is read from \(.*model\)", reading=[tmp_path / "model"])
    files.check_output(tmp_path / "other", reading=[tmp_path / "model"])


def test_names_that_others_have_taken_are_refused_before_any_work(tmp_path):
    target = tmp_path / "skills"
    fill(target, names=("text", "part/one"))
    (target / "mine").write_text("x")
    (target / "folder").mkdir()
    files.check_output(target, names=("text", "part/one", "new"))
    for name in ("mine", "folder", "mine/below"):
        refused(tmp_path, target, rf"{name} stands there already and was not written by", names=("text", name))
    refused(tmp_path, target, r"folder, mine stands there already", names=("mine", "folder"))


@pytest.mark.parametrize("there", ["config.json", "importance_config.json", "keeper_config.json", "report.html"])
def test_something_else_that_holdfast_wrote_is_not_deleted(tmp_path, there):
    names = ("importance.safetensors", "summary.html", "README.md")
    fill(tmp_path / "made", names=(there, "importance.safetensors", "README.md"))
    match = rf"made holds something else that holdfast wrote \({there}\), and is left as it is. Give another folder"
    refused(tmp_path, tmp_path / "made", match, names=names)
    before = listing(tmp_path)
    with pytest.raises(OutputError, match=match):
        fill(tmp_path / "made", names=names)
    assert listing(tmp_path) == before
    fill(tmp_path / "made", names=(there, "other"))  # another save of the same kind
    fill(tmp_path / "other", names=names)  # the remedy
    fill(tmp_path / "other", names=names)


def test_a_folder_may_be_known_by_something_else_than_a_manifest(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("ours")
    refused(tmp_path, tmp_path / "run", r"holds what holdfast did not write \(config.json\)", is_ours=lambda _: False)
    files.check_output(tmp_path / "run", is_ours=lambda folder: is_ours(folder / "config.json"))
    files.check_output(tmp_path / "none", is_ours=lambda folder: False)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_took_the_place_of_a_file_of_ours_is_left_and_the_folder_stays_usable(tmp_path, kind):
    target = tmp_path / "skills"
    fill(target, "old", names=("text", "part/one"))
    if kind == "folder":  # of the name of a file that is listed
        (target / "text").unlink()
        (target / "text").mkdir()
        (target / "text" / "precious").write_text("x")
        names, taken = ("text",), "text"
    else:  # of the name of a folder in which one is listed
        (target / "part" / "one").unlink()
        (target / "part").rmdir()
        (target / "part").write_text("precious")
        names, taken = ("part/one",), "part/one"
    before = listing(tmp_path)
    with pytest.raises(OutputError, match=f"{taken} stands there already and was not written by holdfast; nothing was"):
        fill(target, names=names)
    assert listing(tmp_path) == before
    fill(target, names=("another",))
    assert (target / "another").read_text() == "new"
    assert (target / "text" / "precious" if kind == "folder" else target / "part").exists()


@pytest.mark.parametrize("before", [(), ("old",)])
def test_a_file_that_came_while_a_killed_save_waited_is_not_written_over(tmp_path, monkeypatch, before):
    target = tmp_path / "skills"
    if before:
        fill(target, "old", names=before)

    class KilledError(BaseException):
        pass

    def finish(target):
        if (target / door.COMMIT).exists():
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(door, "_finish", finish)
        with pytest.raises(KilledError):
            fill(target, names=("text", "more"))
    (target / "text").write_text("precious")
    found = listing(tmp_path)
    with pytest.raises(OutputError, match=r"text stands there already|holds what holdfast did not write \(text\)"):
        fill(target)
    assert listing(tmp_path) == found
    (target / "text").unlink()
    fill(target)
    assert {path.name for path in target.iterdir()} == {"text", "holdfast.json"}


def test_an_error_of_the_work_itself_is_not_taken_for_one_of_writing(tmp_path):
    def save():
        with files.new_folder(tmp_path / "skills"):
            raise DataFileError("no texts")

    with pytest.raises(DataFileError, match="no texts"):
        save()


def test_a_folder_is_saved_once_it_is_whole(tmp_path):
    assert not files.is_saved(tmp_path / "skills")
    with files.new_folder(tmp_path / "skills"):
        assert not files.is_saved(tmp_path / "skills")
    assert files.is_saved(tmp_path / "skills")


# --- single files


def test_files_of_ours_and_new_ones_may_be_written(tmp_path):
    (tmp_path / "a").write_text("ours")
    (tmp_path / "link").symlink_to("a")
    paths = [tmp_path / name for name in ("a", "link", "new", "deep/new")]
    files.check_files(paths, is_ours=is_ours, reading=["b"])
    assert not (tmp_path / "deep").exists()


def test_files_of_others_are_refused_all_at_once(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text("precious")
    before = listing(tmp_path)
    with pytest.raises(
        OutputError, match=r"a, .*b stands there already and was not written by holdfast; nothing was w"
    ):
        files.check_files([tmp_path / "a", tmp_path / "b"], is_ours=is_ours)
    assert listing(tmp_path) == before


def test_what_is_no_file_cannot_be_written_over(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "nowhere").symlink_to("none")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a").write_text("ours")
    for name in ("folder", "nowhere", "pipe"):
        with pytest.raises(OutputError, match=rf"{name} is no file \(a folder, a pipe or a link to nothing\). Give an"):
            files.check_files([tmp_path / name], is_ours=is_ours)
    with pytest.raises(OutputError, match=r"cannot write .*below: .*a: that is no folder"):
        files.check_files([tmp_path / "a" / "below"], is_ours=is_ours)
    with pytest.raises(OutputError, match=r"a is read from, so that nothing is written over it. Give another place"):
        files.check_files([tmp_path / "a"], is_ours=is_ours, reading=[tmp_path / "a"])
