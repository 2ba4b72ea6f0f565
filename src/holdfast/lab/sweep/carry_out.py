"""A sweep from end to end; nothing is imported of optuna and scipy before it begins."""

from __future__ import annotations

import os
from pathlib import Path

from holdfast.errors import FailedRunsError, OptionError
from holdfast.lab.pool import pool_of
from holdfast.lab.run import EventCallback
from holdfast.lab.sweep.findings import SweepFindings, check_findings, write_findings
from holdfast.lab.sweep.space import Space


def sweep(
    space: Space,
    *,
    output: str | os.PathLike[str] = "runs",
    storage: str | None = None,
    jobs: int = 1,
    device: str = "cpu",
    data_dir: str | os.PathLike[str] | None = None,
    on_event: EventCallback | None = None,
) -> SweepFindings:
    """Try every setting of `space`, and choose the best of each method by its mean validation accuracy.

    Each run stands in its own folder of `output`. Kill it, or its processes, at any moment: the same call goes on. Any
    number of processes and machines may share one storage: each setting is tried by one of them, and each process
    returns when all are.

    Args:
        space: what is compared.
        output: parent of the run folders; `sweep-STREAM.json` and `.csv` are written there.
        storage: an address as Optuna takes it; None: `sweep.db` in `output`.
        jobs: local processes; see `run_all`.
        device: as torch names it.
        data_dir: where MNIST is; see `holdfast.lab.streams.mnist`.
        on_event: called with each event of each run, under "run" the name of its folder, and as each setting ends with
            {"event": "trial", "method", "setting", "state": "complete", "pruned" or "failed", "validation", "why"}.

    Returns:
        What was found, with settings that other processes tried.

    Raises:
        FailedRunsError: runs failed for another reason than that training diverged; raised when all others are done.
        OptionError: the storage cannot be used, or optuna or scipy is not installed.
        OutputError: `output` cannot be written, or files of somebody else's have the names of the sweep's.
    """
    try:
        import scipy  # noqa: F401  what is found over several seeds has an interval

        from holdfast.lab.sweep.board import boards_of
        from holdfast.lab.sweep.drive import Drive
    except ImportError as error:
        raise OptionError(
            f'a sweep needs {error.name}, not installed here: pip install "torch-holdfast[sweep]"'
        ) from error
    folder = Path(output)
    check_findings(space, folder)
    drive = Drive(space, on_event)
    with (
        pool_of(jobs, output=folder, device=device, data_dir=data_dir, on_event=drive.on_run_event) as pool,
        boards_of(space, folder=folder, storage=storage) as boards,
    ):
        try:
            drive.go(boards, pool, jobs=jobs)
        finally:
            drive.give_back()
        found = [finding for board in boards for finding in board.findings()]
    findings = write_findings(found, space=space, output=folder)
    if drive.failures:
        raise FailedRunsError(drive.failures, of=drive.num_runs)
    return findings
