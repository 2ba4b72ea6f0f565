"""Many processes, one study: a PostgreSQL server of the test's own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from pwd import getpwnam
from typing import Any

import optuna
import pytest
from tests.programs import read_until

from holdfast.lab.sweep import Space, sweep
from holdfast.lab.sweep.storage import storage_at

pytestmark = pytest.mark.postgres

SPACE = Space(
    stream="permuted-digits",
    methods=("ewc-fisher",),
    strengths=(0.1, 1.0, 10.0, 100.0, 1e3, 1e4),
    optimizers=("sgd",),
    lrs=(0.1, 0.3),
    seeds=(0, 1),
    settings={"num_tasks": 2, "epochs": 4, "batch_size": 64, "hidden": (8,), "importance_examples": 32},
    prune=False,
)
PROGRAM = """
import sys, time
from pathlib import Path
from tests.lab.sweep.test_postgres import SPACE
from holdfast.lab.sweep import storage as database, sweep

output, storage, gate = sys.argv[1:]
database.BEAT, database.GRACE = 1, 3

def tell(event):
    print(event["event"], flush=True)
    while event["event"] == "trial" and not Path(gate).exists():  # so that both have a share, however slow one is
        time.sleep(0.01)

sweep(SPACE, output=output, storage=storage, on_event=tell)
"""


def _program(name: str) -> str:
    """A program of the server, which Debian keeps off the path."""
    found = shutil.which(name) or next(iter(sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))), None)
    if found is None:
        pytest.skip(f"no PostgreSQL server on this machine: {name} is not found (Debian: apt-get install postgresql)")
    return os.path.realpath(found)


def _as_somebody() -> dict[str, Any]:
    """The server refuses to be run by root."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            user = getpwnam(name)
        except KeyError:
            continue
        return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    pytest.skip("PostgreSQL cannot be run by root, and there is neither a user postgres nor nobody")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a server that ends with the test."""
    initdb, postgres, user = _program("initdb"), _program("postgres"), _as_somebody()
    with tempfile.TemporaryDirectory(prefix="pg-") as folder:
        if user:
            os.chown(folder, user["user"], user["group"])
        data = str(Path(folder) / "data")
        command = [initdb, "-D", data, "-U", "holdfast", "-A", "trust", "--no-sync"]
        subprocess.run(command, check=True, capture_output=True, cwd=folder, **user)
        with closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [postgres, "-D", data, "-k", folder, "-h", "127.0.0.1", "-p", str(port)]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=folder, **user) as process:
            try:
                _wait_for(port)
                yield f"postgresql+psycopg://holdfast@127.0.0.1:{port}/postgres"
            finally:
                process.send_signal(signal.SIGINT)  # at once, whoever is still connected


def _wait_for(port: int) -> None:
    psycopg = pytest.importorskip("psycopg")
    for _ in range(100):
        try:
            psycopg.connect(f"host=127.0.0.1 port={port} user=holdfast dbname=postgres").close()
        except psycopg.OperationalError:
            time.sleep(0.1)
        else:
            return
    pytest.fail("the server does not answer")


def test_two_processes_share_one_study_and_a_third_takes_the_place_of_one_that_is_killed(server, tmp_path):
    outputs, gate = [tmp_path / "one", tmp_path / "two"], tmp_path / "gate"
    first, second = (
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(output), server, str(gate)], stdout=subprocess.PIPE, text=True
        )
        for output in outputs
    )
    with first, second:
        try:
            read_until(first, "trial")  # it has done its share
            read_until(second, "trial")
            gate.touch()
            read_until(first, "task")  # and is in the middle of a run
        finally:
            first.kill()
            gate.touch()
        assert second.stdout is not None
        trials = 1 + second.stdout.read().split().count("trial")
    assert second.returncode == 0
    with storage_at(server, folder=tmp_path) as storage:
        study = optuna.load_study(study_name=SPACE.study_name("ewc-fisher"), storage=storage)
        states = [trial.state.name for trial in study.trials]
    assert states.count("COMPLETE") == 12
    assert states.count("FAIL") >= 1  # what the first was at when it died
    assert set(states) == {"COMPLETE", "FAIL"}
    done = [{path.parent.name for path in output.glob("*/result.json")} for output in outputs]
    assert 0 < trials < 12
    assert len(done[1]) == 2 * trials
    wanted = {SPACE.config("ewc-fisher", c, seed=s).name for c in SPACE.grid("ewc-fisher") for s in SPACE.seeds}
    assert done[0] | done[1] == wanted
    assert len(done[0] & done[1]) <= 1  # a finished run of a trial that was not
    told = []
    again = sweep(SPACE, output=tmp_path / "three", storage=server, on_event=told.append)
    assert not told
    assert len(again.all) == 12
    alone = sweep(SPACE, output=tmp_path / "alone")
    assert again.all == alone.all
