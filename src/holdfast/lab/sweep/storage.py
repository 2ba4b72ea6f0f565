"""Where the trials of a sweep stand: SQLite in the output folder, or any database that Optuna can use."""

from __future__ import annotations

import shutil
import sqlite3
import time
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import optuna
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from holdfast.errors import OptionError
from holdfast.files import check_files
from holdfast.lab.canvas import make_folder

DATABASE = "sweep.db"
"""The name of the storage that no address was given for."""

BEAT = 5
"""Seconds between two signs of life of a process that is at work on a trial."""

GRACE = 30
"""Seconds without one after which another process tries its setting."""

ATTEMPTS = 5
"""Two processes that make the tables of a new database at once disturb each other; the later one tries again."""


@contextmanager
def storage_at(url: str | None, *, folder: Path) -> Iterator[optuna.storages.RDBStorage]:
    """Optuna's storage at an address, or in `folder`; its log is silent within the block.

    Raises:
        OptionError: the address is none, or nobody answers there.
        OutputError: the folder cannot be written, or `sweep.db` in it is somebody else's.
    """
    if url is None:
        check_files([folder / DATABASE], is_ours=_is_study)
    make_folder(folder)
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # such is the heartbeat
            storage = _opened(url or f"sqlite:///{(folder / DATABASE).absolute()}")
            yield storage
    finally:
        if storage is not None:
            storage.remove_session()
            storage.engine.dispose()
        optuna.logging.set_verbosity(before)


def _is_study(path: Path) -> bool:
    """Whether a file is a database that Optuna made, or that it is about to fill; it is not written to.

    Of a process that was killed as it wrote, SQLite keeps a journal, and takes back what was half written when somebody
    opens the database next; since nobody may write to what may be another's, that is done in a copy.
    """
    if path.stat().st_size == 0:
        return True
    try:
        tables = _tables(path)
    except sqlite3.Error:
        try:
            with TemporaryDirectory() as folder:
                for each in (path, Path(f"{path}-journal")):
                    shutil.copyfile(each, Path(folder, each.name))
                tables = _tables(Path(folder, path.name), mode="rw")
        except (sqlite3.Error, OSError):
            return False
    return not tables or "studies" in tables


def _tables(path: Path, mode: str = "ro") -> set[str]:
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=60)) as database:
        return {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def _opened(url: str) -> optuna.storages.RDBStorage:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            patience = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {"pool_pre_ping": True}
            return optuna.storages.RDBStorage(url, patience, heartbeat_interval=BEAT, grace_period=GRACE)
        except (SQLAlchemyError, ImportError, RuntimeError, optuna.exceptions.StorageInternalError) as error:
            if attempt == ATTEMPTS:
                raise OptionError(
                    f"storage {_without_password(url)} cannot be used: {_first_line(error)} Expected an address such "
                    "as sqlite:///sweep.db or postgresql+psycopg://user:password@host/database, its driver installed "
                    '(pip install "torch-holdfast[postgres]").'
                ) from error
            time.sleep(0.1 * attempt)
    raise AssertionError


def _without_password(url: str) -> str:
    try:
        return make_url(url).render_as_string(hide_password=True)
    except SQLAlchemyError:
        return repr(url)


def _first_line(error: BaseException) -> str:
    told = (str(error).strip().splitlines() or [type(error).__name__])[0].strip()
    return told if told.endswith(".") else f"{told}."
