"""A sweep from end to end; nothing is imported of optuna and scipy before it begins."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from holdfast.errors import FailedRunsError
from holdfast.lab.folder import TRIAL, note_purpose, purpose_of
from holdfast.lab.packages import check_installed
from holdfast.lab.pool import one_at_a_time, pool_of
from holdfast.lab.running import EventCallback
from holdfast.lab.sweep.findings import SweepFindings, check_findings, write_findings
from holdfast.lab.sweep.space import Space


def sweep(
    space: Space,
    *,
    output: str | os.PathLike[str] = "runs",
    storage: str | None = None,
    jobs: int = 1,
    device: str = "cpu",
    on_event: EventCallback | None = None,
) -> SweepFindings:
    """Try every setting of `space`, and choose the best of each method by its mean validation accuracy.

    Each run stands in its own folder of `output`. Kill it, or its processes, at any moment: the same call goes on. Any
    number of processes and machines may share one storage: each setting is tried by one of them, and each process
    returns when all are. Reports leave out the runs that a sweep begins, but those of the settings that it chooses at
    its end. What a killed process was at is taken up half a minute later. A script that asks for several
    jobs does so under `if __name__ == "__main__":`, for each process imports it.

    Args:
        space: what is compared.
        output: parent of the run folders; `sweep-STREAM.json` and `.csv` are written there.
        storage: an address as Optuna takes it; None: `sweep.db` in `output`.
        jobs: local processes; see `run_all`.
        device: as torch names it.
        on_event: called with each event of each run, under "run" the name of its folder, and as each setting ends with
            {"event": "trial", "method", "setting", "state": "complete", "pruned" or "failed", "validation", "why",
            "runs"}; with several jobs in threads, one at a time.

    Returns:
        What was found, with settings that other processes tried.

    Raises:
        FailedRunsError: runs failed for another reason than that training diverged; raised when all others are done.
        OptionError: the storage cannot be used, or optuna or scipy is not installed.
        OutputError: `output` cannot be written, or files of somebody else's have the names of the sweep's.
    """
    # what is found over several seeds has an interval
    check_installed("optuna", "sqlalchemy", "scipy", what="a sweep is done", extra="sweep")
    from holdfast.lab.sweep.board import Board
    from holdfast.lab.sweep.drive import Drive
    from holdfast.lab.sweep.storage import storage_at

    folder = Path(output)
    check_findings(space, folder)
    pool, told = pool_of(jobs, output=folder, device=device, data_dir=space.data_dir), one_at_a_time(on_event)

    def tell(event: Mapping[str, Any]) -> None:
        if event["event"] == "start" and not event["resumed"]:
            note_purpose(folder / event["run"], TRIAL)
        told(event)

    with (
        storage_at(storage, folder=folder) as opened,
        ThreadPoolExecutor(jobs) as threads,  # which end when the pool has
        pool as do,
    ):
        boards = [Board(space, method, storage=opened) for method in space.methods]
        drive = Drive(space, boards, do, tell)
        drive.go(threads, jobs=jobs)
        found = [finding for board in boards for finding in board.findings()]
    findings = write_findings(found, space=space, output=folder)
    for run in (folder / name for finding in findings.best for name in finding.runs):
        if purpose_of(run) == TRIAL:
            note_purpose(run, "")
    if drive.failures:
        raise FailedRunsError(drive.failures, of=len(drive.runs))
    return findings
