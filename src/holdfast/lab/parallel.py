"""Many runs, in as many processes as you like."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from holdfast.errors import FailedRunsError, FileFormatError, RunMismatchError
from holdfast.lab.config import RunConfig
from holdfast.lab.folder import RunFolder
from holdfast.lab.pool import one_at_a_time, pool_of
from holdfast.lab.result import RunResult
from holdfast.lab.running import EventCallback


def run_all(
    configs: Sequence[RunConfig],
    *,
    output: str | os.PathLike[str] = "runs",
    jobs: int = 1,
    device: str = "cpu",
    data_dir: str | os.PathLike[str] | None = None,
    on_event: EventCallback | None = None,
) -> list[RunResult]:
    """Do all the runs, each in its own folder, and give their results in the order of `configs`.

    Finished runs are read back and interrupted ones resumed. A run that fails does not keep the others from being done.
    Two processes never work on the same run: the second waits for the first. A script that asks for several jobs does
    so under `if __name__ == "__main__":`, for each process imports it.

    Args:
        configs: the runs; what stands there twice is done once.
        output: parent of the run folders.
        jobs: how many processes, each of one torch thread, which import and load the data once; 1: this one alone.
        device: as torch names it.
        data_dir: where MNIST is; see `holdfast.lab.streams.mnist`.
        on_event: called with each event of each run, under "run" the name of its folder, and with {"event": "finished"
            or "failed", "run", "number", "of", "error"} as each ends; with several jobs in threads, one at a time.

    Raises:
        FailedRunsError: some failed; raised when all others are finished.
        OptionError: jobs is below 1.
        OutputError: one of the folders holds something and no run; raised before any work.
    """
    wanted = {config.name: config for config in configs}
    found: dict[str, RunResult] = {}
    failures: dict[str, str] = {}

    for config in wanted.values():
        with suppress(RunMismatchError, FileFormatError):  # told as the run's own failure
            RunFolder(Path(output) / config.name, config)
    tell = one_at_a_time(on_event)
    with pool_of(min(jobs, max(len(wanted), 1)), output=output, device=device, data_dir=data_dir) as do:
        for number, (config, done) in enumerate(do(wanted.values(), tell), start=1):
            name, ended = config.name, "failed"
            if done.result is None:
                failures[name] = done.error
            else:
                found[name], ended = done.result, "finished"
            tell({"event": ended, "run": name, "number": number, "of": len(wanted), "error": done.error})
    if failures:
        raise FailedRunsError(failures, of=len(wanted))
    return [found[config.name] for config in configs]
