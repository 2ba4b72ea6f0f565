from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from holdfast.errors import OutputError
from holdfast.files.exclusive import is_held, locked

HOLDER = """
import sys, time
from pathlib import Path
from holdfast.files.exclusive import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_it_is_held_inside_the_block_and_gone_after_it(tmp_path):
    path = tmp_path / "run" / ".lock"
    assert not is_held(path)
    with locked(path):
        assert is_held(path)
    assert not path.exists()


def test_the_second_waits_until_the_first_is_done(tmp_path):
    path, order = tmp_path / ".lock", []

    def second() -> None:
        with locked(path, waiting=lambda: order.append("waits")):
            order.append("second")

    with locked(path):
        thread = threading.Thread(target=second)
        thread.start()
        while "waits" not in order:
            time.sleep(0.01)
        order.append("first is done")
    thread.join()
    assert order == ["waits", "first is done", "second"]
    assert not path.exists()


def test_that_of_a_killed_process_is_free(tmp_path):
    path = tmp_path / ".lock"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert is_held(path)
        holder.kill()
    assert path.exists()
    assert not is_held(path)
    with locked(path, waiting=lambda: pytest.fail("it is free")):
        assert is_held(path)


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*file: .*\. Choose another --output\."):
        with locked(tmp_path / "file" / ".lock"):
            pass
    with locked(tmp_path / "another" / ".lock"):
        pass


def test_a_folder_behind_a_link_that_leads_to_nothing_yet_is_made(tmp_path):
    (tmp_path / "link").symlink_to("folder")
    with locked(tmp_path / "link" / "lock"):
        assert (tmp_path / "folder" / "lock").is_file()
    assert list((tmp_path / "folder").iterdir()) == []
