"""Peak memory of a call, in a fresh process.

The kernel keeps the largest amount of memory that a process has had (VmHWM), and forgets it on request. So the call is
made once on one batch, which loads what it needs from disk and fills the caches of libraries; what is free is given
back, the largest amount forgotten, the call made in full, and the amount read. The allocator is told to take every
block of 64 kB or more from the kernel and to give it back at once: so it is what is in use that counts, not what is
kept for later. `tests/benchmarks/test_memory.py` measures allocations of known size.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

MB = 2.0**20
_M_MMAP_THRESHOLD = -3  # of <malloc.h>
_BLOCK = 2**16


def measurable() -> bool:
    """Whether this system can tell (Linux with the GNU C library)."""
    try:
        return Path("/proc/self/clear_refs").exists() and hasattr(ctypes.CDLL(None), "malloc_trim")
    except OSError:
        return False


def peak(call: Callable[[], object], *, warmup: Callable[[], object]) -> float:
    """MB in use during the call at most, over what is in use before it; changes this process' allocator for good."""
    give_back_at_once()
    warmup()
    before = in_use()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    call()
    return _status("VmHWM") / MB - before


def give_back_at_once() -> None:
    """Let this process' allocator, for good, take large blocks from the kernel one by one and give them back."""
    ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _BLOCK)


def in_use() -> float:
    """MB that this process has now, when what is free has been given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return _status("VmRSS") / MB


def in_fresh_process(function: Callable[..., T], *args: object, preload: list[str]) -> T:
    """What the function returns in a process that has imported these modules and done nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(preload)  # of the first call; the server stays
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *args).result()


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {name}.")
