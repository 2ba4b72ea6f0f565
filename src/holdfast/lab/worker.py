"""A worker process: `python -P -m holdfast.lab.worker` does the runs that it reads, one after the other.

Lines of JSON in: first where runs stand, then {"config": {...}} for each run, {"stop": true} to stop the one at hand.
Lines of JSON out: the events of its runs, warnings, and {"event": "ended", "stopped", "error", "kind"}.
When nobody writes to it any more it ends at once, in mid-run too: a run can be resumed.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Mapping
from typing import Any, TextIO

import torch

from holdfast.lab.config import RunConfig
from holdfast.lab.pool import Performer, StoppedError


def main() -> None:
    """Work until the standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent sees to the rest
    torch.set_num_threads(1)
    told = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what anything else prints is no message
    inbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    stop = threading.Event()
    threading.Thread(target=_read, args=(inbox, stop), daemon=True).start()
    perform = Performer(**inbox.get())

    def tell(message: Mapping[str, Any]) -> None:
        told.write(json.dumps(message) + "\n")
        told.flush()

    def on_event(event: Mapping[str, Any]) -> None:
        tell(event)
        if stop.is_set():
            raise StoppedError

    def warned(message: Warning | str, *_: object, **__: object) -> None:
        tell({"event": "warning", "text": " ".join(str(message).split())})

    warnings.showwarning = warned  # type: ignore[assignment]
    while True:
        message = inbox.get()
        stop.clear()
        tell(_done(RunConfig.from_dict(message["config"]), perform, on_event))


def _done(config: RunConfig, perform: Performer, on_event: Any) -> dict[str, Any]:
    stopped, why, kind = False, "", ""
    try:
        why, kind = perform(config, on_event)
    except StoppedError:
        stopped = True
    except Exception as error:
        traceback.print_exc()
        why, kind = f"{type(error).__name__}: {error}", type(error).__name__
    return {"event": "ended", "stopped": stopped, "error": why, "kind": kind}


def _read(inbox: queue.SimpleQueue[dict[str, Any]], stop: threading.Event, source: TextIO = sys.stdin) -> None:
    for line in source:
        message = json.loads(line)
        if "stop" in message:
            stop.set()
        else:
            inbox.put(message)
    os._exit(0)


if __name__ == "__main__":
    main()
